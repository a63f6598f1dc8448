package host_test

import (
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"plinth/flashcache"
	"plinth/internal/host"
	"plinth/internal/standalone"
)

// A cache is the host's from Open to Close, and told of in its status.
func TestFlashCacheIsOpenedAndClosed(t *testing.T) {
	opts := siteOptions(t)
	path := t.TempDir() + "/flash"
	opts.Host.FlashPath, opts.Host.FlashBytes = path, 40<<20
	for range 2 {
		s := openSite(t, opts)
		st, err := s.Host.Status(t.Context())
		s.ok(err)
		if f := st.Flash; f == nil || f.Path != path || f.CapacityBytes < 8<<20 || f.Failure != "" || len(st.Warnings) > 0 {
			t.Errorf("status: %+v, warnings %q", st.Flash, st.Warnings)
		}
		s.ok(s.Close())
	}
	opts.Host.FlashPath = t.TempDir()
	if _, err := standalone.Open(t.Context(), opts); !errors.Is(err, flashcache.ErrInvalid) {
		t.Errorf("a cache in a directory: %v", err)
	}
}

// A device that does not work costs no disk.
func TestDisksWithoutTheirFlashCache(t *testing.T) {
	opts := siteOptions(t)
	path := t.TempDir() + "/flash"
	opts.FS = errorfs.Wrap(vfs.Default, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind == errorfs.OpFileSync && op.Path == path {
			return errorfs.ErrInjected
		}
		return nil
	}))
	opts.Host.FlashPath, opts.Host.FlashBytes = path, 40<<20
	s := openSite(t, opts)
	s.write("vm", noise(1, 1<<20))
	st, err := s.Host.Status(t.Context())
	s.ok(err)
	if len(st.Warnings) != 1 || !strings.Contains(st.Warnings[0], "flash cache "+path+" is off") {
		t.Errorf("warnings: %q", st.Warnings)
	}
}

// What was read once is read from flash, after a restart too; a cache that is
// damaged or cut short costs nothing but reads of the spindles.
func TestReadsThroughFlash(t *testing.T) {
	opts := siteOptions(t)
	path := t.TempDir() + "/flash"
	opts.Host.FlashPath, opts.Host.FlashBytes, opts.Host.RAMCacheBytes = path, 40<<20, -1
	content := noise(1, 1<<20)
	const chunks = 1 << 20 / 4096
	s := openSite(t, opts)
	s.write("vm", content)
	s.ok(s.Host.Quiesce(t.Context()))
	// reads returns how many chunks of a whole read came from flash and from segments.
	reads := func() (flash, segments int64) {
		t.Helper()
		before := s.info("vm").Stats
		s.has("vm", content)
		after := s.info("vm").Stats
		return after.FlashReads - before.FlashReads, after.ChunkReads - before.ChunkReads
	}
	if flash, segments := reads(); flash != 0 || segments != chunks {
		t.Errorf("at first %d chunks are read from flash and %d from segments", flash, segments)
	}
	if flash, segments := reads(); flash != chunks || segments != 0 {
		t.Errorf("then %d chunks are read from flash and %d from segments", flash, segments)
	}
	restart := func(change func()) {
		t.Helper()
		s.ok(s.Close())
		change()
		s = openSite(t, opts)
		for deadline := time.Now().Add(30 * time.Second); s.flash().Loading; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("the cache is not loaded after 30 s")
			}
		}
	}
	restart(func() {})
	if flash, segments := reads(); flash != chunks || segments != 0 {
		t.Errorf("after a restart %d chunks are read from flash and %d from segments", flash, segments)
	}
	restart(func() {
		b, err := os.ReadFile(path)
		s.ok(err)
		for i := 1<<20 + 2000; i < 4<<20; i += 6000 {
			b[i] ^= 0x10
		}
		s.ok(os.WriteFile(path, b, 0o600))
	})
	flash, segments := reads()
	if flash+segments != chunks || segments < chunks/3 {
		t.Errorf("of a damaged cache %d chunks are read, and %d from segments", flash, segments)
	}
	restart(func() {})
	s.ok(os.Truncate(path, 1<<20))
	if flash, segments := reads(); flash+segments != chunks || s.flash().Failure == "" {
		t.Errorf("of a cut cache %d chunks are read, and %d from segments; it is %+v", flash, segments, s.flash())
	}
	restart(func() { s.ok(os.Remove(path)) })
	if flash, segments := reads(); flash != 0 || segments != chunks {
		t.Errorf("of a lost cache %d chunks are read, and %d from segments", flash, segments)
	}
}

// flash returns the status of the flash cache.
func (s *site) flash() *host.FlashStatus {
	s.Helper()
	st, err := s.Host.Status(s.Context())
	s.ok(err)
	return st.Flash
}
