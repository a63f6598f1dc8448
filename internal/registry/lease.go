package registry

import (
	"context"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"plinth/datanode"
	"plinth/datanode/index/kv"
)

// lease is one in RAM. Its row on disk says that there is one and what its TTL
// is: how long it lasts is counted from the last Open at the earliest, so that a
// restart makes it longer and never shorter.
type lease struct {
	ttl  time.Duration
	end  time.Duration // by the registry's clock
	keys map[string]bool
}

// RegistryGrant makes a lease; it is durable at return. Errors: ErrInvalid,
// ErrNoSpace (LeasesMax).
func (p *Pebble) RegistryGrant(_ context.Context, r *datanode.RegistryGrantRequest) (*datanode.RegistryGrantReply, error) {
	if err := CheckTTL(r.TTL); err != nil {
		return nil, err
	}
	number := NewLeaseID()
	err := p.writing(func() error {
		if len(p.leases) >= datanode.LeasesMax {
			return datanode.Errorf(datanode.ErrNoSpace, "%d leases", len(p.leases))
		}
		if p.leases[number] != nil {
			return datanode.Errorf(datanode.ErrConflict, "lease %d exists", number)
		}
		if size := p.size() + dumpLeaseBytes; size > DumpBytesMax {
			return datanode.Errorf(datanode.ErrNoSpace, "registry of %d bytes exceeds %d", size, DumpBytesMax)
		}
		b := p.store.DB.NewBatch()
		set(b, leaseKey(number), leaseRow(r.TTL))
		if err := p.store.Commit(b); err != nil {
			return err
		}
		if err := p.store.Sync(); err != nil {
			return err
		}
		p.leases[number] = &lease{ttl: r.TTL, end: p.endOf(r.TTL), keys: make(map[string]bool)}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return &datanode.RegistryGrantReply{Lease: number}, nil
}

// RegistryKeepAlive makes a lease last its TTL from now. It does no I/O. Errors:
// ErrLeaseLost.
func (p *Pebble) RegistryKeepAlive(_ context.Context, r *datanode.RegistryKeepAliveRequest) error {
	return p.writing(func() error {
		l := p.leases[r.Lease]
		if l == nil {
			return datanode.Errorf(datanode.ErrLeaseLost, "lease %d", r.Lease)
		}
		l.end = p.endOf(l.ttl)
		return nil
	})
}

// RegistryRevoke ends a lease, if there is one, and deletes its keys in one step.
func (p *Pebble) RegistryRevoke(_ context.Context, r *datanode.RegistryRevokeRequest) error {
	return p.writing(func() error {
		if p.leases[r.Lease] == nil {
			return nil
		}
		return p.endLease(r.Lease)
	})
}

// endOf is when a lease that is kept alive now ends.
func (p *Pebble) endOf(ttl time.Duration) time.Duration {
	return p.clock() + ttl + ttl/datanode.LeaseMarginDivisor
}

// endDue ends the leases whose time is over. Nobody waits for it: a call does it
// before it looks, and a watch wakes for it. mu is held exclusively.
func (p *Pebble) endDue() error {
	now := p.clock()
	for number, l := range p.leases {
		if l.end <= now {
			p.opts.Logger.Info("lease has ended", "lease", uint64(number), "keys", len(l.keys))
			if err := p.endLease(number); err != nil {
				return err
			}
		}
	}
	return nil
}

// noteEnds sets nextEnd. mu is held exclusively.
func (p *Pebble) noteEnds() {
	next := time.Duration(0)
	for _, l := range p.leases {
		if next == 0 || l.end < next {
			next = l.end
		}
	}
	p.nextEnd.Store(int64(next))
}

// due tells whether a lease's time is over.
func (p *Pebble) due() bool {
	next := p.nextEnd.Load()
	return next != 0 && int64(p.clock()) >= next
}

// endLease deletes a lease and the keys under it. mu is held exclusively. A copy
// that fails is only warned of: the lease has ended here, and the next commit's
// copy says so.
func (p *Pebble) endLease(number datanode.LeaseID) error {
	l := p.leases[number]
	keys := make([]string, 0, len(l.keys))
	for key := range l.keys {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	changes, err := p.apply(&datanode.RegistryTxn{Deletes: keys}, number)
	if err == nil {
		err = p.settle(changes)
	}
	if err != nil {
		return err
	}
	if len(keys) == 0 {
		return nil
	}
	if err := p.copyOut(); err != nil {
		p.opts.Logger.Warn("cannot copy the registry", "revision", p.revision, "error", err)
	}
	return nil
}

// loadLeases reads the leases' rows: each lasts its TTL from now.
func (p *Pebble) loadLeases() error {
	it, err := p.store.DB.NewIter(&pebble.IterOptions{LowerBound: []byte{keyLease}, UpperBound: kv.Above([]byte{keyLease})})
	if err != nil {
		return p.store.Wrap(err)
	}
	for ok := it.First(); ok; ok = it.Next() {
		v, err := it.ValueAndErr()
		if err != nil {
			break // the iterator has it too
		}
		if len(it.Key()) != 9 || len(v) != 9 || v[0] != rowVersion {
			it.Close()
			return corrupt("lease")
		}
		ttl := time.Duration(le.Uint64(v[1:]))
		if CheckTTL(ttl) != nil {
			it.Close()
			return corrupt("a lease's TTL")
		}
		p.leases[datanode.LeaseID(le.Uint64(it.Key()[1:]))] = &lease{ttl: ttl, end: p.endOf(ttl), keys: make(map[string]bool)}
	}
	p.noteEnds()
	return p.store.Wrap(it.Close())
}

// NewLeaseID draws a number of 63 bits that is no other lease's.
func NewLeaseID() datanode.LeaseID { return datanode.LeaseID(1 + rand.Uint64N(1<<63-1)) }

func leaseKey(l datanode.LeaseID) []byte { return le.AppendUint64([]byte{keyLease}, uint64(l)) }

func leaseRow(ttl time.Duration) []byte { return le.AppendUint64([]byte{rowVersion}, uint64(ttl)) }
