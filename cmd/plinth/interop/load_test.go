package interop

import (
	"context"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"plinth/nbd/client"
)

const (
	loadJobs   = 4
	loadSector = 512
	// loadPause leaves a job time to catch up with all that is written.
	loadPause = 5 * time.Millisecond
)

// load writes to an export until it is stopped, and keeps what must then be
// there.
type load struct {
	c      *client.Client
	model  []byte // each job has a share of its own
	writes atomic.Int64
	cancel context.CancelFunc
	jobs   sync.WaitGroup
}

// startLoad writes to all of an export that holds what the model does.
func startLoad(t *testing.T, network, address, export string, model []byte) *load {
	t.Helper()
	c, err := client.Dial(t.Context(), network, address, export, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	l := &load{c: c, model: model}
	l.resume(t)
	return l
}

// resume goes on after pause.
func (l *load) resume(t *testing.T) {
	seed := rand.Uint64()
	var ctx context.Context
	ctx, l.cancel = context.WithCancel(t.Context())
	share := len(l.model) / loadJobs
	for job := range loadJobs {
		l.jobs.Go(func() {
			rng := rand.New(rand.NewPCG(seed, uint64(job)))
			for ctx.Err() == nil {
				if err := l.write(t.Context(), rng, job*share, share); err != nil {
					t.Errorf("the load of seed %d: %v", seed, err)
					return
				}
				time.Sleep(loadPause)
			}
		})
	}
}

// write does one operation within a share.
func (l *load) write(ctx context.Context, rng *rand.Rand, from, share int) error {
	n := (1 + rng.IntN(32)) * loadSector
	off := from + rng.IntN((share-n)/loadSector+1)*loadSector
	p := l.model[off : off+n]
	l.writes.Add(1)
	if rng.IntN(8) == 0 {
		clear(p)
		return l.c.Zero(ctx, int64(off), int64(n), true, false)
	}
	fill(rng, p)
	return l.c.WriteAt(ctx, p, int64(off), rng.IntN(16) == 0)
}

// pause returns when nothing is under way.
func (l *load) pause() {
	l.cancel()
	l.jobs.Wait()
}

// await returns when so many more writes have begun.
func (l *load) await(t *testing.T, more int64) {
	t.Helper()
	to := l.writes.Load() + more
	for deadline := time.Now().Add(startTime); l.writes.Load() < to; time.Sleep(loadPause) {
		if time.Now().After(deadline) || t.Failed() {
			t.Fatal("the load does not go on")
		}
	}
}

// fill makes content that half compresses.
func fill(rng *rand.Rand, p []byte) {
	for i := range p {
		p[i] = byte(rng.Uint32()) & 0x5f
	}
}
