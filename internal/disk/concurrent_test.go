package disk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"plinth/internal/chunk"
	"plinth/internal/id"
)

func TestConcurrentUse(t *testing.T)    { concurrentUse(t, time.Second) }
func TestSimConcurrentUse(t *testing.T) { concurrentUse(t, 5*time.Second) }

// concurrentUse lets clients write, zero, trim and read, each its own region of
// one of two disks, while rounds, checkpoints, passes and reclaims run without
// pause. Regions end within chunks, so that neighbours write to parts of the
// same ones, and hold few contents, so that each disk's look-ups hit what the
// other one's passes give up. Others read all the time, so that what they have
// looked up is remembered while it changes. At the end both are opened again.
func concurrentUse(t *testing.T, runTime time.Duration) {
	const clients, regionBytes = 3, 200_001
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	h := newHouse(t, nil)
	for range 3 {
		h.session()
	}
	p := h.session() // with all caches
	disks := []*Disk{h.open(p, 1), h.open(p, 2)}
	ctx, stop := context.WithTimeout(t.Context(), runTime)
	defer stop()
	var running sync.WaitGroup
	repeat := func(f func(context.Context) error) {
		running.Go(func() {
			for ctx.Err() == nil && !t.Failed() {
				if err := f(context.WithoutCancel(ctx)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	regions := make([][]byte, clients*len(disks))
	at := func(i int) (*Disk, int64) { return disks[i%len(disks)], int64(i / len(disks) * regionBytes) }
	for i := range regions {
		regions[i] = make([]byte, regionBytes)
		rng := rand.New(rand.NewPCG(seed, uint64(i)))
		d, off := at(i)
		repeat(func(ctx context.Context) error {
			time.Sleep(time.Millisecond) // leave the processors to the work behind
			return step(ctx, d, rng, regions[i], off)
		})
	}
	repeat(func(ctx context.Context) error {
		disks[0].Rotate()
		disks[1].Rotate()
		return p.Destage(ctx, disks)
	})
	repeat(h.reclaim)
	for i, d := range disks {
		rng := rand.New(rand.NewPCG(seed, uint64(100+i)))
		got := make([]byte, 64<<10)
		repeat(func(ctx context.Context) error {
			time.Sleep(100 * time.Microsecond)
			return d.ReadAt(ctx, got, rng.Int64N(clients*regionBytes))
		})
		repeat(d.Checkpoint)
		repeat(func(ctx context.Context) error { _, err := d.Pass(ctx, PassOptions{}); return err })
	}
	running.Wait()
	t.Logf("%+v", disks[0].Stats())
	for range 2 {
		for i, want := range regions {
			got := make([]byte, len(want))
			d, off := at(i)
			h.ok(d.ReadAt(t.Context(), got, off))
			if !bytes.Equal(got, want) {
				t.Fatalf("region %d differs at the end", i)
			}
		}
		for i, d := range disks {
			h.ok(d.Close())
			disks[i] = h.open(h.session(), d.ID())
		}
	}
}

// step does one random thing to a region of the disk and to what it should hold.
func step(ctx context.Context, d *Disk, rng *rand.Rand, region []byte, at int64) error {
	off := rng.IntN(len(region))
	n := 1 + rng.IntN(min(len(region)-off, 24<<10))
	p := region[off : off+n]
	var err error
	switch rng.IntN(8) {
	case 0, 1, 2:
		letter := byte(1 + rng.IntN(3))
		for i := range p {
			p[i] = letter + byte((at+int64(off+i))/4096%2)
		}
		err = d.WriteAt(ctx, p, at+int64(off), rng.IntN(16) == 0)
	case 3:
		for i := range p {
			p[i] = byte(rng.Uint32())
		}
		err = d.WriteAt(ctx, p, at+int64(off), false)
	case 4:
		clear(p)
		err = d.Zero(ctx, at+int64(off), int64(n), false)
	case 5:
		first, end := (at+int64(off)+4095)&^4095, (at+int64(off+n))&^4095
		if first < end {
			clear(region[first-at : end-at])
		}
		err = d.Trim(ctx, at+int64(off), int64(n), false)
	default:
		got := make([]byte, n)
		if !d.TryReadAt(got, at+int64(off)) {
			err = d.ReadAt(ctx, got, at+int64(off))
		}
		if err == nil && !bytes.Equal(got, p) {
			err = errors.New("what is read was not written")
		}
	}
	if err != nil {
		return fmt.Errorf("disk %d, %d bytes at %d: %w", d.ID(), n, at+int64(off), err)
	}
	return nil
}

// TestLayersRotate gives one layer more than it may become in the map: runs of
// zeros by number, and zero chunks by weight.
func TestLayersRotate(t *testing.T) {
	h := newHouse(t, nil)
	d := h.open(h.session(), 1)
	const size = int64(chunk.SizeDefault)
	runs := int64(2*zerosMax + 100)
	h.ok(d.Resize(t.Context(), 2*runs*size))
	p := bytes.Repeat([]byte{7}, int(size))
	for _, i := range []int64{0, 1, 2*runs - 2, 2*runs - 1} {
		h.ok(d.WriteAt(t.Context(), p, i*size, false))
	}
	h.ok(h.round(d))
	for i := range runs { // every other chunk
		h.ok(d.Trim(t.Context(), 2*i*size, size, false))
	}
	atMost := func(layers int) {
		t.Helper()
		if n := len(d.layers); n < layers || n > layers+1 {
			t.Fatalf("%d layers, want %d", n, layers)
		}
		for i, l := range d.layers {
			if l.weight > weightMax+smallTrimChunksMax || len(l.zeros) > zerosMax+1 {
				t.Fatalf("layer %d has weight %d and %d runs of zeros", i, l.weight, len(l.zeros))
			}
		}
	}
	atMost(3)
	same := func() {
		t.Helper()
		for i, want := range map[int64]byte{0: 0, 1: 7, 2: 0, 2*runs - 2: 0, 2*runs - 1: 7} {
			got := make([]byte, size)
			h.ok(d.ReadAt(t.Context(), got, i*size))
			if got[0] != want || got[size-1] != want {
				t.Fatalf("chunk %d holds %d, want %d", i, got[0], want)
			}
		}
	}
	same()
	h.ok(d.Close())
	d = h.open(h.session(), 1)
	atMost(3)
	same()
	h.ok(h.round(d))
	same()
	for range weightMax/smallTrimChunksMax + 3 { // all of them are less than the last chunk
		h.ok(d.Zero(t.Context(), 0, smallTrimChunksMax*size, false))
	}
	atMost(2)
	h.ok(h.round(d))
	for _, lba := range []id.LBA{1, smallTrimChunksMax - 1} {
		got := make([]byte, size)
		h.ok(d.ReadAt(t.Context(), got, int64(lba)*size))
		if !chunk.IsZero(got) {
			t.Fatalf("chunk %d is not zero", lba)
		}
	}
}
