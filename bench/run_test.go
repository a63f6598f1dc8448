package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// memory is a target in RAM that counts.
type memory struct {
	mu      sync.Mutex
	data    []byte
	touched map[int64]int // by offset
	reads   int
	writes  int
	flushes int
	fail    error
	corrupt atomic.Bool // reads return one wrong bit
}

func newMemory(n int) *memory { return &memory{data: make([]byte, n), touched: map[int64]int{}} }

func (m *memory) Size() int64 { return int64(len(m.data)) }

func (m *memory) ReadAt(_ context.Context, p []byte, off int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.reads++
	m.touched[off]++
	copy(p, m.data[off:off+int64(len(p))])
	if m.corrupt.Load() {
		p[len(p)/2] ^= 4
	}
	return m.fail
}

func (m *memory) WriteAt(_ context.Context, p []byte, off int64, _ bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.writes++
	m.touched[off]++
	copy(m.data[off:off+int64(len(p))], p)
	return m.fail
}

func (m *memory) Flush(context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.flushes++
	return m.fail
}

func TestEveryWorkload(t *testing.T) {
	for _, w := range Workloads {
		m := newMemory(4 << 20)
		r, err := Run(t.Context(), Config{Workload: w, Depth: 4, Jobs: 2, Runtime: 50 * time.Millisecond, Fill: true, Verify: true, FlushEvery: 16}, m)
		if err != nil {
			t.Fatalf("%s: %v", w, err)
		}
		reads, writes := strings.HasSuffix(string(w), "read") || strings.HasSuffix(string(w), "rw"), !strings.HasSuffix(string(w), "read")
		if (r.Read != nil) != reads || (r.Write != nil) != writes || (r.Flush != nil) != writes {
			t.Errorf("%s did %+v", w, r)
		}
		if r.VerifiedBlocks != 1024 || len(m.touched) != 1024 || r.CPUMicrosPerOp <= 0 {
			t.Errorf("%s verified %d of 1024 blocks, touched %d, CPU %v", w, r.VerifiedBlocks, len(m.touched), r.CPUMicrosPerOp)
		}
		var text bytes.Buffer
		if err := r.WriteText(&text, "this process"); err != nil || !strings.Contains(text.String(), string(w)) {
			t.Errorf("%s prints %q, %v", w, &text, err)
		}
		if _, err := json.Marshal(r); err != nil {
			t.Errorf("%s: %v", w, err)
		}
	}
}

func TestOnceCoversEachBlock(t *testing.T) {
	m := newMemory(1 << 20)
	r, err := Run(t.Context(), Config{Workload: Write, BlockBytes: 8192, Depth: 3, Jobs: 4, Once: true, FlushEvery: 8}, m)
	if err != nil {
		t.Fatal(err)
	}
	if r.Write.Count != 128 || len(m.touched) != 128 || r.Flush.Count != 16 || m.flushes != 17 {
		t.Errorf("%d writes of %d blocks, %d flushes measured of %d", r.Write.Count, len(m.touched), r.Flush.Count, m.flushes)
	}
}

// Nothing is written twice alike, lest a target that deduplicates look fast.
func TestContentIsNew(t *testing.T) {
	m := newMemory(1 << 20)
	seen := map[string]bool{}
	for range 2 {
		if _, err := Run(t.Context(), Config{Workload: Write, Depth: 3, Once: true, Fill: true}, m); err != nil {
			t.Fatal(err)
		}
		for off := 0; off < len(m.data); off += pieceBytes {
			if p := string(m.data[off : off+uniqueBytes]); seen[p] {
				t.Fatalf("the piece at %d was written before", off)
			} else {
				seen[p] = true
			}
		}
	}
}

func TestFailures(t *testing.T) {
	m := newMemory(1 << 20)
	m.corrupt.Store(true)
	if _, err := Run(t.Context(), Config{Workload: RandRW, Depth: 2, Once: true, Verify: true}, m); !errors.Is(err, ErrMismatch) {
		t.Errorf("reads of wrong bytes: %v", err)
	}
	m = newMemory(1 << 20)
	m.fail = errors.New("broken")
	for _, w := range Workloads {
		if _, err := Run(t.Context(), Config{Workload: w, Depth: 2, Once: true}, m); !errors.Is(err, m.fail) {
			t.Errorf("%s on a broken target: %v", w, err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := Run(ctx, Config{Workload: RandRead, Runtime: time.Hour}, newMemory(1<<20)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a context that ends: %v", err)
	}
}

func TestBadConfigs(t *testing.T) {
	for what, c := range map[string]Config{
		"workload":   {Workload: "reed"},
		"block size": {Workload: Read, BlockBytes: 1000},
		"no block":   {Workload: Read, BlockBytes: -512},
		"depth":      {Workload: Read, Depth: -1},
		"in flight":  {Workload: Read, Depth: 1 << 10, Jobs: 1 << 10},
		"memory":     {Workload: Read, Depth: 1 << 10, BlockBytes: 32 << 20},
		"runtime":    {Workload: Read, Runtime: -1},
		"mix":        {Workload: RW, ReadPercent: 100},
		"percent":    {Workload: Write, Compressible: 101},
		"size":       {Workload: Read, Bytes: 2 << 20},
		"jobs":       {Workload: Read, BlockBytes: 1 << 20, Jobs: 2},
	} {
		if _, err := Run(t.Context(), c, newMemory(1<<20)); err == nil {
			t.Errorf("%s: no error for %+v", what, c)
		}
	}
	if _, err := Run(t.Context(), Config{Workload: Read}); err == nil {
		t.Error("no error without a target")
	}
}
