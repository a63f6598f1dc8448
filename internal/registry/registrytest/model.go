package registrytest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"

	"plinth/datanode"
)

// increment tries once to count key n up, and counts success.
func increment(node datanode.RegistryNode, won *int) error {
	n, revision := 0, uint64(0)
	reply, err := node.RegistryGet(context.Background(), &datanode.RegistryGetRequest{Key: "n"})
	if err == nil {
		revision = reply.Revision
		fmt.Sscan(string(reply.Value), &n)
	} else if !errors.Is(err, datanode.ErrNotFound) {
		return err
	}
	_, err = node.RegistryCommit(context.Background(), &datanode.RegistryTxn{
		Compares: []datanode.Compare{{Key: "n", Revision: revision}},
		Puts:     []datanode.Put{{Key: "n", Value: fmt.Append(nil, n+1)}},
	})
	if errors.Is(err, datanode.ErrConflict) {
		return nil
	}
	if err == nil {
		*won++
	}
	return err
}

func testModel(e *env) {
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 0))
	defer func() {
		if e.Failed() {
			e.Logf("seed %d", seed)
		}
	}()
	model := map[string]datanode.RegistryEntry{}
	for range 300 {
		if rng.IntN(60) == 0 {
			e.Node = e.Reopen()
		}
		var r datanode.RegistryTxn
		holds := true
		for _, n := range rng.Perm(12)[:rng.IntN(5)] {
			key := fmt.Sprintf("key/%d", n)
			switch rng.IntN(4) {
			case 0:
				r.Deletes = append(r.Deletes, key)
			case 1:
				c := datanode.Compare{Key: key, Revision: model[key].Revision}
				if rng.IntN(4) == 0 {
					c.Revision++
					holds = false
				}
				r.Compares = append(r.Compares, c)
			default:
				r.Puts = append(r.Puts, datanode.Put{Key: key, Value: fmt.Append(nil, rng.Uint64())})
			}
		}
		reply, err := e.Node.RegistryCommit(e.Context(), &r)
		if holds != (err == nil) {
			e.Fatalf("commit of %+v: %v, compares hold: %t", r, err, holds)
		}
		if err == nil {
			for _, p := range r.Puts {
				model[p.Key] = datanode.RegistryEntry{Key: p.Key, Value: p.Value, Revision: reply.Revision}
			}
			for _, k := range r.Deletes {
				delete(model, k)
			}
		}
		entries := e.list("", 0)
		if len(entries) != len(model) {
			e.Fatalf("%d entries, want %d", len(entries), len(model))
		}
		for _, got := range entries {
			if want := model[got.Key]; string(got.Value) != string(want.Value) || got.Revision != want.Revision {
				e.Fatalf("%+v, want %+v", got, want)
			}
		}
	}
}
