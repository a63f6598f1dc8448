package disk

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"testing"

	"plinth/internal/ramcache"
)

// TestWarmUp reads a part of a disk, opens it in another session, and warms it up.
func TestWarmUp(t *testing.T) {
	h := newHouse(t, nil)
	warm := func() *Pool {
		p := h.session()
		ram, err := ramcache.New(16 << 20)
		h.ok(err)
		h.Cleanup(func() { h.ok(ram.Close()) })
		p.RAM = ram
		return p
	}
	d := h.open(warm(), 1)
	content := random(6, houseDiskBytes)
	h.ok(d.WriteAt(t.Context(), content, 0, false))
	h.ok(h.round(d))
	got := make([]byte, warmRegionBytes)
	h.ok(d.ReadAt(t.Context(), got, warmRegionBytes))
	h.ok(d.ReadAt(t.Context(), got[:4096], 2*warmRegionBytes)) // too little of a region
	h.ok(d.ReadAt(t.Context(), got[:warmRegionBytes/2], 3*warmRegionBytes))
	h.ok(d.Checkpoint(t.Context()))
	h.ok(d.Close())

	d = h.open(warm(), 1)
	if want := []uint64{1, 3}; !slices.Equal(d.warm, want) {
		t.Fatalf("regions %v are warm, want %v", d.warm, want)
	}
	cut := errors.New("cut short")
	if err := d.WarmUp(t.Context(), func(context.Context, int64) error { return cut }); err != cut {
		t.Errorf("warming up that is cut short: %v", err)
	}
	for region := range int64(4) {
		if d.TryReadAt(got, region*warmRegionBytes) {
			t.Errorf("region %d is in memory before", region)
		}
	}
	h.ok(d.WarmUp(t.Context(), func(context.Context, int64) error { return nil }))
	for region := range int64(4) {
		ok := d.TryReadAt(got, region*warmRegionBytes)
		if ok != (region == 1 || region == 3) {
			t.Errorf("region %d is in memory: %v", region, ok)
		}
		if ok && !bytes.Equal(got, content[region*warmRegionBytes:][:warmRegionBytes]) {
			t.Errorf("region %d is wrong", region)
		}
	}
}

func FuzzWarm(f *testing.F) {
	for _, regions := range [][]uint64{{0}, {0, 1, 2}, {5, 1 << 20, 1 << 40}, {1<<64 - 2}} {
		f.Add(marshalWarm(regions))
	}
	f.Add([]byte{warmVersion, 0x80})
	f.Add([]byte{2, 1})
	f.Add(append([]byte{warmVersion}, bytes.Repeat([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1}, 3)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		regions := unmarshalWarm(b)
		if len(regions) > warmRegionsMax || !slices.IsSorted(regions) {
			t.Fatalf("%d regions, in order: %v", len(regions), slices.IsSorted(regions))
		}
		if again := unmarshalWarm(marshalWarm(slices.Clone(regions))); !slices.Equal(again, regions) {
			t.Fatalf("%v came back as %v", regions, again)
		}
	})
}
