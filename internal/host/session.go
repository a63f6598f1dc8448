package host

import (
	"context"
	"errors"
	"fmt"
	"time"

	"plinth/datanode"
	"plinth/internal/chunk"
	"plinth/internal/id"
	"plinth/internal/keyring"
	"plinth/internal/longlock"
)

// newDataKey makes a data key of this session: a new number, and the wrapped key
// durable under it before anybody can use it (I8).
func newDataKey(ctx context.Context, c catalog, pool *keyring.Pool) (id.Key, *chunk.Secret, error) {
	n, err := c.take(ctx, nextKey, 1)
	if err != nil {
		return 0, nil, err
	}
	if n > uint64(^id.Key(0)) {
		return 0, nil, fmt.Errorf("data key %d: the pool has used up its key numbers", n)
	}
	key, secret := id.Key(n), chunk.NewSecret()
	err = c.commit(ctx, &datanode.RegistryTxn{
		Compares: []datanode.Compare{{Key: dataKey(key)}},
		Puts:     []datanode.Put{{Key: dataKey(key), Value: pool.WrapSession(key, secret)}},
	})
	if err != nil {
		return 0, nil, fmt.Errorf("store data key %d: %w", key, err)
	}
	return key, secret, nil
}

// keyTimeMax bounds the wait for a new data key: seals wait for it.
const keyTimeMax = 30 * time.Second

// newSealer starts a session's sealing. life ends it.
func newSealer(ctx, life context.Context, c catalog, pool *keyring.Pool) (*chunk.Sealer, error) {
	key, secret, err := newDataKey(ctx, c, pool)
	if err != nil {
		return nil, err
	}
	next := func() (id.Key, *chunk.Secret, error) {
		ctx, cancel := context.WithTimeout(life, keyTimeMax)
		defer cancel()
		return newDataKey(ctx, c, pool)
	}
	return chunk.NewSealer(key, secret, next, chunk.SealerOptions{})
}

// loadKey reads a wrapped data key for a keyring.Ring.
func (c catalog) loadKey(ctx context.Context, key id.Key) ([]byte, error) {
	reply, err := c.node.RegistryGet(ctx, &datanode.RegistryGetRequest{Key: dataKey(key)})
	if errors.Is(err, datanode.ErrNotFound) {
		return nil, fmt.Errorf("data key %d: %w", key, chunk.ErrUnknownKey)
	}
	if err != nil {
		return nil, err
	}
	return reply.Value, nil
}

// numbersPerTake is how many segment numbers a session takes at a time: 32 GiB of
// segments for one change of the registry.
const numbersPerTake = 4096

// numbers hands out segment numbers.
type numbers struct {
	catalog catalog
	counter counter
}

func (n *numbers) take(ctx context.Context) (uint64, error) {
	number, err := n.counter.take(ctx, n.catalog, nextSeg, numbersPerTake)
	if err == nil && number > id.SegmentNumberMax {
		return 0, errors.New("the pool has used up its segment numbers")
	}
	return number, err
}

// counter hands out the numbers of a counter of the registry, some at a time.
type counter struct {
	mu        longlock.Mutex
	next, end uint64
}

func (n *counter) take(ctx context.Context, c catalog, key string, perTake uint64) (uint64, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.next == n.end {
		first, err := c.take(ctx, key, perTake)
		if err != nil {
			return 0, err
		}
		n.next, n.end = first, first+perTake
	}
	n.next++
	return n.next - 1, nil
}

// above has the next number be above last: those up to it that are left are given up.
func (n *counter) above(last id.Snapshot) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.next <= uint64(last) {
		n.next = n.end
	}
}
