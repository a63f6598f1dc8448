package interop

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"plinth/internal/guest"
	"plinth/nbd"
	"plinth/nbd/client"
	"plinth/nbd/memory"
)

var (
	replayPoints = flag.Int("replay-points", 0, "losses of power of each file system in TestGuestReplay; 0: it is left out")
	replayFiles  = flag.Int("replay-files", 6, "files that TestGuestReplay's guest syncs")
	replaySeed   = flag.Uint64("replay-seed", 0, "of the points of TestGuestReplay; 0: another one each time")
)

// replayBytes is the least that mkfs.xfs takes, and some.
const replayBytes = 320 << 20

// change is what a guest did to a disk, in the order in which it took effect.
type change struct {
	kind changeKind
	off  int64
	n    int64
	data []byte
	fua  bool
}

type changeKind int

const (
	changeWrite changeKind = iota
	changeZero
	changeTrim
	changeFlush
)

// changeable is what a change is done to.
type changeable interface {
	WriteAt(ctx context.Context, p []byte, off int64, fua bool) error
	Zero(ctx context.Context, off, n int64, mayTrim, fua bool) error
	Trim(ctx context.Context, off, n int64, fua bool) error
	Flush(ctx context.Context) error
}

// apply does it. Zeros and trims both read as zeros afterwards.
func (c *change) apply(ctx context.Context, d changeable) error {
	switch c.kind {
	case changeWrite:
		return d.WriteAt(ctx, c.data, c.off, c.fua)
	case changeZero:
		return d.Zero(ctx, c.off, c.n, true, c.fua)
	case changeTrim:
		return d.Trim(ctx, c.off, c.n, c.fua)
	}
	return d.Flush(ctx)
}

// recorder is a disk in memory that keeps what is done to it.
type recorder struct {
	disk *memory.Device
	made int // changes until there was a file system

	mu  sync.Mutex
	did []change
}

// length returns how many changes there are so far.
func (r *recorder) length() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.did)
}

func (r *recorder) do(ctx context.Context, c change) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	err := c.apply(ctx, r.disk)
	if err == nil {
		r.did = append(r.did, c)
	}
	return err
}

func (r *recorder) Size() int64 { return r.disk.Size() }
func (r *recorder) ReadAt(ctx context.Context, p []byte, off int64) error {
	return r.disk.ReadAt(ctx, p, off)
}
func (r *recorder) WriteAt(ctx context.Context, p []byte, off int64, fua bool) error {
	return r.do(ctx, change{kind: changeWrite, off: off, data: bytes.Clone(p), fua: fua})
}
func (r *recorder) Zero(ctx context.Context, off, n int64, _, fua bool) error {
	return r.do(ctx, change{kind: changeZero, off: off, n: n, fua: fua})
}
func (r *recorder) Trim(ctx context.Context, off, n int64, fua bool) error {
	return r.do(ctx, change{kind: changeTrim, off: off, n: n, fua: fua})
}
func (r *recorder) Flush(ctx context.Context) error { return r.do(ctx, change{kind: changeFlush}) }

// record has a guest make both file systems on disks in memory and work on them, and returns
// what it did to each.
func record(t *testing.T, types []string) map[string]*recorder {
	t.Helper()
	all := make(map[string]*recorder)
	script := ""
	for i, kind := range types {
		r := &recorder{disk: memory.New(replayBytes)}
		all[kind] = r
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		server := nbd.NewServer(nbd.Single{Export: nbd.Export{Name: kind, Device: r, MultiConn: true}}, nbd.Options{Logger: slog.New(slog.DiscardHandler)})
		served := make(chan struct{})
		go func() { defer close(served); _ = server.Serve(t.Context(), l) }()
		t.Cleanup(func() { server.Close(); <-served })
		script += fmt.Sprintf(`
nbd-client %s %d /dev/nbd%d -N %s -C 2 -b 4096
mkfs.%[4]s -q /dev/nbd%[3]d
mkdir -p /%[4]s
mount -t %[4]s -o discard /dev/nbd%[3]d /%[4]s
sync
echo "made %[4]s"
work /%[4]s &
workers="$workers $!"
`, guest.Host, l.Addr().(*net.TCPAddr).Port, i, kind)
	}
	g := boot(t, guest.Options{
		Processors: 4,
		Modules:    append([]string{"nbd"}, fileSystemModules...), Programs: append([]string{"nbd-client"}, fileSystemPrograms...),
		// What "sums" names was synced before it was named there, and is there after any loss
		// of power. What churns is not synced.
		Script: fmt.Sprintf(`
work() {
  mkdir $1/keep
  for i in $(seq 1 %d); do
    mkdir $1/churn
    for k in $(seq 1 8); do dd if=/dev/urandom of=$1/churn/$k bs=4k count=$((k * i %% 9 + 1)) 2>/dev/null; done
    mv $1/churn $1/old
    dd if=/dev/urandom of=$1/keep/$i bs=32k count=$((i %% 7 + 1)) conv=fsync 2>/dev/null
    (cd $1 && sha256sum keep/$i) >/tmp/sum${1#/}
    dd if=/tmp/sum${1#/} of=$1/sums oflag=append conv=notrunc,fsync 2>/dev/null
    if test $((i %% 4)) = 0; then truncate -s $((i * 1000)) $1/keep/holes; mv $1/keep/holes $1/holes$i; fi
    rm -r $1/old
  done
}
workers=
%s
for w in $workers; do wait $w; done
`, *replayFiles, script),
	})
	for _, kind := range types {
		await(t, g, "made "+kind+"\r\n")
		all[kind].made = all[kind].length()
	}
	succeed(t, g)
	return all
}

