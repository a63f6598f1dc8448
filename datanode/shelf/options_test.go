package shelf

import (
	"errors"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

func TestSizes(t *testing.T) {
	const gib = 1 << 30
	for _, c := range []struct {
		name   string
		opts   Options
		drives []drive
		want   superblock // no spindles: ErrTooLarge
	}{
		{"endless", Options{}, []drive{{available: 1<<63 - 1, spindles: 12}},
			superblock{spindles: 12, logBytes: 4 * gib, spindleBytes: 64 * gib}},
		{"a laptop", Options{}, []drive{{available: 120 * gib, spindles: 12}},
			superblock{spindles: 12, logBytes: 4 * gib, spindleBytes: 7 * gib}},
		{"a small disk", Options{Spindles: 3}, []drive{{available: 10 * gib, spindles: 3}},
			superblock{spindles: 3, logBytes: gib, spindleBytes: wholeMiB(7 * gib / 3)}},
		{"mounted drives", Options{Spindles: 4}, []drive{{available: 100 * gib}, {available: 40 * gib, spindles: 2}, {available: 20 * gib, spindles: 2}},
			superblock{spindles: 4, logBytes: 4 * gib, spindleBytes: 7 * gib}},
		{"nearly nothing", Options{}, []drive{{available: 100 << 20, spindles: 12}}, superblock{}},
		{"chosen and fitting", Options{Spindles: 2, LogBytes: gib, SpindleBytes: 4 * gib}, []drive{{available: 9 * gib, spindles: 2}},
			superblock{spindles: 2, logBytes: gib, spindleBytes: 4 * gib}},
		{"a byte too many", Options{Spindles: 2, LogBytes: gib, SpindleBytes: 4 * gib}, []drive{{available: 9*gib - 1, spindles: 2}}, superblock{}},
		{"one drive too small", Options{Spindles: 2, SpindleBytes: 4 * gib},
			[]drive{{available: 99 * gib, spindles: 1}, {available: 4*gib - 1, spindles: 1}}, superblock{}},
		{"more than can be counted", Options{SpindleBytes: 1 << 62}, []drive{{available: 1<<63 - 1, spindles: 12}}, superblock{}},
	} {
		got, err := c.opts.sized(c.drives)
		if c.want.spindles == 0 {
			if !errors.Is(err, ErrTooLarge) || !strings.Contains(err.Error(), "choose smaller") {
				t.Errorf("%s: %+v, %v", c.name, got, err)
			}
		} else if err != nil || got != c.want {
			t.Errorf("%s: got %+v, %v; want %+v", c.name, got, err, c.want)
		}
	}
}

func TestOptionsAreChecked(t *testing.T) {
	good := Options{PoolID: [16]byte{1}}
	if err := good.Validate(); err != nil {
		t.Error(err)
	}
	for name, change := range map[string]func(*Options){
		"no pool":          func(o *Options) { o.PoolID = [16]byte{} },
		"spindles":         func(o *Options) { o.Spindles = -1 },
		"many spindles":    func(o *Options) { o.Spindles = 1025 },
		"a small log":      func(o *Options) { o.LogBytes = 1 },
		"a negative log":   func(o *Options) { o.LogBytes = -1 },
		"small spindles":   func(o *Options) { o.SpindleBytes = 1 },
		"a negative cache": func(o *Options) { o.IndexCacheBytes = -1 },
	} {
		bad := good
		change(&bad)
		if bad.Validate() == nil {
			t.Errorf("%s: valid", name)
		}
	}
}

func TestLeftovers(t *testing.T) {
	for _, c := range []struct {
		name   string
		files  string // with a directory for each that ends in /
		clears string
		ok     bool
	}{
		{"nothing", "", "", true},
		{"mounted drives", "spindle-00/ spindle-01/ spindle-01/lost+found/ lost+found/", "", true},
		{"a used drive", "spindle-00/ spindle-00/slab", "", false},
		{"somebody's files", "letters", "", false},
		{"a node", "node LOCK log/ index/", "", false},
		{"a node without its superblock", "LOCK log/ index/", "", false},
		{"an interrupted create", "LOCK creating log/ log/1 spindle-00/ spindle-00/slab node.tmp", "log node.tmp spindle-00", true},
		{"an interrupted create and a letter", "creating log/ letters", "", false},
		{"a create that had ended", "creating node log/", "", false},
	} {
		p := place{vfs.NewMem(), "/data"}
		if c.files != "" {
			populate(t, p, c.files)
		}
		left, err := p.leftovers()
		if c.ok != (err == nil) || err != nil && !errors.Is(err, ErrExists) || strings.Join(left, " ") != c.clears {
			t.Errorf("%s: clears %v, %v", c.name, left, err)
		}
		for _, name := range left {
			if err := p.clear(name); err != nil {
				t.Errorf("%s: %v", c.name, err)
			}
		}
		if left, err := p.leftovers(); c.clears != "" && (err != nil || strings.Contains(strings.Join(left, " "), "node.tmp")) {
			t.Errorf("%s: after clearing %v, %v", c.name, left, err)
		}
	}
}

// populate makes files, and directories where a name ends in a slash.
func populate(t *testing.T, p place, names string) {
	t.Helper()
	for _, name := range append([]string{"/"}, strings.Fields(names)...) {
		if strings.HasSuffix(name, "/") {
			if err := p.fs.MkdirAll(p.path(name), 0o700); err != nil {
				t.Fatal(err)
			}
			continue
		}
		f, err := p.fs.Create(p.path(name), vfs.WriteCategoryUnspecified)
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
