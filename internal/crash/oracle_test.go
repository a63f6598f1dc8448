package crash

import (
	"fmt"
	"slices"
	"sync"
	"testing"
)

// oracle knows what each sector of a disk may hold: the newest acknowledged
// write, those that ran beside it, and those that were never answered.
type oracle struct {
	mu sync.Mutex
	// Exported fields go to the file from which a long run goes on.
	Clock   uint64
	Sectors [][]version
	// Since, if not 0, says that writes from this number on may have been made
	// that the oracle does not know: the run before was cut off.
	Since uint64

	// watchers get every write that begins.
	watchers []*oracle
}

// version is what a sector may hold. Times are the oracle's own.
type version struct {
	Seq   uint64 // 0: zeros
	Begun uint64 // names the write
	Done  uint64 // 0: not answered
}

func newOracle(sectors int64) *oracle {
	o := &oracle{Clock: 1, Sectors: make([][]version, sectors)}
	for i := range o.Sectors {
		o.Sectors[i] = []version{{0, 1, 1}}
	}
	return o
}

// begin notes a write, before it is sent; the result is for end.
func (o *oracle) begin(first, n int64, seq uint64) uint64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.Clock++
	for i := first; i < first+n; i++ {
		o.Sectors[i] = append(o.Sectors[i], version{seq, o.Clock, 0})
		for _, w := range o.watchers {
			w.Sectors[i] = append(w.Sectors[i], version{seq, o.Clock, 0})
		}
	}
	return o.Clock
}

// watch returns an oracle of what each sector may hold at any moment from now on
// until unwatch: of a snapshot that is made meanwhile.
func (o *oracle) watch() *oracle {
	o.mu.Lock()
	defer o.mu.Unlock()
	w := &oracle{Clock: 1, Sectors: make([][]version, len(o.Sectors))}
	for i, versions := range o.Sectors {
		w.Sectors[i] = slices.Clone(versions)
	}
	o.watchers = append(o.watchers, w)
	return w
}

func (o *oracle) unwatch(w *oracle) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.watchers = slices.DeleteFunc(o.watchers, func(x *oracle) bool { return x == w })
}

// end notes that a write was acknowledged: what was acknowledged before it
// began is gone. A write that fails is not ended.
func (o *oracle) end(first, n int64, begun uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.Clock++
	for i := first; i < first+n; i++ {
		o.Sectors[i] = slices.DeleteFunc(o.Sectors[i], func(v version) bool { return v.Done != 0 && v.Done < begun })
		for j := range o.Sectors[i] {
			if v := &o.Sectors[i][j]; v.Begun == begun {
				v.Done = o.Clock
			}
		}
	}
}

// check compares what was read. With settle, from now on each sector holds
// what it was seen to hold and nothing else: nobody writes meanwhile.
func (o *oracle) check(p []byte, first int64, settle bool) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	for i := first; len(p) > 0; p, i = p[sectorBytes:], i+1 {
		seq, err := parseSector(p, i)
		if err != nil {
			return fmt.Errorf("sector %d: %w; it may hold %v", i, err, o.Sectors[i])
		}
		known := slices.ContainsFunc(o.Sectors[i], func(v version) bool { return v.Seq == seq })
		if !known && (o.Since == 0 || seq != 0 && seq < o.Since) {
			return fmt.Errorf("sector %d is of write %d; it may hold %v", i, seq, o.Sectors[i])
		}
		if settle {
			o.Sectors[i] = []version{{seq, o.Clock, o.Clock}}
		}
	}
	return nil
}

func TestOracle(t *testing.T) {
	o := newOracle(2)
	may := func(want ...uint64) {
		t.Helper()
		for seq := range uint64(6) {
			p := make([]byte, sectorBytes)
			if seq > 0 {
				fillSectors(p, 1, seq)
			}
			if err := o.check(p, 1, false); (err == nil) != slices.Contains(want, seq) {
				t.Errorf("write %d: %v", seq, err)
			}
		}
	}
	may(0)
	one := o.begin(0, 2, 1)
	may(0, 1)
	two := o.begin(1, 1, 2)
	o.end(0, 2, one)
	may(1, 2)
	o.end(1, 1, two)
	may(1, 2)
	o.begin(1, 1, 3) // never answered
	four := o.begin(1, 1, 4)
	o.end(1, 1, four)
	may(3, 4)
	five := o.begin(1, 1, 5)
	o.end(1, 1, five)
	may(3, 5)
}
