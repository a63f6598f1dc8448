package standalone

import (
	"log/slog"
	"math/rand/v2"
	"testing"
	"time"

	"plinth/internal/host"
)

// TestScrub flips bits that nobody reads: they are found and mended all the same. A
// restart does not begin the pass again.
func TestScrub(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	opts := quiet(t, t.TempDir())
	opts.Logger = slog.New(slog.DiscardHandler) // a line for each block
	opts.Host.ScrubInterval = 2 * time.Second
	s := open(t, opts)
	data := image(seed, 24<<20)
	write(t, create(t, s, "vm1", 64<<20), data, 0)
	quiesce(t, s)
	scrub := func() host.ScrubStatus { return status(t, s).Scrub }
	await(t, "a pass that has tested something", func() bool { return scrub().Pass != nil && scrub().Pass.Segments > 0 })
	before := scrub().Pass
	shut(t, s)

	s = open(t, opts)
	await(t, "what the registry knows", func() bool { return scrub().Pass != nil })
	if x := scrub(); !x.Pass.Began.Equal(before.Began) && (x.Last == nil || !x.Last.Began.Equal(before.Began)) {
		t.Errorf("the pass %+v is forgotten: %+v", before, x)
	}
	damaged := map[damage]bool{}
	for d := range flipMany(t, rand.New(rand.NewPCG(seed, 1)), walkSlabs(t, opts.Dir), 100) {
		damaged[damage{segment: d.segment, index: d.index}] = true
	}
	flipped := time.Now()
	await(t, "a pass that began after the damage", func() bool {
		pass := scrub().Pass
		return pass.Ended != nil && pass.Began.After(flipped)
	})
	if n := status(t, s).Repairs["fragments_rewritten"]; n != uint64(len(damaged)) {
		t.Errorf("%d fragments were rewritten, %d were damaged", n, len(damaged))
	}
	verify(t, s)
	same(t, device(t, s, "vm1"), data, 0)
	shut(t, s)
}

// await waits until something has come about.
func await(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s has not come about in a minute", what)
		}
	}
}
