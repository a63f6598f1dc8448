package layering

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
)

const root = "../.."

func TestImportsRunOneWay(t *testing.T) {
	found, err := parse(os.DirFS(root))
	if err != nil {
		t.Fatal(err)
	}
	if !found.ours("internal/id") {
		t.Fatalf("no package internal/id below %s: the wrong folder was checked", root)
	}
	for _, line := range breaches(found, rules) {
		t.Error(line)
	}
}

func TestTopFolders(t *testing.T) {
	ignored, err := os.ReadFile(filepath.Join(root, ".gitignore"))
	if err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(root)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range strayFolders(entries, strings.Split(string(ignored), "\n")) {
		t.Error(line)
	}
}

// strayFolders names the folders among entries that are neither the project's
// nor in the lines of a .gitignore.
func strayFolders(entries []os.DirEntry, ignored []string) []string {
	var stray []string
	for _, e := range entries {
		if !e.IsDir() || e.Name() == ".git" || slices.Contains(folders, e.Name()) ||
			slices.Contains(ignored, "/"+e.Name()+"/") {
			continue
		}
		stray = append(stray, e.Name()+": not a top folder of the project")
	}
	return stray
}

// Each row plants one import and says which rule, by words of its reason, must
// find it, or none. Every rule has a row.
func TestRulesFindPlantedImports(t *testing.T) {
	bitten := make([]bool, len(rules))
	for _, c := range []struct {
		file, imports string
		want          string
	}{
		{"internal/host/a.go", "plinth/cmd/plinth", "wires packages"},
		{"internal/id/a.go", "plinth/internal/chunk", "names of things"},
		{"internal/gate/a.go", "plinth/internal/id", "nothing of what passes"},
		{"nbd/a.go", "plinth/internal/id", "any Device"},
		{"internal/owner/a.go", "plinth/internal/host", "does no I/O"},
		{"internal/owner/a.go", "plinth/datanode", ""},
		{"internal/logset/a.go", "plinth/internal/host", "who has a log"},
		{"internal/rack/a.go", "plinth/internal/host", "a rack is a Node"},
		{"internal/rack/racktest/a.go", "plinth/internal/host", ""},
		{"nbd/client/a.go", "plinth/datanode", "any Device"},
		{"nbd/client/a.go", "plinth/nbd", ""},
		{"internal/chunk/a.go", "plinth/internal/disk", "one way"},
		{"datanode/log/a.go", "plinth/internal/host", "one way"},
		{"internal/disk/a.go", "plinth/internal/host", "neither the agent"},
		{"internal/disk/a.go", "plinth/nbd", "neither the agent"},
		{"internal/disk/a.go", "plinth/datanode", ""},
		{"internal/reclaim/a.go", "plinth/internal/disk", "knows no map"},
		{"internal/reclaim/a.go", "plinth/blockmap", "knows no map"},
		{"internal/reclaim/a.go", "plinth/datanode", ""},
		{"internal/host/a.go", "plinth/internal/api", "without anybody"},
		{"internal/host/a.go", "plinth/nbd", ""},
		{"blockmap/a.go", "plinth/datanode", "interface of its own"},
		{"flashcache/a.go", "plinth/blockmap", "bytes"},
		{"internal/peerflash/a.go", "plinth/internal/host", "who asked for them"},
		{"internal/peerflash/a.go", "plinth/nbd", ""},
		{"datanode/a.go", "plinth/blockmap", "learns no map"},
		{"datanode/a.go", "plinth/internal/chunk", "holds no keys"},
		{"datanode/a.go", "plinth/internal/keyring", "holds no keys"},
		{"datanode/a.go", "crypto/cipher", "holds no keys"},
		{"datanode/a_test.go", "plinth/internal/chunk", "holds no keys"},
		{"datanode/a.go", "plinth/internal/stripe", "no parity"},
		{"datanode/a.go", "plinth/internal/sealing", "holds no keys"}, // by way of sealing
		{"datanode/wire/a.go", "plinth/internal/stripe", "what they say"},
		{"datanode/wire/a.go", "plinth/datanode", ""},
		{"datanode/shelf/a.go", "plinth/datanode/wire", "from where it is called"},
		{"internal/disk/a.go", "plinth/datanode/wire", "near or far"},
		{"internal/host/a.go", "plinth/datanode/wire", ""},
		{"internal/disk/a.go", "plinth/internal/sealing", ""},
		{"internal/pki/a.go", "plinth/internal/keyring", "who a member is"},
		{"datanode/a.go", "plinth/internal/pki", ""},
		{"internal/chunk/a.go", "plinth/internal/keyring", "key manager"},
		{"internal/host/a.go", pebble + "/v2", "only the map knows Pebble"},
		{"internal/host/a.go", pebble + "/v2/sstable", "only the map knows Pebble"},
		{"internal/host/a.go", pebbleVFS, ""},
		{"internal/host/a.go", pebbleVFS + "/errorfs", ""},
		{"internal/host/a.go", "plinth/blockmap", ""}, // which knows Pebble for it
		{"blockmap/a.go", pebble + "/v2", ""},
		{"datanode/index/a.go", pebble + "/v2", ""},
		{"internal/registry/a.go", pebble + "/v2", ""},
		{"internal/host/a.go", etcd + "/client/v3", "answers are lost"},
		{"internal/registry/etcd/a.go", etcd + "/client/v3", ""},
		{"internal/disk/a.go", reedsolomon, "one home"},
		{"internal/stripe/a.go", reedsolomon, ""},
		{"internal/disk/a.go", goNBD + "/pkg/protocol", "stay with the protocol"},
		{"internal/host/a.go", genetlink, "kernel about devices"},
		{"internal/attach/a.go", genetlink, ""},
		{"cmd/plinth/a.go", vsock, "address looks like"},
		{"nbd/vsock/a.go", vsock, ""},
		{"internal/attach/a.go", "plinth/internal/host", "not an agent"},
		{"internal/attach/a.go", "plinth/nbd/client", ""},
		{"internal/api/a.go", cli + "/v2", "flags are parsed"},
		{"cmd/plinth/a.go", cli + "/v2", ""},
		{"nbd/testdata/a.go", "plinth/internal/id", ""},
		{"nbdx/a.go", "plinth/datanode", ""}, // not below nbd
	} {
		tree := fstest.MapFS{
			"cmd/plinth/m.go":       source("main"),
			"nbd/m.go":              source("nbd"),
			"blockmap/m.go":         source("blockmap", pebble+"/v2"),
			"datanode/m.go":         source("datanode", "plinth/internal/id"),
			"internal/id/m.go":      source("id"),
			"internal/chunk/m.go":   source("chunk", "plinth/internal/id"),
			"internal/keyring/m.go": source("keyring", "plinth/internal/id"),
			"internal/sealing/m.go": source("sealing", "plinth/internal/chunk"),
			"internal/stripe/m.go":  source("stripe"),
			"internal/disk/m.go":    source("disk"),
			"internal/host/m.go":    source("host"),
			"internal/api/m.go":     source("api"),
		}
		tree[c.file] = source("p", c.imports)
		found, err := parse(tree)
		if err != nil {
			t.Fatal(err)
		}
		got := breaches(found, rules)
		switch {
		case c.want == "" && len(got) > 0:
			t.Errorf("%s imports %s: breach of %q, want none", c.file, c.imports, got)
		case c.want != "" && !slices.ContainsFunc(got, func(line string) bool { return strings.Contains(line, c.want) }):
			t.Errorf("%s imports %s: breach of %q, want one with %q", c.file, c.imports, got, c.want)
		}
		for i, r := range rules {
			bitten[i] = bitten[i] || c.want != "" && strings.Contains(r.Reason, c.want)
		}
	}
	for i, r := range rules {
		if !bitten[i] {
			t.Errorf("no row plants a breach of the rule %q", r.Reason)
		}
	}
}

func TestStrayFolders(t *testing.T) {
	tree := fstest.MapFS{
		"nbd/a.go": source("nbd"), "util/a.go": source("util"), "out/log": {}, ".git/HEAD": {}, "README.md": {},
	}
	entries, err := tree.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	got := strayFolders(entries, []string{"/out/", "*.test"})
	if len(got) != 1 || !strings.HasPrefix(got[0], "util:") {
		t.Errorf("stray folders: %q, want util alone", got)
	}
}

// source is a Go file that imports the packages.
func source(name string, paths ...string) *fstest.MapFile {
	text := "package " + name + "\n"
	for _, p := range paths {
		text += "import _ \"" + p + "\"\n"
	}
	return &fstest.MapFile{Data: []byte(text)}
}
