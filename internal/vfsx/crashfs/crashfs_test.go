package crashfs_test

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"plinth/internal/vfsx"
	"plinth/internal/vfsx/crashfs"
)

const category = vfs.WriteCategoryUnspecified

func seeded(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 0)) }

func TestSyncedStaysAndEachUnsyncedSectorIsKeptOrGoesBack(t *testing.T) {
	old, young := bytes.Repeat([]byte{1}, 8*crashfs.SectorBytes), bytes.Repeat([]byte{2}, 8*crashfs.SectorBytes)
	fs := crashfs.New()
	f := create(t, fs, "f")
	write(t, f, old, 0)
	ok(t, f.Sync())
	ok(t, vfsx.SyncDir(fs, "/"))
	write(t, f, young, 2*crashfs.SectorBytes) // the last two sectors are growth
	kept, lost, grown := 0, 0, 0
	for seed := range uint64(50) {
		got := read(t, fs.Crash(seeded(seed), 50), "f")
		if !bytes.Equal(got[:2*crashfs.SectorBytes], old[:2*crashfs.SectorBytes]) {
			t.Fatal("synced bytes changed")
		}
		if len(got) == 10*crashfs.SectorBytes {
			grown++
		}
		for s := 2; s < 8; s++ {
			switch sector := got[s*crashfs.SectorBytes : (s+1)*crashfs.SectorBytes]; {
			case bytes.Equal(sector, old[:crashfs.SectorBytes]):
				lost++
			case bytes.Equal(sector, young[:crashfs.SectorBytes]):
				kept++
			default:
				t.Fatalf("seed %d: sector %d is torn", seed, s)
			}
		}
	}
	if kept < 50 || lost < 50 || grown < 10 || grown > 40 {
		t.Errorf("of 300 sectors %d kept, %d lost; grown %d times of 50", kept, lost, grown)
	}
	if got := read(t, fs.Crash(seeded(0), 0), "f"); !bytes.Equal(got, old) {
		t.Error("keeping nothing, the file is not as synced")
	}
	if got := read(t, fs.Crash(seeded(0), 100), "f"); !bytes.Equal(got[2*crashfs.SectorBytes:], young) {
		t.Error("keeping all, the file is not as written")
	}
}

func TestNamesAreStableOnceTheirDirectoryIsSynced(t *testing.T) {
	fs := crashfs.New()
	ok(t, fs.MkdirAll("d/e", 0o755))
	ok(t, vfsx.SyncDir(fs, "/"))
	ok(t, vfsx.SyncDir(fs, "d"))
	write(t, create(t, fs, "d/a"), []byte("a"), 0)
	ok(t, vfsx.SyncDir(fs, "d"))
	ok(t, fs.Rename("d/a", "d/b"))
	create(t, fs, "d/c")
	for seed := range uint64(50) {
		after := fs.Crash(seeded(seed), 50)
		_, errA := after.Stat("d/a")
		_, errB := after.Stat("d/b")
		if (errA == nil) == (errB == nil) {
			t.Fatalf("seed %d: a rename arrives in part: %v, %v", seed, errA, errB)
		}
	}
	after := fs.Crash(seeded(0), 0)
	if _, err := after.Stat("d/c"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("an unsynced name: %v", err)
	}
	if _, err := after.Stat("d/e"); err != nil {
		t.Error(err)
	}
}

func TestKillKeepsAllAndEndsHandlesAndLocks(t *testing.T) {
	fs := crashfs.New()
	f := create(t, fs, "f")
	write(t, f, []byte("content"), 0)
	held, err := fs.Lock("LOCK")
	ok(t, err)
	if _, err := fs.Lock("LOCK"); err == nil {
		t.Error("locked twice")
	}
	after := fs.Kill()
	if got := read(t, after, "f"); string(got) != "content" {
		t.Errorf("killed: %q", got)
	}
	if _, err := f.WriteAt([]byte("x"), 0); !errors.Is(err, crashfs.ErrCrashed) {
		t.Errorf("write to a dead handle: %v", err)
	}
	if _, err := fs.Open("f"); !errors.Is(err, crashfs.ErrCrashed) {
		t.Errorf("open on a dead file system: %v", err)
	}
	again, err := after.Lock("LOCK")
	ok(t, err)
	ok(t, again.Close())
	ok(t, held.Close())
	// What was not synced is still not.
	if _, err := after.Crash(seeded(0), 0).Stat("f"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a kill makes nothing durable: %v", err)
	}
}

func TestLimitTearsTheWriteThatExceedsIt(t *testing.T) {
	fs := crashfs.New()
	f := create(t, fs, "f")
	fs.Limit(1000 + crashfs.OpCost)
	write(t, f, make([]byte, 700), 0)
	ok(t, f.Sync())
	n, err := f.WriteAt(bytes.Repeat([]byte{7}, 700), 700)
	if n != 300 || !errors.Is(err, crashfs.ErrCrashed) || !fs.Crashed() {
		t.Fatalf("wrote %d of the last 300: %v", n, err)
	}
	if err := f.Sync(); !errors.Is(err, crashfs.ErrCrashed) {
		t.Errorf("sync after the crash: %v", err)
	}
	if got := read(t, fs.Kill(), "f"); len(got) != 1000 || got[999] != 7 {
		t.Errorf("%d bytes left", len(got))
	}
}

