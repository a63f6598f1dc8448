package registrytest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"plinth/datanode"
)

// tenure is a span in which somebody counted on owning the key.
type tenure struct {
	who      int
	from, to time.Time
}

// Owners lets somebody at each node take one key, keep it for some time and then
// stop, at times without a word as if it was cut off. No two may ever count on it
// at the same time: each by its own clock, from before it asked.
func Owners(t *testing.T, nodes []datanode.RegistryNode, span time.Duration) {
	var mu sync.Mutex
	var tenures []tenure
	var running sync.WaitGroup
	failed := make([]error, len(nodes))
	ctx, cancel := context.WithTimeout(t.Context(), span)
	defer cancel()
	for who, node := range nodes {
		running.Go(func() {
			rng := rand.New(rand.NewPCG(rand.Uint64(), uint64(who)))
			for ctx.Err() == nil && failed[who] == nil {
				from, to, err := own(ctx, node, who, rng)
				if err != nil {
					failed[who] = err
				} else if !to.IsZero() {
					mu.Lock()
					tenures = append(tenures, tenure{who, from, to})
					mu.Unlock()
				}
			}
		})
	}
	running.Wait()
	if err := errors.Join(failed...); err != nil {
		t.Fatal(err)
	}
	for i, a := range tenures {
		for _, b := range tenures[:i] {
			if a.from.Before(b.to) && b.from.Before(a.to) {
				t.Fatalf("%d from %v to %v and %d from %v to %v", a.who, a.from, a.to, b.who, b.from, b.to)
			}
		}
	}
	t.Logf("%d tenures", len(tenures))
	if len(tenures) < 3 {
		t.Fatalf("%d tenures in all", len(tenures))
	}
}

// own tries to take the key, and returns the span in which it counted on it.
func own(ctx context.Context, node datanode.RegistryNode, who int, rng *rand.Rand) (from, to time.Time, err error) {
	sent := time.Now()
	grant, err := node.RegistryGrant(ctx, &datanode.RegistryGrantRequest{TTL: ttl})
	if err != nil {
		return from, to, unlessOver(ctx, err)
	}
	until := sent.Add(ttl)
	_, err = node.RegistryCommit(ctx, &datanode.RegistryTxn{
		Compares: []datanode.Compare{{Key: "owner"}}, Puts: []datanode.Put{{Key: "owner", Value: fmt.Append(nil, who), Lease: grant.Lease}},
	})
	from = time.Now()
	revoke := func() error {
		return unlessOver(ctx, node.RegistryRevoke(ctx, &datanode.RegistryRevokeRequest{Lease: grant.Lease}))
	}
	if errors.Is(err, datanode.ErrConflict) || errors.Is(err, datanode.ErrLeaseLost) {
		time.Sleep(time.Duration(rng.IntN(50)) * time.Millisecond)
		return from, to, revoke()
	}
	if err != nil {
		return from, to, unlessOver(ctx, err)
	}
	for range rng.IntN(4) {
		time.Sleep(ttl / 4)
		sent := time.Now()
		if sent.After(until) {
			return from, until, nil
		}
		if node.RegistryKeepAlive(ctx, &datanode.RegistryKeepAliveRequest{Lease: grant.Lease}) == nil {
			until = sent.Add(ttl)
		}
	}
	if rng.IntN(2) == 0 && time.Now().Before(until) {
		to = time.Now() // stops counting before it asks
		return from, to, revoke()
	}
	time.Sleep(time.Until(until)) // cut off
	return from, until, nil
}

// unlessOver passes on what is neither the test's end nor that of a connection.
func unlessOver(ctx context.Context, err error) error {
	if ctx.Err() != nil || errors.Is(err, datanode.ErrUnreachable) || errors.Is(err, datanode.ErrOutcome) {
		return nil
	}
	return err
}
