package spindle

import (
	"math/rand/v2"
	"testing"

	"plinth/internal/id"
	"plinth/internal/vfsx/crashfs"
)

// A process dies at any byte of a first write, which makes a slab; the next one
// writes a fragment; then power is lost, with all that is not synced. What the
// next process left unsynced must not take its slab away.
func TestCrashAfterKill(t *testing.T) {
	const budgets, step = 160, 997
	for i := range int64(budgets) {
		fs := crashfs.New()
		r := newRig(t, fs, "", 1, Options{SizeBytes: 256 << 10, SlabBytes: 64 << 10})
		fs.Limit(i * step)
		first := r.noise(2)
		dead := r.write(0, id.MakeSegment(0, 1), 0, first, false) != nil
		fs = fs.Kill()
		r.fs = fs
		r.open()
		second := r.noise(3)
		r.mustWrite(0, id.MakeSegment(0, 2), 0, second)
		r.fs = fs.Crash(rand.New(rand.NewPCG(uint64(i), 0)), 0)
		r.open()
		r.expect(0, id.MakeSegment(0, 2), 0, second)
		if !dead {
			r.expect(0, id.MakeSegment(0, 1), 0, first)
		}
		if t.Failed() {
			t.Fatalf("the process died after %d bytes", i*step)
		}
	}
}