// loss is a loss of power: what was done before a change, but for some of what no flush
// covers.
type loss struct {
	at    int   // changes begun
	flush int   // those before are stable
	some  []int // of the others these were
}

// lose draws a loss of power after the first changes.
func lose(rng *rand.Rand, did []change, first int) loss {
	p := loss{at: first + rng.IntN(len(did)-first)}
	for i := range did[:p.at] {
		if did[i].kind == changeFlush {
			p.flush, p.some = i, nil
		} else if did[i].fua || rng.IntN(2) == 0 {
			p.some = append(p.some, i)
		}
	}
	return p
}

// replay does to a disk of plinth what was done, with losses of power, after each of which
// plinth is killed, and keeps a clone of the disk as it is then. It returns the clones.
func replay(t *testing.T, rng *rand.Rand, s *site, disk string, r *recorder) (*site, []string) {
	t.Helper()
	ctx, did := t.Context(), r.did
	s.command(t, "disk", "create", disk, fmt.Sprint(replayBytes))
	var points []loss
	for range *replayPoints {
		points = append(points, lose(rng, did, r.made))
	}
	slices.SortFunc(points, func(a, b loss) int { return a.flush - b.flush })
	model, clones, done := memory.New(replayBytes), []string(nil), 0
	for n, p := range points {
		c, err := client.Dial(ctx, "unix", s.socket, disk, client.Options{})
		if err != nil {
			t.Fatal(err)
		}
		todo := did[min(done, p.flush):p.flush]
		done = p.flush
		for _, part := range [][]change{todo, {{kind: changeFlush}}, pickChanges(did, p.some)} {
			for i := range part {
				for _, d := range []changeable{c, model} {
					if err := part[i].apply(ctx, d); err != nil {
						t.Fatal(err)
					}
				}
			}
		}
		s.kill()
		c.Close()
		s = s.again(t)
		same(t, s, disk, model)
		snap := fmt.Sprint("p", n)
		s.command(t, "snapshot", "create", disk, snap)
		clone := fmt.Sprint(disk, "-", n)
		s.command(t, "clone", disk+"@"+snap, clone)
		clones = append(clones, clone)
	}
	t.Logf("%s: %d changes replayed, %d of them until there was a file system, %d losses of power", disk, len(did), r.made, len(points))
	return s, clones
}

func pickChanges(did []change, some []int) (out []change) {
	for _, i := range some {
		out = append(out, did[i])
	}
	return out
}

// same compares a disk with what it should have.
func same(t *testing.T, s *site, disk string, model *memory.Device) {
	t.Helper()
	c, err := client.Dial(t.Context(), "unix", s.socket, disk, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	got, want := make([]byte, 1<<20), make([]byte, 1<<20)
	for off := int64(0); off < replayBytes; off += int64(len(got)) {
		if err := c.ReadAt(t.Context(), got, off); err != nil {
			t.Fatal(err)
		}
		if err := model.ReadAt(t.Context(), want, off); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Fatalf("%s is not as written in the MiB at %d", disk, off)
		}
	}
}

// What a guest's ext4 and xfs do to their disks is done to plinth's, with losses of power at
// random places: of what was written since the last flush any part is there. After each the
// disk is as written, the file system recovers and is sound, and has what was synced.
func TestGuestReplay(t *testing.T) {
	if *replayPoints == 0 {
		t.Skip("-replay-points says at how many places power is lost")
	}
	types := []string{"ext4", "xfs"}
	recorded := record(t, types)
	seed := *replaySeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	s := start(t, filepath.Join(tempDir(t), "data"), small...)
	script := ""
	for _, kind := range types {
		var clones []string
		s, clones = replay(t, rng, s, kind, recorded[kind])
		script += fmt.Sprintf("for c in %s; do check %s $c; done\n", strings.Join(clones, " "), kind)
	}
	options := map[string]string{"ext4": "", "xfs": "-o nouuid"}
	g := boot(t, guest.Options{
		Modules: append([]string{"nbd"}, fileSystemModules...), Programs: append([]string{"nbd-client"}, fileSystemPrograms...),
		Script: fmt.Sprintf(`
bad() { cat /tmp/found; exit 1; }
check() {
  nbd-client %s %s /dev/nbd0 -N $2 -b 4096 >/dev/null
  case $1 in
  ext4) mount -t ext4 %s /dev/nbd0 /mnt ;;
  xfs) mount -t xfs %s /dev/nbd0 /mnt ;;
  esac
  n=0
  if test -e /mnt/sums; then
    (cd /mnt && sha256sum -c sums >/dev/null)
    n=$(wc -l </mnt/sums)
  fi
  umount /mnt
  case $1 in
  ext4) e2fsck -fn /dev/nbd0 >/tmp/found 2>&1 || bad ;;
  xfs) xfs_repair -n /dev/nbd0 >/tmp/found 2>&1 || bad ;;
  esac
  nbd-client -d /dev/nbd0 >/dev/null
  echo "$2 has $n files that were synced"
}
%s
if dmesg | grep -iE 'EXT4-fs (error|warning)|XFS.*(corrupt|error)'; then exit 1; fi
`, guest.Host, s.port(t), options["ext4"], options["xfs"], script),
	})
	succeed(t, g)
	s.verify(t)
	s.stop(t)
}
