package spindle

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"plinth/datanode"
	"plinth/internal/id"
)

// history is what a test knows of one fragment: what is acknowledged, and what
// a call under way may make of it. Nil stands for no fragment.
type history struct {
	stable []byte
	maybe  [][]byte
	busy   bool
}

func (h *history) allows(data []byte) bool {
	for _, want := range append([][]byte{h.stable}, h.maybe...) {
		if (want == nil) == (data == nil) && bytes.Equal(want, data) {
			return true
		}
	}
	return false
}

type place struct {
	spindle id.Spindle
	segment id.Segment
}

// disaster runs writers until the power is lost at a chosen operation.
type disaster struct {
	*rig
	mem   *vfs.MemFS
	seed  uint64
	after atomic.Int64 // operations until the loss
	done  atomic.Bool

	mu      sync.Mutex
	known   map[place]*history
	crashed *vfs.MemFS // as the loss leaves it
	left    map[place]history
}

// MaybeError is called before each operation of the file system.
func (d *disaster) MaybeError(op errorfs.Op) error {
	if d.after.Add(-1) != 0 {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	rng := rand.New(rand.NewPCG(d.seed, 3))
	d.crashed = d.mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: []int{0, 30, 70, 100}[rng.IntN(4)], RNG: rng})
	d.left = map[place]history{}
	for p, h := range d.known {
		d.left[p] = *h
	}
	d.done.Store(true)
	return nil
}

func (d *disaster) String() string { return "power loss" }

