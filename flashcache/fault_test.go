package flashcache

import (
	"errors"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"golang.org/x/sys/unix"

	"plinth/internal/vfsx/crashfs"
)

// A device that fails turns the cache off, says so once, and is used again after
// the next Open.
func TestDeviceErrorsTurnTheCacheOff(t *testing.T) {
	for name, kind := range map[string]errorfs.OpKind{
		"read": errorfs.OpFileReadAt, "write": errorfs.OpFileWriteAt, "sync": errorfs.OpFileSyncData,
	} {
		for _, cause := range []error{unix.EIO, unix.ENOSPC, unix.ENODEV} {
			t.Run(name+" "+cause.Error(), func(t *testing.T) {
				var broken atomic.Bool
				var log logged
				opts := tiny(errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
					if broken.Load() && op.Kind == kind {
						return cause
					}
					return nil
				})))
				opts.Logger = log.logger()
				c := mustOpen(t, opts)
				for i := range 400 {
					c.mustPut(t, i)
				}
				broken.Store(true)
				await(t, "failure", func() bool {
					for i := range 400 {
						c.Put(fingerprint(1000+i), sealed(1000+i))
						c.got(t, i)
					}
					return c.Stats().Failure != ""
				})
				for i := range 400 {
					if c.got(t, i) || c.Contains(fingerprint(i)) {
						t.Fatalf("chunk %d is there without a device", i)
					}
				}
				c.Discard(fingerprint(1))
				if err := c.Close(); !errors.Is(err, cause) {
					t.Errorf("Close: %v, want %v", err, cause)
				}
				if lines := log.lines(); len(lines) != 1 || !strings.Contains(lines[0], "cache is off") {
					t.Errorf("the log says %q", lines)
				}
				broken.Store(false)
				c = mustOpen(t, opts)
				found := 0
				for i := range 400 {
					if c.got(t, i) {
						found++
					}
				}
				if found < 200 {
					t.Errorf("%d of 400 chunks are there with the device", found)
				}
			})
		}
	}
}

// A failing device is an error of Open, or turns the cache off while it is loaded.
func TestDeviceFailsAtOpen(t *testing.T) {
	mem := vfs.NewMem()
	c := mustOpen(t, tiny(mem))
	for i := range 400 {
		c.mustPut(t, i)
	}
	ok(t, c.Close())
	for n := range int32(12) {
		var log logged
		opts := tiny(errorfs.Wrap(mem, errorfs.OnIndex(n)))
		opts.Logger = log.logger()
		c, err := Open("cache", opts)
		if err != nil {
			if !errors.Is(err, errorfs.ErrInjected) {
				t.Errorf("operation %d fails: %v", n, err)
			}
			continue
		}
		await(t, "loading", func() bool { return !c.Stats().Loading })
		if s := c.Stats(); s.Failure == "" || c.Contains(fingerprint(1)) {
			t.Errorf("operation %d fails, and stats are %+v", n, s)
		}
		c.Close()
	}
}

// A file that was cut, or that is another's, or not a file.
func TestFiles(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "cache")
	opts := tiny(nil)
	open := func() *Cache {
		t.Helper()
		c, err := Open(path, opts)
		ok(t, err)
		await(t, "loading", func() bool { return !c.Stats().Loading })
		return c
	}
	c := open()
	if _, err := Open(path, opts); !errors.Is(err, ErrInUse) {
		t.Errorf("a second Open: %v", err)
	}
	for i := range 2000 {
		c.mustPut(t, i)
	}
	info, err := os.Stat(path)
	ok(t, err)
	if info.Size() != opts.Size || info.Sys().(*unixStat).Blocks*512 < opts.Size {
		t.Errorf("the file has %d bytes in %d blocks", info.Size(), info.Sys().(*unixStat).Blocks)
	}
	await(t, "what is full to be written", c.settled)
	ok(t, os.Truncate(path, dataStart+20*testRegion))
	await(t, "failure", func() bool {
		for i := range 2000 {
			c.got(t, i)
		}
		return c.Stats().Failure != ""
	})
	c.Close()

	opts.Size = 0 // as it is
	c = open()
	found := 0
	for i := range 2000 {
		if c.got(t, i) {
			found++
		}
	}
	if s := c.Stats(); found == 0 || found > 1600 || s.CapacityBytes != testRegions*testRegion {
		t.Errorf("%d chunks are found; stats are %+v", found, s)
	}
	ok(t, c.Close())

	for name, content := range map[string]string{"mine": "my data", "behind": strings.Repeat("\x00", 70000) + "my data"} {
		path := filepath.Join(dir, name)
		ok(t, os.WriteFile(path, []byte(content), 0o600))
		if _, err := Open(path, tiny(nil)); !errors.Is(err, ErrForeign) {
			t.Errorf("%s: %v, want ErrForeign", name, err)
		}
		if got, err := os.ReadFile(path); err != nil || string(got) != content {
			t.Errorf("%s was changed", name)
		}
	}
	for name, change := range map[string]func(){
		"newer": func() { flip(t, path, 8, 3) }, "feature": func() { flip(t, path, 8, 3); flip(t, path, 10, 1) },
	} {
		change()
		if _, err := Open(path, opts); !errors.Is(err, ErrVersion) {
			t.Errorf("%s: %v, want ErrVersion", name, err)
		}
	}
	if _, err := Open(dir, tiny(nil)); !errors.Is(err, ErrInvalid) {
		t.Errorf("a directory: %v", err)
	}
	if _, err := Open(filepath.Join(dir, "new"), Options{}); !errors.Is(err, ErrInvalid) {
		t.Errorf("a file without a size: %v", err)
	}
	if _, err := Open(filepath.Join(dir, "none", "cache"), tiny(nil)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no directory: %v", err)
	}
}

