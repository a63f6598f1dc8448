package nbd_test

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"plinth/nbd"
	"plinth/nbd/client"
	"plinth/nbd/internal/wire"
	"plinth/nbd/memory"
	"plinth/nbd/nbdtest"
)

// painted is a device whose status is a byte per unit of 512 bytes: bit 0 a
// hole, bit 1 zeros, bit 2 dirty. It tells a unit at a time, and stops early
// where cut says.
type painted struct {
	nbd.Device // none: nothing is read
	units      []byte
	bitmap     string
	cut        func(dirty bool) int64 // units told at most
	fail       error
}

const unitBytes = 512

func (p *painted) Size() int64    { return int64(len(p.units)) * unitBytes }
func (p *painted) Bitmap() string { return p.bitmap }

func (p *painted) walk(off, n int64, dirty bool, each func(n int64, unit byte) bool) error {
	most := int64(1 << 40)
	if p.cut != nil {
		most = p.cut(dirty)
	}
	for end := off + n; off < end && most > 0 && p.fail == nil; most-- {
		k := unitBytes - off%unitBytes
		if !each(k, p.units[off/unitBytes]) {
			return nil
		}
		off += k
	}
	return p.fail
}

func (p *painted) Extents(_ context.Context, off, n int64, each func(nbd.Extent) bool) error {
	return p.walk(off, n, false, func(n int64, u byte) bool { return each(nbd.Extent{N: n, Hole: u&1 != 0, Zero: u&2 != 0}) })
}

func (p *painted) Changes(_ context.Context, off, n int64, each func(n int64, dirty bool) bool) error {
	return p.walk(off, n, true, func(n int64, u byte) bool { return each(n, u&4 != 0) })
}

const dirtyMon = wire.ContextDirtyPrefix + "mon"

var everyContext = []string{wire.ContextAllocation, wire.ContextDepth, dirtyMon}

// want is a context's status of a unit.
func (p *painted) want(context string, u byte) uint64 {
	switch context {
	case wire.ContextAllocation:
		return uint64(u & 3)
	case wire.ContextDepth:
		return uint64(1 - u&1)
	}
	return uint64(u >> 2 & 1)
}

// Contexts are an export's own: only one with a bitmap has a third.
func TestBitmapIsOffered(t *testing.T) {
	long := strings.Repeat("x", nbd.BitmapBytesMax+1)
	h := serve(t, "unix", nbd.Options{}, nbd.Export{Name: "plain", Device: slow{&painted{units: make([]byte, 8)}}},
		nbd.Export{Name: "pair", Device: &painted{units: make([]byte, 8), bitmap: "mon"}, ReadOnly: true},
		nbd.Export{Name: "none", Device: &painted{units: make([]byte, 8)}, ReadOnly: true},
		nbd.Export{Name: "long", Device: &painted{units: make([]byte, 8), bitmap: long}, ReadOnly: true})
	r := h.raw(t)
	r.Greet(fixed)
	r.Option(wire.OptStructuredReply, nil)
	r.LastReply(wire.OptStructuredReply)
	const list, set = wire.OptListMetaContext, wire.OptSetMetaContext
	for _, test := range []struct {
		opt     uint32
		export  string
		queries []string
		want    []string
	}{
		{list, "pair", nil, everyContext},
		{list, "pair", []string{"qemu:"}, everyContext[1:]},
		{list, "pair", []string{"qemu:dirty-bitmap:"}, everyContext[2:]},
		{list, "pair", []string{"qemu:dirty-bitmap:", "base:"}, []string{everyContext[0], everyContext[2]}},
		{list, "pair", []string{"qemu:dirty-bitmap:mo"}, nil},
		{list, "pair", []string{dirtyMon}, everyContext[2:]},
		{set, "pair", []string{"qemu:dirty-bitmap:"}, nil},
		{set, "pair", []string{"qemu:"}, nil},
		{set, "pair", []string{"qemu:dirty-bitmap:tue"}, nil},
		{set, "pair", []string{dirtyMon, "base:allocation"}, []string{everyContext[0], everyContext[2]}},
		{set, "plain", []string{dirtyMon}, nil},
		{list, "plain", nil, everyContext[:2]},
		{list, "none", nil, everyContext[:2]},
		{list, "long", nil, everyContext[:2]},
		{set, "long", []string{wire.ContextDirtyPrefix + long}, nil},
	} {
		r.Option(test.opt, nbdtest.MetaData(t, test.export, test.queries...))
		var got []string
		for {
			typ, payload := r.OptionReply(test.opt)
			if typ == wire.RepAck {
				break
			}
			if typ != wire.RepMetaContext || (be32(payload) == 0) != (test.opt == list) {
				t.Fatalf("option %d, %s, %q: reply %#x %q", test.opt, test.export, test.queries, typ, payload)
			}
			got = append(got, string(payload[4:]))
		}
		if !slices.Equal(got, test.want) {
			t.Errorf("option %d, %s, %q: %q, want %q", test.opt, test.export, test.queries, got, test.want)
		}
	}
}

