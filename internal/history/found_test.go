package history

import "testing"

// TestSimFound goes through histories again that have failed. A seed stands for its
// bug only as long as histories are drawn as they were then.
func TestSimFound(t *testing.T) {
	for _, found := range []struct {
		seed uint64
		bug  string
	}{
		{228468855749, "a pass found no room in the log for its patches, and nobody made any"},
		{850351727270, "no relief for a rollback: a round found no room in the log for its result before checkpoints made some"},
	} {
		r := &run{clock: startClock(t)}
		r.resume(t, "", found.seed)
		n, ok := r.next(1)
		if !ok {
			t.Fatal("there is no history to go through")
		}
		sum, failed := r.history(t, found.seed+uint64(n))
		r.end(n, sum, failed)
		for _, f := range r.Findings {
			t.Errorf("history %d (%s): %s", f.Seed, found.bug, f.Text)
		}
	}
}
