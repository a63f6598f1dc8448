package layering

// rule forbids an import. In From and To, "" is this whole module, and every
// other name stands for its package and all below it. Except and Allow take
// some packages out again.
type rule struct {
	From    []string
	Except  []string // packages of From that may
	To      []string
	Allow   []string // packages of To that are free to all
	Through bool     // not even by way of other packages of this module
	Reason  string
}

const (
	pebble      = "github.com/cockroachdb/pebble"
	pebbleVFS   = "github.com/cockroachdb/pebble/v2/vfs"
	reedsolomon = "github.com/klauspost/reedsolomon"
	goNBD       = "github.com/pojntfx/go-nbd"
	cli         = "github.com/urfave/cli"
	etcd        = "go.etcd.io/etcd"
	xcrypto     = "golang.org/x/crypto"
	netlink     = "github.com/mdlayher/netlink"
	genetlink   = "github.com/mdlayher/genetlink"
	vsock       = "github.com/mdlayher/vsock"
)

// rules is the whole law. The order of layers is
//
//	cmd → internal/api → internal/host → internal/disk →
//	    {blockmap, flashcache, datanode, internal/stripe, internal/chunk}
//
// and nbd stands beside it.
var rules = []rule{
	{
		From:   []string{""},
		Except: []string{"cmd"},
		To:     []string{"cmd"},
		Reason: "a command wires packages; what others want from it belongs in a package",
	},
	{
		From:    []string{"internal/id"},
		To:      []string{""},
		Through: true,
		Reason:  "the names of things are under everything else",
	},
	{
		From:    []string{"internal/gate"},
		To:      []string{""},
		Through: true,
		Reason:  "who may go on is decided from costs and time: a gate knows nothing of what passes it",
	},
	{
		From:    []string{"internal/owner"},
		To:      []string{""},
		Allow:   []string{"internal/owner", "internal/sim", "datanode", "internal/id", "internal/longlock"},
		Through: true,
		Reason:  "who owns a disk is decided from events: the machine does no I/O, so that a simulation can drive it",
	},
	{
		From:    []string{"internal/logset"},
		To:      []string{""},
		Allow:   []string{"internal/logset", "internal/sim", "datanode", "internal/id", "internal/longlock"},
		Through: true,
		Reason:  "who has a log is decided from events: the machine does no I/O, so that a simulation can drive it",
	},
	{
		From:    []string{"nbd"},
		To:      []string{""},
		Allow:   []string{"nbd"},
		Through: true,
		Reason:  "the protocol serves any Device: it declares what it needs and is usable without the rest",
	},
	{
		From: []string{"blockmap", "flashcache", "datanode", "internal/stripe", "internal/chunk",
			"internal/keyring", "internal/registry"},
		To:      []string{"internal/disk", "internal/host", "internal/api"},
		Through: true,
		Reason:  "imports run one way: the parts do not know the disk that is built from them",
	},
	{
		From:    []string{"internal/disk"},
		To:      []string{"internal/host", "internal/api", "nbd"},
		Through: true,
		Reason:  "a disk knows neither the agent that opened it nor the protocol that reads it",
	},
	{
		From:    []string{"internal/reclaim"},
		To:      []string{"internal/disk", "internal/host", "internal/api", "blockmap", "nbd"},
		Through: true,
		Reason:  "what to empty is decided from lists alone, and moved as it is: reclaim knows no map",
	},
	{
		From:    []string{"internal/rack"},
		Except:  []string{"internal/rack/racktest"},
		To:      []string{"internal/disk", "internal/host", "internal/api", "datanode/shelf", "datanode/wire", "blockmap", "nbd"},
		Through: true,
		Reason:  "a rack is a Node made of nodes: where they are and what hosts do with them is not its business",
	},
	{
		From:    []string{"internal/host"},
		To:      []string{"internal/api"},
		Through: true,
		Reason:  "the agent works without anybody to control it",
	},
	{
		From:    []string{"blockmap"},
		To:      []string{"nbd", "flashcache", "datanode"},
		Through: true,
		Reason:  "the map reads and stores its tables through an interface of its own",
	},
	{
		From:    []string{"flashcache"},
		To:      []string{"nbd", "blockmap", "datanode"},
		Through: true,
		Reason:  "the cache knows fingerprints and bytes; losing it may cost time only",
	},
	{
		From:    []string{"internal/ramcache"},
		To:      []string{""},
		Allow:   []string{"internal/ramcache", "internal/id"},
		Through: true,
		Reason:  "the cache knows fingerprints and bytes; what may be put into it is for the disk to know",
	},
	{
		From:    []string{"internal/peerflash"},
		To:      []string{""},
		Allow:   []string{"internal/peerflash", "internal/id", "nbd"},
		Through: true,
		Reason:  "chunks pass between hosts as bytes with a name: who asked for them verifies them",
	},
	{
		From:    []string{"datanode"},
		To:      []string{"nbd", "blockmap", "flashcache"},
		Through: true,
		Reason:  "the shelf learns no map: it serves any host, and its index does not need one",
	},
	{
		From:    []string{"datanode"},
		To:      []string{"internal/chunk", "internal/keyring", "crypto/aes", "crypto/cipher", xcrypto},
		Through: true,
		Reason:  "a data node holds no keys, so that a stolen or hostile one reads nothing",
	},
	{
		From:    []string{"datanode"},
		To:      []string{"internal/stripe", reedsolomon},
		Through: true,
		Reason:  "a data node computes no parity: hosts do, so that a shelf stays a shelf",
	},
	{
		From:    []string{"internal/pki"},
		To:      []string{""},
		Allow:   []string{"internal/pki", "internal/failpoint"},
		Through: true,
		Reason:  "who a member is does not depend on what it does: hosts and data nodes use the same",
	},
	{
		From:    []string{"datanode/wire"},
		To:      []string{""},
		Allow:   []string{"datanode", "internal/id", "internal/longlock"},
		Through: true,
		Reason:  "the wire carries calls of any node: it knows what they say and not what they do",
	},
	{
		From:    []string{"datanode"},
		Except:  []string{"datanode/wire"},
		To:      []string{"datanode/wire"},
		Through: true,
		Reason:  "a node does not know from where it is called",
	},
	{
		From:    []string{"internal/disk", "internal/stripe", "internal/object", "internal/reclaim"},
		To:      []string{"datanode/wire"},
		Through: true,
		Reason:  "a disk asks a Node: whether that is near or far is decided by who opens it",
	},
	{
		From:    []string{"internal/chunk"},
		To:      []string{"internal/keyring"},
		Through: true,
		Reason:  "a sealed chunk names its key; where keys come from is the key manager's business",
	},
	{
		From:   []string{""},
		Except: []string{"blockmap", "datanode", "internal/registry"},
		To:     []string{pebble},
		Allow:  []string{pebbleVFS},
		Reason: "on a host only the map knows Pebble, on the shelf only index and registry; its vfs is every store's file system",
	},
	{
		From:   []string{""},
		Except: []string{"internal/registry/etcd"},
		To:     []string{etcd},
		Reason: "what etcd does when answers are lost is understood in one place; the rest knows the registry's calls",
	},
	{
		From:   []string{""},
		Except: []string{"internal/stripe"},
		To:     []string{reedsolomon},
		Reason: "parity has one home, and the library's word shard stays in it",
	},
	{
		From:   []string{""},
		Except: []string{"nbd"},
		To:     []string{goNBD},
		Reason: "magics and wire structs of NBD stay with the protocol",
	},
	{
		From:   []string{""},
		Except: []string{"internal/attach"},
		To:     []string{netlink, genetlink},
		Reason: "one package talks to this machine's kernel about devices",
	},
	{
		From:   []string{""},
		Except: []string{"nbd/vsock"},
		To:     []string{vsock},
		Reason: "what a VM socket's address looks like is said once, for those who listen and those who dial",
	},
	{
		From:    []string{"internal/attach"},
		To:      []string{""},
		Allow:   []string{"internal/attach", "nbd"},
		Through: true,
		Reason:  "attaching a disk takes a server of NBD, not an agent: it works where no plinth is",
	},
	{
		From:   []string{""},
		Except: []string{"cmd"},
		To:     []string{cli},
		Reason: "flags are parsed in the command and reach packages as Options",
	},
}

// folders are all that may lie at the top of the repository.
var folders = []string{
	".ci", "bench", "blockmap", "cmd", "datanode", "docs", "flashcache", "internal", "nbd", "scripts",
}