// Whatever is asked in whatever contexts, each answer says of each byte what the
// device does, neighbours differ, and all cover the same length.
func TestStatusAgainstModel(t *testing.T) {
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 1))
	p := &painted{units: make([]byte, 3000), bitmap: "mon"}
	for i := 0; i < len(p.units); {
		for k, u := 1+rng.IntN(40), byte(rng.IntN(8)); k > 0 && i < len(p.units); i, k = i+1, k-1 {
			p.units[i] = u
		}
	}
	h := serve(t, "unix", nbd.Options{}, nbd.Export{Name: "pair", Device: p, ReadOnly: true})
	for _, form := range []client.Form{client.Structured, client.Extended} {
		for range 100 {
			var contexts []string
			for _, i := range rng.Perm(3)[:1+rng.IntN(3)] {
				contexts = append(contexts, everyContext[i])
			}
			c := h.openAs(t, "pair", client.Options{Form: form, Contexts: contexts})
			off := rng.Int64N(p.Size())
			n := 1 + rng.Int64N(p.Size()-off)
			p.cut = nil
			if rng.IntN(2) == 0 {
				k := [2]int64{1 + rng.Int64N(3000), 1 + rng.Int64N(3000)}
				p.cut = func(dirty bool) int64 {
					if dirty {
						return k[1]
					}
					return k[0]
				}
			}
			one := rng.IntN(4) == 0
			var only []string
			if form == client.Extended && rng.IntN(2) == 0 {
				only = contexts[:1+rng.IntN(len(contexts))]
			}
			statuses, err := c.BlockStatus(t.Context(), off, n, one, only...)
			if err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			if only == nil {
				only = contexts
			}
			if len(statuses) != len(only) {
				t.Fatalf("seed %d: %d contexts answer, want %q", seed, len(statuses), only)
			}
			total := sum(statuses[0].Runs)
			for _, s := range statuses {
				if got := sum(s.Runs); got != total || got > uint64(n) || one && len(s.Runs) != 1 {
					t.Errorf("seed %d: %s covers %d bytes of %d in %d runs, another %d", seed, s.Context, got, n, len(s.Runs), total)
				}
				checkRuns(t, p, seed, off, s)
			}
			if p.cut == nil && !one && total != uint64(n) && len(statuses[0].Runs) < 4096 {
				t.Errorf("seed %d: %d bytes of %d", seed, total, n)
			}
			c.Close()
		}
	}
}

func sum(runs []client.Run) (n uint64) {
	for _, r := range runs {
		n += r.N
	}
	return n
}

func checkRuns(t *testing.T, p *painted, seed uint64, off int64, s client.Status) {
	t.Helper()
	for i, r := range s.Runs {
		if i > 0 && s.Runs[i-1].Status == r.Status {
			t.Errorf("seed %d: %s: neighbours are alike", seed, s.Context)
		}
		end := off + int64(r.N)
		for ; off < end; off = min(end, off+unitBytes-off%unitBytes) {
			if want := p.want(s.Context, p.units[off/unitBytes]); r.Status != want {
				t.Fatalf("seed %d: %s at %d: %d, want %d", seed, s.Context, off, r.Status, want)
			}
		}
	}
}

func TestChangesConformance(t *testing.T) {
	dirty := [][2]int64{{0, 1}, {4096, 65536}, {1 << 20, 3}, {mib + 77, 1000}, {8*mib - 5, 5}}
	h := serve(t, "tcp", nbd.Options{}, nbd.Export{Name: "pair", Device: &nbdtest.Changed{Device: memory.New(8 * mib), Name: "a.b", Dirty: dirty}, ReadOnly: true})
	nbdtest.RunChanges(t, nbdtest.ChangesTarget{Dial: h.dial, Export: "pair", Bitmap: "a.b", Dirty: dirty})
}

// The bitmap as our client tells it, and what a device that fails or tells
// nothing leaves of a request.
func TestChanges(t *testing.T) {
	p := &painted{units: bytes.Repeat([]byte{4, 4, 0, 4, 5, 5, 1, 0}, 2000), bitmap: "mon"}
	h := serve(t, "unix", nbd.Options{}, nbd.Export{Name: "pair", Device: p, ReadOnly: true}, nbd.Export{Name: "plain", Device: slow{&painted{units: make([]byte, 8)}}})
	for _, form := range []client.Form{client.Structured, client.Extended} {
		c := h.openAs(t, "pair", client.Options{Form: form, Contexts: everyContext})
		if got := c.Bitmap(); got != "mon" {
			t.Errorf("bitmap %q", got)
		}
		var got []byte
		err := c.Changes(t.Context(), 512, p.Size()-512, func(n int64, dirty bool) bool {
			for ; n > 0; n -= unitBytes {
				got = append(got, map[bool]byte{true: 4}[dirty])
			}
			return true
		})
		want := bytes.Clone(p.units[1:])
		for i := range want {
			want[i] &= 4
		}
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("form %d: changes of %d units differ from those of %d: %v", form, len(got), len(want), err)
		}
		if s, err := c.BlockStatus(t.Context(), 0, p.Size(), true); err != nil || len(s) != 3 || sum(s[2].Runs) != 1024 {
			t.Errorf("form %d: one run of each: %+v, %v", form, s, err)
		}
		for _, cut := range []func(bool) int64{
			func(bool) int64 { return 0 }, func(dirty bool) int64 { return map[bool]int64{false: 9}[dirty] },
			func(dirty bool) int64 { return map[bool]int64{true: 9}[dirty] },
		} {
			p.cut = cut
			if s, err := c.BlockStatus(t.Context(), 0, 4096, false); !errors.Is(err, nbd.EIO) {
				t.Errorf("form %d: a device that tells nothing: %+v, %v", form, s, err)
			}
		}
		p.cut = nil
		p.fail = nbd.ErrShutdown
		if _, err := c.BlockStatus(t.Context(), 0, 4096, false); !errors.Is(err, nbd.ESHUTDOWN) {
			t.Errorf("form %d: a device that fails: %v", form, err)
		}
		p.fail = nil
		plain := h.openAs(t, "plain", client.Options{Form: form, Contexts: everyContext})
		if err := plain.Changes(t.Context(), 0, 512, nil); plain.Bitmap() != "" || !errors.Is(err, client.ErrUnsupported) {
			t.Errorf("form %d: changes of an export without: %q, %v", form, plain.Bitmap(), err)
		}
	}
}
