package etcd

import (
	"context"
	"strconv"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"plinth/datanode"
	"plinth/internal/registry"
)

const (
	// endKeysMax is how many keys of a lease go in one transaction.
	endKeysMax = 50
	// endTriesMax bounds how often keys that change meanwhile are looked at again.
	endTriesMax = 100
)

// RegistryGrant makes a lease.
func (r *Registry) RegistryGrant(ctx context.Context, q *datanode.RegistryGrantRequest) (*datanode.RegistryGrantReply, error) {
	if err := registry.CheckTTL(q.TTL); err != nil {
		return nil, err
	}
	if err := r.enter(); err != nil {
		return nil, err
	}
	defer r.calls.RUnlock()
	lease, err := r.grant(ctx, q.TTL)
	if err != nil {
		return nil, err
	}
	return &datanode.RegistryGrantReply{Lease: lease}, nil
}

// grant makes a lease. One that was made although the answer did not come ends by
// itself.
func (r *Registry) grant(ctx context.Context, ttl time.Duration) (datanode.LeaseID, error) {
	lease := registry.NewLeaseID()
	key := r.leaseKey(lease)
	reply, err := r.txn(ctx, []clientv3.Cmp{absent(key)}, []clientv3.Op{clientv3.OpPut(key, encodeLease(ttl))}, nil)
	if err != nil {
		return 0, failed(err)
	}
	if !reply.Succeeded {
		return 0, datanode.Errorf(datanode.ErrConflict, "lease %d exists", lease)
	}
	return lease, nil
}

// RegistryKeepAlive makes a lease last its TTL from now. One whose answer did not
// come may come late: that makes the lease longer, and not for its holder.
func (r *Registry) RegistryKeepAlive(ctx context.Context, q *datanode.RegistryKeepAliveRequest) error {
	if err := r.enter(); err != nil {
		return err
	}
	defer r.calls.RUnlock()
	return r.keepAlive(ctx, q.Lease)
}

func (r *Registry) keepAlive(ctx context.Context, lease datanode.LeaseID) error {
	key := r.leaseKey(lease)
	reply, err := r.fetch(ctx, key)
	if err != nil {
		return err
	}
	if len(reply.Kvs) == 0 {
		return datanode.Errorf(datanode.ErrLeaseLost, "lease %d", lease)
	}
	done, err := r.txn(ctx, []clientv3.Cmp{present(key)}, []clientv3.Op{clientv3.OpPut(key, string(reply.Kvs[0].Value))}, nil)
	if err != nil {
		return failed(err)
	}
	if !done.Succeeded {
		return datanode.Errorf(datanode.ErrLeaseLost, "lease %d", lease)
	}
	return nil
}

// RegistryRevoke ends a lease and deletes its keys.
func (r *Registry) RegistryRevoke(ctx context.Context, q *datanode.RegistryRevokeRequest) error {
	if err := r.enter(); err != nil {
		return err
	}
	defer r.calls.RUnlock()
	return r.endLease(ctx, q.Lease, 0)
}

// endLease ends a lease that is as it was at a revision of etcd, 0: whatever it is.
// A lease that was kept alive since stays, without an error.
func (r *Registry) endLease(ctx context.Context, lease datanode.LeaseID, at int64) error {
	key := r.leaseKey(lease)
	is := present(key)
	if at != 0 {
		is = unchanged(key, at)
	}
	_, err := r.txn(ctx, []clientv3.Cmp{is},
		[]clientv3.Op{clientv3.OpDelete(key), clientv3.OpPut(r.endingKey(lease), string([]byte{rowVersion}))}, nil)
	if err != nil {
		return failed(err)
	}
	return r.finish(ctx, lease)
}

// finish deletes what goes with a lease that is ending; nothing new can come. It
// does nothing for a lease that lasts.
func (r *Registry) finish(ctx context.Context, lease datanode.LeaseID) error {
	ending, under := r.endingKey(lease), r.underKey(lease)
	for range endTriesMax {
		reply, err := r.fetch(ctx, ending)
		if err != nil || len(reply.Kvs) == 0 {
			return err
		}
		all, err := r.fetch(ctx, under, clientv3.WithPrefix(), clientv3.WithKeysOnly(), clientv3.WithLimit(endKeysMax))
		if err != nil {
			return err
		}
		if len(all.Kvs) == 0 {
			_, err := r.txn(ctx, nil, []clientv3.Op{clientv3.OpDelete(ending)}, nil)
			return failed(err)
		}
		var cmps []clientv3.Cmp
		var deletes []clientv3.Op
		for _, kv := range all.Kvs {
			deletes = append(deletes, clientv3.OpDelete(string(kv.Key)))
			key, isKey := strings.CutPrefix(string(kv.Key[len(under):]), "k")
			if !isKey {
				continue // a slot
			}
			at, err := r.underAt(ctx, key, lease)
			if err != nil {
				return err
			}
			if at != 0 {
				cmps = append(cmps, unchanged(r.entryKey(key), at))
				deletes = append(deletes, clientv3.OpDelete(r.entryKey(key)))
			}
		}
		// Where a key was put again since, this does nothing and the loop looks again.
		if _, err := r.txn(ctx, cmps, deletes, nil); err != nil {
			return failed(err)
		}
	}
	return datanode.Errorf(datanode.ErrUnreachable, "keys of lease %d keep changing", lease)
}

