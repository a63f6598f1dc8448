package host_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"plinth/flashcache"
	"plinth/internal/standalone"
)

// A cache is the host's from Open to Close, and told of in its status.
func TestFlashCacheIsOpenedAndClosed(t *testing.T) {
	opts := siteOptions(t)
	path := t.TempDir() + "/flash"
	opts.Host.FlashPath, opts.Host.FlashBytes = path, 16<<20
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
	opts.Host.FlashPath, opts.Host.FlashBytes = path, 16<<20
	s := openSite(t, opts)
	s.write("vm", noise(1, 1<<20))
	st, err := s.Host.Status(t.Context())
	s.ok(err)
	if len(st.Warnings) != 1 || !strings.Contains(st.Warnings[0], "flash cache "+path+" is off") {
		t.Errorf("warnings: %q", st.Warnings)
	}
}
