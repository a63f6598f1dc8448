package blockmap

import (
	"testing"

	"github.com/cockroachdb/pebble/v2/sstable"

	"plinth/internal/id"
)

// TestTablesCompressed: tables of a map with many snapshots are not, and both kinds are read.
func TestTablesCompressed(t *testing.T) {
	s := newStore()
	m := mustCreate(t, testOptions(t, s))
	want := sstable.SnappyCompression
	for i := range id.Snapshot(2 * compressedMarks) {
		mustApply(t, m, &Batch{Gen: m.NextGen(false), Updates: updates(0, 50, uint64(i)), Mark: Mark{Snapshot: i + 1}}, "")
		if i == compressedMarks {
			want = sstable.NoCompression
		}
		if got := m.compression(); got != want {
			t.Fatalf("with %d snapshots: %s", i+1, got.Name)
		}
		if i%compressedMarks == 9 {
			mustCheckpoint(t, m)
		}
	}
	m = mustAttach(t, mustCheckpoint(t, m).Manifest, testOptions(t, s))
	if got := m.compression(); got != sstable.NoCompression {
		t.Errorf("attached: %s", got.Name)
	}
	for i := range id.Snapshot(2 * compressedMarks) {
		v, err := m.At(i + 1)
		if err != nil {
			t.Fatal(err)
		}
		out := make([]Entry, 50)
		if err := v.LookupRange(0, out); err != nil || out[49] != entryOf(uint64(i)+49) {
			t.Errorf("snapshot %d: %v, %v", i+1, out[49], err)
		}
	}
}
