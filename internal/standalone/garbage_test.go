package standalone

import (
	"context"
	"errors"
	"math/rand/v2"
	"testing"
	"time"

	"plinth/datanode"
	"plinth/internal/id"
	"plinth/internal/stripe"
)

// TestSimGarbage fills the spindles, reserve and all, with segments that a dead
// owner of the disk has left, while acknowledged writes wait to be destaged. They
// must find their way: the garbage is collected for them.
func TestSimGarbage(t *testing.T) {
	opts := small(t, t.TempDir())
	opts.Host.DestageInterval, opts.Host.IdleTime = time.Hour, time.Hour
	s := open(t, opts)
	m := newModel(4<<20, 7)
	d := create(t, s, "vm1", int64(len(m.data)))
	for i := range m.data {
		m.data[i] = byte(m.rng.Uint32())
	}
	if err := d.WriteAt(t.Context(), m.data, 0, true); err != nil {
		t.Fatal(err)
	}
	garbage := fillSpindles(t, s)
	t.Logf("%d segments of garbage", garbage)
	quiesce(t, s)
	if err := s.Host.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	st, err := s.Host.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if st.Space.StoredBytes > 8<<20 || st.Space.BufferedBytes != 0 {
		t.Errorf("%d bytes are stored and %d buffered of a disk of 4 MiB", st.Space.StoredBytes, st.Space.BufferedBytes)
	}
	verify(t, s)
	shut(t, s)
	s = open(t, opts)
	m.check(t, device(t, s, "vm1"))
	shut(t, s)
}

// fillSpindles writes and publishes segments of noise, born for disk 1, until
// none fits.
func fillSpindles(t *testing.T, s *Site) int {
	t.Helper()
	rng := rand.New(rand.NewPCG(3, 4))
	layouts, err := s.Node.RegistryGet(t.Context(), &datanode.RegistryGetRequest{Key: "layouts"})
	if err != nil {
		t.Fatal(err)
	}
	l, err := stripe.UnmarshalLayouts(layouts.Value)
	if err != nil {
		t.Fatal(err)
	}
	store, err := stripe.NewStore(s.Node, l, stripe.Options{})
	if err != nil {
		t.Fatal(err)
	}
	next := uint64(1 << 40)
	number := func(context.Context) (uint64, error) { next++; return next, nil }
	sealed := make([]byte, 65536)
	for chunks := 120; ; {
		b := stripe.NewBuilder(l.Geometry)
		for range chunks {
			var fp id.Fingerprint
			for i := range fp {
				fp[i] = byte(rng.Uint32())
			}
			b.Add(1, 1, fp, sealed, 65536)
		}
		segment, err := b.Seal()
		if err != nil {
			t.Fatal(err)
		}
		err = store.Write(t.Context(), segment, number)
		if errors.Is(err, datanode.ErrNoSpace) && chunks > 1 {
			chunks /= 2
			store.UpdateHealth(nil)
			continue
		}
		if errors.Is(err, datanode.ErrNoSpace) {
			return int(next - 1<<40)
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Node.Publish(t.Context(), &datanode.PublishRequest{Segments: []datanode.SegmentEntry{segment.Entry()}}); err != nil {
			t.Fatal(err)
		}
	}
}
