package registrytest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"plinth/datanode"
)

// operation is a read of the register, or a compare-and-set of it. Revisions order
// them all: what is left to test is that they agree with values and with time.
type operation struct {
	sent, answered time.Duration
	read, written  uint64 // revision; written 0: a read, or a compare that failed
	value          string
}

// register is a key that many change, and what they saw.
type register struct {
	node  datanode.RegistryNode
	begun time.Time

	mu  sync.Mutex
	all []operation
}

func (r *register) note(o operation) {
	o.answered = time.Since(r.begun)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all = append(r.all, o)
}

// step reads, and half the time tries to write what nobody else does.
func (r *register) step(ctx context.Context, rng *rand.Rand) error {
	o := operation{sent: time.Since(r.begun)}
	reply, err := r.node.RegistryGet(ctx, &datanode.RegistryGetRequest{Key: "x"})
	if err != nil && !errors.Is(err, datanode.ErrNotFound) {
		return err
	}
	if err == nil {
		o.read, o.value = reply.Revision, string(reply.Value)
	}
	r.note(o)
	if rng.IntN(2) == 0 {
		return nil
	}
	w := operation{sent: time.Since(r.begun), read: o.read, value: fmt.Sprint(rng.Uint64())}
	done, err := r.node.RegistryCommit(ctx, &datanode.RegistryTxn{
		Compares: []datanode.Compare{{Key: "x", Revision: o.read}}, Puts: []datanode.Put{{Key: "x", Value: []byte(w.value)}},
	})
	if errors.Is(err, datanode.ErrConflict) {
		return nil
	}
	if err == nil {
		w.written = done.Revision
		r.note(w)
	}
	return err
}

// check tells whether what was seen is a register's history.
func (r *register) check() (writes int, err error) {
	values, next := map[uint64]string{0: ""}, map[uint64]uint64{}
	for _, o := range r.all {
		if o.written == 0 {
			continue
		}
		writes++
		if _, twice := values[o.written]; twice {
			return 0, fmt.Errorf("two writes at %d", o.written)
		}
		if other, twice := next[o.read]; twice {
			return 0, fmt.Errorf("%d and %d both replaced %d", o.written, other, o.read)
		}
		if o.written <= o.read {
			return 0, fmt.Errorf("%d replaced %d", o.written, o.read)
		}
		values[o.written], next[o.read] = o.value, o.written
	}
	for _, o := range r.all {
		if value, known := values[o.read]; o.written == 0 && (!known || value != o.value) {
			return 0, fmt.Errorf("%q was read at %d, %q was written", o.value, o.read, value)
		}
	}
	// Of two operations one after the other, the later has no lower revision.
	for i, a := range r.all {
		for _, b := range r.all[:i] {
			for _, pair := range [][2]operation{{a, b}, {b, a}} {
				first, second := pair[0], pair[1]
				if first.answered < second.sent && max(first.read, first.written) > max(second.read, second.written) {
					return 0, fmt.Errorf("revision %d at %v, then %d", max(first.read, first.written), first.answered, max(second.read, second.written))
				}
			}
		}
	}
	return writes, nil
}

func testLinearizable(e *env) {
	r := &register{node: e.Node, begun: time.Now()}
	const many, steps = 16, 25
	var failed [many]error
	var running sync.WaitGroup
	for i := range many {
		running.Go(func() {
			rng := rand.New(rand.NewPCG(rand.Uint64(), uint64(i)))
			for s := 0; s < steps && failed[i] == nil; s++ {
				failed[i] = r.step(e.Context(), rng)
			}
		})
	}
	running.Wait()
	if err := errors.Join(failed[:]...); err != nil {
		e.Fatal(err)
	}
	writes, err := r.check()
	if err != nil {
		e.Fatal(err)
	}
	if writes < 5 {
		e.Fatalf("%d writes of %d", writes, many*steps)
	}
}
