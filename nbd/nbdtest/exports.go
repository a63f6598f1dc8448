package nbdtest

import (
	"context"
	"slices"
	"strings"
	"sync"
	"testing"

	"plinth/nbd"
)

// Exports is a fixed set of exports that knows who has one open.
type Exports struct {
	exports []nbd.Export

	mu   sync.Mutex
	open map[string]int
}

// NewExports returns a set whose default export (of the empty name) is the
// first.
func NewExports(exports ...nbd.Export) *Exports {
	return &Exports{exports: exports, open: map[string]int{}}
}

// List returns all of them by name.
func (x *Exports) List(context.Context) ([]nbd.ExportInfo, error) {
	var infos []nbd.ExportInfo
	for _, e := range x.exports {
		infos = append(infos, e.Info())
	}
	slices.SortFunc(infos, func(a, b nbd.ExportInfo) int { return strings.Compare(a.Name, b.Name) })
	return infos, nil
}

// Describe returns what is known of one.
func (x *Exports) Describe(_ context.Context, name string) (nbd.ExportInfo, error) {
	e, err := x.find(name)
	if err != nil {
		return nbd.ExportInfo{}, err
	}
	return e.Info(), nil
}

// Open counts the opener until its release.
func (x *Exports) Open(_ context.Context, name string) (nbd.Export, func(), error) {
	e, err := x.find(name)
	if err != nil {
		return nbd.Export{}, nil, err
	}
	x.count(e.Name, 1)
	return e, func() { x.count(e.Name, -1) }, nil
}

// CheckReleased fails the test if an export is still open.
func (x *Exports) CheckReleased(t testing.TB) {
	t.Helper()
	x.mu.Lock()
	defer x.mu.Unlock()
	for name, n := range x.open {
		if n != 0 {
			t.Errorf("export %q: opened %d times more than released", name, n)
		}
	}
}

func (x *Exports) count(name string, by int) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.open[name] += by
}

func (x *Exports) find(name string) (nbd.Export, error) {
	for _, e := range x.exports {
		if e.Name == name || name == "" {
			return e, nil
		}
	}
	return nbd.Export{}, nbd.ErrUnknownExport
}
