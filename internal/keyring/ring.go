package keyring

import (
	"context"
	"fmt"
	"sync"
	"time"

	"plinth/internal/chunk"
	"plinth/internal/id"
)

const (
	// ringKeysMax bounds the secrets that a Ring keeps, so that a pool with a
	// long history of sessions does not fill a host's memory: about 100 bytes
	// each.
	ringKeysMax = 16 << 10

	// ringLoadTime bounds a read of the registry: sealed chunks under that key
	// cannot be opened meanwhile, and a guest waits for them.
	ringLoadTime = 10 * time.Second
)

// Ring resolves key ids to the secrets of sessions: it implements chunk.Keys.
// It is safe for concurrent use and starts no goroutine.
type Ring struct {
	life context.Context
	pool *Pool
	load func(context.Context, id.Key) ([]byte, error)

	mu      sync.Mutex
	secrets map[id.Key]*chunk.Secret // at most ringKeysMax
}

// NewRing returns a ring over the pool's wrapped keys. Load reads one from the
// registry and returns an error that wraps chunk.ErrUnknownKey if there is
// none; it may be called concurrently. Life ends it: loads under way then fail.
func NewRing(life context.Context, pool *Pool, load func(context.Context, id.Key) ([]byte, error)) *Ring {
	return &Ring{life: life, pool: pool, load: load, secrets: make(map[id.Key]*chunk.Secret)}
}

// Key returns the secret of that id, from memory or the registry, for which it
// waits at most ringLoadTime. Errors are not remembered: those of load,
// ErrCorrupt, ErrUnsupported.
func (r *Ring) Key(key id.Key) (*chunk.Secret, error) {
	r.mu.Lock()
	s := r.secrets[key]
	r.mu.Unlock()
	if s != nil {
		return s, nil
	}
	ctx, cancel := context.WithTimeout(r.life, ringLoadTime)
	defer cancel()
	wrapped, err := r.load(ctx, key)
	if err != nil {
		return nil, fmt.Errorf("load key %d: %w", key, err)
	}
	s, err = r.pool.UnwrapSession(key, wrapped)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for k := range r.secrets {
		if len(r.secrets) < ringKeysMax {
			break
		}
		delete(r.secrets, k) // any: a wrong choice costs one load
	}
	r.secrets[key] = s
	return s, nil
}