// Bits that flip on the device: what does not verify is discarded and stays away.
func TestFlippedBits(t *testing.T) {
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 5))
		mem := vfs.NewMem()
		c := mustOpen(t, tiny(mem))
		for i := range 3000 {
			c.mustPut(t, i)
		}
		flips := func() {
			f, err := mem.OpenReadWrite("cache", vfs.WriteCategoryUnspecified)
			ok(t, err)
			for range 100 {
				off, b := dataStart+rng.Int64N(testRegions*testRegion), make([]byte, 1)
				_, err := f.ReadAt(b, off)
				ok(t, err)
				b[0] ^= 1 << rng.IntN(8)
				_, err = f.WriteAt(b, off)
				ok(t, err)
			}
			ok(t, f.Close())
		}
		flips()
		bad := discardBad(t, c, 3000)
		ok(t, c.Close())
		flips()
		c = mustOpen(t, tiny(mem))
		for i := 3000; i < 9000; i++ {
			c.mustPut(t, i)
		}
		bad += discardBad(t, c, 9000)
		if s := c.Stats(); bad+int(s.Damaged) < 20 || s.Failure != "" {
			t.Errorf("seed %d: %d bad chunks, stats are %+v", seed, bad, s)
		}
		ok(t, c.Close())
	}
}

// discardBad gets all chunks and discards those that do not verify, as a caller
// does. It returns how many.
func discardBad(t *testing.T, c *Cache, chunks int) (bad int) {
	t.Helper()
	for i := range chunks {
		p, ok := c.Get(fingerprint(i), nil)
		if ok && string(p) != string(sealed(i)) {
			bad++
			c.Discard(fingerprint(i))
			if c.Contains(fingerprint(i)) {
				t.Fatalf("chunk %d stays", i)
			}
		}
	}
	return bad
}

// Kills and losses of power at any instant: after a kill nothing is bad and what
// was written is there; after a loss of power the cache opens, and what is bad is
// found by verifying.
func TestCrashLeavesACache(t *testing.T) {
	back, bad := 0, 0
	for seed := range uint64(60) {
		rng := rand.New(rand.NewPCG(seed, 6))
		fs := crashfs.New()
		opts := tiny(fs)
		c := mustOpen(t, opts)
		budget := rng.Int64N(4 << 20)
		fs.Limit(budget)
		puts := 0
		for ; c.Stats().Failure == "" && puts < 20000; puts++ {
			c.Put(fingerprint(puts), sealed(puts))
		}
		written := c.Stats().UsedBytes
		power := seed%2 == 0
		after := fs.Kill()
		if power {
			after = fs.Crash(rng, rng.IntN(101))
		}
		c.Close()

		opts.FS = after
		c = mustOpen(t, opts)
		wrong, there := discardBad(t, c, puts), 0
		for i := range puts {
			if c.got(t, i) {
				there++
			}
		}
		if !power && (wrong > 0 || int64(there)*600 < written-2*testRegion) {
			t.Errorf("seed %d: killed with %d bytes written, %d chunks are there and %d wrong", seed, written, there, wrong)
		}
		for i := range 500 { // it works
			c.mustPut(t, 30000+i)
			if !c.got(t, 30000+i) {
				t.Fatalf("seed %d: a new chunk is not there", seed)
			}
		}
		ok(t, c.Close())
		back, bad = back+there, bad+wrong
		fs.Drop()
	}
	if back == 0 {
		t.Error("nothing was ever there after a crash")
	}
	t.Logf("%d chunks were there after crashes, %d more did not verify", back, bad)
}

type unixStat = syscall.Stat_t

// flip sets a byte of the superblock and its checksum.
func flip(t *testing.T, path string, at int, value byte) {
	t.Helper()
	b, err := os.ReadFile(path)
	ok(t, err)
	b[at] = value
	le.PutUint32(b[124:], crc32.Checksum(b[:124], castagnoli))
	ok(t, os.WriteFile(path, b, 0o600))
}