func create(t *testing.T, fs vfs.FS, name string) vfs.File {
	t.Helper()
	f, err := fs.Create(name, category)
	ok(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

func write(t *testing.T, f vfs.File, p []byte, off int64) {
	t.Helper()
	_, err := f.WriteAt(p, off)
	ok(t, err)
}

func read(t *testing.T, fs vfs.FS, name string) []byte {
	t.Helper()
	f, err := fs.Open(name)
	ok(t, err)
	defer f.Close()
	b, err := io.ReadAll(f)
	ok(t, err)
	return b
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestOrderedNamesArriveInOrder(t *testing.T) {
	fs := crashfs.New()
	fs.Order("db")
	for _, dir := range []string{"x/db/sub", "y"} {
		ok(t, fs.MkdirAll(dir, 0o755))
		for name := dir; name != "/" && name != "."; name = fs.PathDir(name) {
			ok(t, vfsx.SyncDir(fs, fs.PathDir(name)))
		}
		for _, name := range []string{"a", "b", "c", "d"} {
			create(t, fs, dir+"/"+name)
		}
	}
	mixed := 0
	for seed := range uint64(50) {
		after := fs.Crash(seeded(seed), 50)
		for _, dir := range []string{"x/db/sub", "y"} {
			names, err := after.List(dir)
			ok(t, err)
			slices.Sort(names)
			if inOrder := slices.Equal(names, []string{"a", "b", "c", "d"}[:len(names)]); !inOrder && dir == "y" {
				mixed++
			} else if !inOrder {
				t.Errorf("seed %d: %s has %v", seed, dir, names)
			}
		}
	}
	if mixed == 0 {
		t.Error("elsewhere changes never arrive out of order")
	}
}

// What a crash leaves shares bytes with what it left before, until one is written to.
func TestOutcomesOfOneCrashAreApart(t *testing.T) {
	old, young := bytes.Repeat([]byte{1}, 8*crashfs.SectorBytes), bytes.Repeat([]byte{2}, 3*crashfs.SectorBytes)
	outcomes := map[string]func(*crashfs.FS) *crashfs.FS{
		"power":   func(fs *crashfs.FS) *crashfs.FS { return fs.Crash(seeded(0), 100) },
		"process": (*crashfs.FS).Kill,
	}
	for name, end := range outcomes {
		t.Run(name, func(t *testing.T) {
			fs := crashfs.New()
			f := create(t, fs, "f")
			write(t, f, old, 0)
			ok(t, f.Sync())
			ok(t, vfsx.SyncDir(fs, "/"))
			first := end(fs)
			second, third := end(first), end(first)
			for i, tree := range []*crashfs.FS{second, end(fs)} {
				f, err := tree.OpenReadWrite("f", category)
				ok(t, err)
				write(t, f, young, int64(i)*7*crashfs.SectorBytes) // the second time it grows
				want := append(slices.Clone(old[:i*7*crashfs.SectorBytes]), young...)
				if i == 0 {
					want = append(want, old[len(young):]...)
				}
				if got := read(t, tree, "f"); !bytes.Equal(got, want) {
					t.Errorf("outcome %d does not read as it was written", i)
				}
			}
			for _, tree := range []*crashfs.FS{third, end(first), end(fs)} {
				if got := read(t, tree, "f"); !bytes.Equal(got, old) {
					t.Error("a write to one outcome changed another")
				}
			}
		})
	}
}

// TestRandomWrites compares files of some pages, with holes, zeros and losses, with plain
// bytes.
func TestRandomWrites(t *testing.T) {
	const most = 100 << 10
	for seed := range uint64(20) {
		rng := seeded(seed)
		fs := crashfs.New()
		f := create(t, fs, "f")
		ok(t, vfsx.SyncDir(fs, "/"))
		var now, stable []byte
		for range 200 {
			switch n := rng.IntN(20); n {
			case 0:
				ok(t, f.Sync())
				stable = bytes.Clone(now)
			case 1, 2, 3:
				keep := []int{0, 100, 50}[n-1]
				if n == 3 && rng.IntN(2) == 0 {
					fs, keep = fs.Kill(), 100
				} else {
					fs = fs.Crash(rng, keep)
					got := read(t, fs, "f")
					if keep == 0 {
						now = bytes.Clone(stable)
					} else if keep == 50 {
						now = mixed(t, got, now, stable)
					}
					stable = bytes.Clone(now)
				}
				if got := read(t, fs, "f"); !bytes.Equal(got, now) {
					t.Fatalf("seed %d: after a loss of which %d %% stay, the file differs", seed, keep)
				}
				var err error
				f, err = fs.OpenReadWrite("f", category)
				ok(t, err)
			default:
				p := bytes.Repeat([]byte{byte(max(0, rng.IntN(256)-64))}, 1+rng.IntN(30<<10))
				off := rng.IntN(most)
				if rng.IntN(2) == 0 {
					off = min(len(now), most)
				}
				write(t, f, p, int64(off))
				if end := off + len(p); end > len(now) {
					now = append(now, make([]byte, end-len(now))...)
				}
				copy(now[off:], p)
			}
		}
	}
}

// mixed wants each sector as in one of two, behind the end of which are zeros, and returns got.
func mixed(t *testing.T, got, now, stable []byte) []byte {
	t.Helper()
	if len(got) != len(now) && len(got) != len(stable) {
		t.Fatalf("%d bytes, of %d and %d", len(got), len(now), len(stable))
	}
	padded := append(bytes.Clone(stable), make([]byte, max(0, len(got)-len(stable)))...)
	for s := 0; s < len(got); s += crashfs.SectorBytes {
		end := min(len(got), s+crashfs.SectorBytes)
		if !bytes.Equal(got[s:end], now[s:end]) && !bytes.Equal(got[s:end], padded[s:end]) {
			t.Fatalf("the sector at %d is of neither", s)
		}
	}
	return got
}
