package keyring

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"plinth/internal/chunk"
	"plinth/internal/id"
)

var _ chunk.Keys = (*Ring)(nil)

func TestRingLoadsOnce(t *testing.T) {
	pool := newPool(PoolID{1}, fixed(t, 1))
	var loads atomic.Int64
	ring := NewRing(t.Context(), pool, func(_ context.Context, key id.Key) ([]byte, error) {
		loads.Add(1)
		if key == 9 {
			return nil, chunk.ErrUnknownKey
		}
		return pool.WrapSession(key, fixed(t, byte(key))), nil
	})
	for range 3 {
		for key := id.Key(1); key < 4; key++ {
			s, err := ring.Key(key)
			if err != nil || s.Reveal() != fixed(t, byte(key)).Reveal() {
				t.Fatalf("key %d: %v", key, err)
			}
		}
	}
	if n := loads.Load(); n != 3 {
		t.Errorf("%d loads of 3 keys", n)
	}
	for range 2 {
		if _, err := ring.Key(9); !errors.Is(err, chunk.ErrUnknownKey) {
			t.Errorf("a key that is not there: %v", err)
		}
	}
	if n := loads.Load(); n != 5 {
		t.Errorf("an error was remembered: %d loads", n)
	}
}

func TestRingRefusesSwappedKeys(t *testing.T) {
	pool := newPool(PoolID{1}, fixed(t, 1))
	ring := NewRing(t.Context(), pool, func(_ context.Context, key id.Key) ([]byte, error) {
		return pool.WrapSession(key+1, fixed(t, 3)), nil
	})
	if _, err := ring.Key(1); !errors.Is(err, ErrCorrupt) {
		t.Errorf("the registry gave another key: %v", err)
	}
}

func TestRingIsBounded(t *testing.T) {
	pool := newPool(PoolID{1}, fixed(t, 1))
	secret := fixed(t, 2)
	ring := NewRing(t.Context(), pool, func(_ context.Context, key id.Key) ([]byte, error) {
		return pool.WrapSession(key, secret), nil
	})
	for key := range id.Key(ringKeysMax) {
		ring.secrets[key] = secret
	}
	var running sync.WaitGroup
	for worker := range id.Key(4) {
		running.Go(func() {
			for i := range id.Key(50) {
				if _, err := ring.Key(ringKeysMax + 100*worker + i); err != nil {
					t.Error(err)
				}
			}
		})
	}
	running.Wait()
	if n := len(ring.secrets); n != ringKeysMax {
		t.Errorf("the ring holds %d keys", n)
	}
}

// A registry that does not answer delays a read for ten seconds, or until the
// host ends.
func TestRingDoesNotWaitForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		life, end := context.WithCancel(t.Context())
		ring := NewRing(life, newPool(PoolID{1}, fixed(t, 1)), func(ctx context.Context, _ id.Key) ([]byte, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		})
		start := time.Now()
		if _, err := ring.Key(1); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != ringLoadTime {
			t.Errorf("after %v: %v", time.Since(start), err)
		}
		time.AfterFunc(time.Second, end)
		start = time.Now()
		if _, err := ring.Key(1); !errors.Is(err, context.Canceled) || time.Since(start) != time.Second {
			t.Errorf("after %v: %v", time.Since(start), err)
		}
	})
}