// step makes one random call for a fragment that no other worker is at.
func (d *disaster) step(rng *rand.Rand) {
	p := place{id.Spindle(rng.IntN(len(d.dirs))), id.MakeSegment(id.Layout(rng.IntN(2)), uint64(1+rng.IntN(12)))}
	data := make([]byte, (1+rng.IntN(20))*blockBytes)
	for i := range data {
		data[i] = byte(rng.Uint32())
	}
	if rng.IntN(3) == 0 {
		data = nil // delete
	}
	// A deletion is of all spindles.
	d.mu.Lock()
	var names []place
	for s := range d.dirs {
		if q := (place{id.Spindle(s), p.segment}); data == nil || q == p {
			names = append(names, q)
		}
	}
	for _, q := range names {
		if d.known[q] == nil {
			d.known[q] = &history{}
		}
		if d.known[q].busy {
			d.mu.Unlock()
			return
		}
	}
	for _, q := range names {
		d.known[q].busy, d.known[q].maybe = true, [][]byte{data}
	}
	d.mu.Unlock()

	kept := false
	if data == nil {
		if err := d.Delete(context.Background(), p.segment); err != nil {
			d.Errorf("seed %d: %v", d.seed, err)
		}
	} else if err := d.write(p.spindle, p.segment, 1, data, true); err != nil {
		kept = true
		if err.Code != datanode.CodeNoSpace {
			d.Errorf("seed %d: %v", d.seed, err)
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, q := range names {
		h := d.known[q]
		h.busy, h.maybe = false, nil
		if !kept {
			h.stable = data
		}
	}
}

// Whenever the power is lost: every fragment whose write returned is there and
// intact, every one whose deletion returned is gone, one that was being replaced
// is the old or the new one, and the accounts add up.
func TestCrashKeepsWhatWasAcknowledged(t *testing.T) {
	for range 120 {
		seed := rand.Uint64()
		crashOnce(t, seed)
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

func crashOnce(t *testing.T, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 1))
	opts := Options{PoolID: somePool, SizeBytes: 384 << 10, SlabBytes: 128 << 10}
	dirs := []string{"a", "b"}
	mem := vfs.NewCrashableMem()
	if err := Create(mem, dirs, opts); err != nil {
		t.Fatal(err)
	}
	known := map[place]*history{}
	workers := []int{1, 4}[rng.IntN(2)]
	for life := range 3 {
		d := &disaster{mem: mem, seed: seed + uint64(life), known: known}
		d.after.Store(1 + rng.Int64N(400))
		fs := errorfs.Wrap(mem, d)
		set, err := Open(fs, dirs, opts)
		if err != nil {
			t.Fatal(err)
		}
		d.rig = &rig{TB: t, Set: set, fs: fs, dirs: dirs, opts: opts}
		var wg sync.WaitGroup
		for w := range workers {
			wg.Go(func() {
				rng := rand.New(rand.NewPCG(seed, uint64(100*life+w+10)))
				for !d.done.Load() && !t.Failed() {
					d.step(rng)
				}
			})
		}
		wg.Wait()
		d.audit()
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		known = d.inspect()
		mem = d.crashed
	}
}

// inspect opens what the crash left and compares it with what was known.
func (d *disaster) inspect() map[place]*history {
	r := &rig{TB: d.TB, fs: d.crashed, dirs: d.dirs, opts: d.opts}
	r.open()
	defer r.Close()
	found := map[place]*history{}
	for p, h := range d.left {
		var data []byte
		got := r.verify(p.spindle, p.segment, 1)
		switch {
		case got.Err == nil && len(got.Bad) == 0:
			data = got.Data
		case got.Err == nil || got.Err.Code != datanode.CodeNotFound:
			d.Fatalf("seed %d: spindle %d, segment %s: %v, bad blocks %v", d.seed, p.spindle, p.segment, got.Err, got.Bad)
		}
		if !h.allows(data) {
			d.Fatalf("seed %d: spindle %d, segment %s: %d bytes, %d are stable, %d calls were under way",
				d.seed, p.spindle, p.segment, len(data), len(h.stable), len(h.maybe))
		}
		found[p] = &history{stable: data}
	}
	r.audit()
	return found
}

// A random history against a map, over reopened sets, with all spindles filled
// again and again.
func TestSimAgainstModel(t *testing.T) {
	for range 4 {
		seed := rand.Uint64()
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			r := memoryRig(t, 3)
			r.rng = rand.New(rand.NewPCG(seed, 0))
			model := map[place][]byte{}
			full := 0
			for range 1500 {
				p := place{id.Spindle(r.rng.IntN(3)), id.MakeSegment(id.Layout(r.rng.IntN(3)), uint64(1+r.rng.IntN(20)))}
				switch n := r.rng.IntN(20); {
				case n < 13:
					replace := r.rng.IntN(2) == 0
					data := r.noise(1 + r.rng.IntN(40))
					err := r.write(p.spindle, p.segment, 0, data, replace)
					switch {
					case err == nil && (model[p] == nil || replace):
						model[p] = data
					case err == nil:
						t.Fatal("written over a fragment")
					case err.Code == datanode.CodeNoSpace:
						full++
						free := r.all()[p.spindle].freeBlocks
						if free >= int64(fragmentBlocks(uint32(len(data)))) {
							t.Fatalf("no space for %d blocks with %d free: %v", len(data)/blockBytes, free, err)
						}
					case model[p] == nil || replace:
						t.Fatal(err)
					}
				case n < 16:
					r.ok(r.Delete(context.Background(), p.segment))
					for s := range id.Spindle(3) {
						delete(model, place{s, p.segment})
					}
				case n < 19:
					d := r.verify(p.spindle, p.segment, 0)
					if want := model[p]; (want == nil) != (d.Err != nil) || !bytes.Equal(d.Data, want) {
						t.Fatalf("read %d bytes of %d: %v", len(d.Data), len(want), d.Err)
					}
				default:
					r.audit()
					if r.rng.IntN(4) == 0 {
						r.reopen()
						r.audit()
					}
				}
			}
			for p, data := range model {
				r.expect(p.spindle, p.segment, 0, data)
			}
			if full == 0 {
				t.Error("the spindles were never full")
			}
		})
	}
}