// underAt returns the revision of etcd of a key that is under the lease, 0 if it
// is not, or not any more.
func (r *Registry) underAt(ctx context.Context, key string, lease datanode.LeaseID) (int64, error) {
	reply, err := r.fetch(ctx, r.entryKey(key))
	if err != nil || len(reply.Kvs) == 0 {
		return 0, err
	}
	_, of, err := decodeEntry(reply.Kvs[0])
	if err != nil || of != lease {
		return 0, err
	}
	return reply.Kvs[0].ModRevision, nil
}

// sight is a lease as the keeper saw it.
type sight struct {
	at    int64         // revision of etcd at which it was last kept alive
	since time.Duration // a time at which it was so
	ttl   time.Duration
}

// keep looks at all leases each Poll until Close: it keeps the session alive and
// ends those that nobody keeps alive.
func (r *Registry) keep() {
	seen := make(map[datanode.LeaseID]sight)
	failing := false
	tick := time.NewTicker(r.opts.Poll)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-r.life.Done():
			return
		}
		r.keepSession()
		err := r.look(seen)
		if err != nil && !failing && r.life.Err() == nil {
			r.log.Warn("cannot look at the registry's leases", "error", err)
		}
		failing = err != nil
	}
}

// keepSession renews the session when a third of its time is over.
func (r *Registry) keepSession() {
	r.mu.Lock()
	s := r.session
	sent := r.now()
	due := s != nil && sent-s.renewed >= sessionTTL/3
	r.mu.Unlock()
	if !due {
		return
	}
	err := r.keepAlive(r.life, s.lease)
	r.mu.Lock()
	defer r.mu.Unlock()
	if err == nil {
		s.renewed = sent
	}
}

// look ends the leases that are over, and finishes those that are ending.
func (r *Registry) look(seen map[datanode.LeaseID]sight) error {
	there := make(map[datanode.LeaseID]bool)
	err := r.each(r.root+"l/", func(lease datanode.LeaseID, value []byte, at int64) error {
		there[lease] = true
		ttl, err := decodeLease(value)
		if err != nil {
			return err
		}
		now := r.now()
		s, known := seen[lease]
		if !known || s.at != at {
			seen[lease] = sight{at, now, ttl}
			return nil
		}
		if now-s.since < s.ttl+s.ttl/datanode.LeaseMarginDivisor {
			return nil
		}
		r.log.Info("lease has ended", "lease", uint64(lease))
		return r.endLease(r.life, lease, at)
	})
	if err != nil {
		return err
	}
	for lease := range seen {
		if !there[lease] {
			delete(seen, lease)
		}
	}
	return r.each(r.root+"e/", func(lease datanode.LeaseID, _ []byte, _ int64) error { return r.finish(r.life, lease) })
}

// each calls f with each lease under a prefix of numbers.
func (r *Registry) each(prefix string, f func(lease datanode.LeaseID, value []byte, at int64) error) error {
	from, end := prefix, clientv3.GetPrefixRangeEnd(prefix)
	for {
		reply, err := r.fetch(r.life, from, clientv3.WithRange(end), clientv3.WithLimit(datanode.LeasesMax))
		if err != nil {
			return err
		}
		for _, kv := range reply.Kvs {
			number, err := strconv.ParseUint(string(kv.Key[len(prefix):]), 16, 64)
			if err != nil {
				return datanode.Errorf(datanode.ErrCorrupt, "key %q of etcd", kv.Key)
			}
			if err := f(datanode.LeaseID(number), kv.Value, kv.ModRevision); err != nil {
				return err
			}
			from = string(kv.Key) + "\x00"
		}
		if !reply.More {
			return nil
		}
	}
}

func encodeLease(ttl time.Duration) string {
	return string(le.AppendUint64([]byte{rowVersion}, uint64(ttl)))
}

func decodeLease(b []byte) (time.Duration, error) {
	if len(b) != 9 || b[0] != rowVersion || registry.CheckTTL(time.Duration(le.Uint64(b[1:]))) != nil {
		return 0, datanode.Errorf(datanode.ErrCorrupt, "lease of %d bytes in etcd", len(b))
	}
	return time.Duration(le.Uint64(b[1:])), nil
}
