package etcd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	clientv3 "go.etcd.io/etcd/client/v3"

	"plinth/datanode"
	"plinth/internal/registry"
)

// dumpTriesMax bounds how often a dump begins again because etcd forgot the
// revision that it was reading.
const dumpTriesMax = 3

// Dump returns the whole registry at one revision as bytes that registry.Restore
// and Restore take, and that revision. Errors: ErrNoSpace (registry.DumpBytesMax).
func (r *Registry) Dump(ctx context.Context) ([]byte, uint64, error) {
	if err := r.enter(); err != nil {
		return nil, 0, err
	}
	defer r.calls.RUnlock()
	for try := 1; ; try++ {
		d, err := r.dump(ctx)
		if errors.Is(err, datanode.ErrCompacted) && try < dumpTriesMax {
			continue
		}
		if err != nil {
			return nil, 0, fmt.Errorf("dump registry: %w", err)
		}
		return d.Encode(), d.Revision, nil
	}
}

func (r *Registry) dump(ctx context.Context) (*registry.Dump, error) {
	d := &registry.Dump{}
	at, after, bytes := int64(0), "", 0
	var entries []datanode.RegistryEntry
	for {
		some, read, err := r.span(ctx, "", after, datanode.RegistryPageMax, at)
		if err != nil {
			return nil, err
		}
		if at = read; len(some) == 0 {
			break
		}
		for i := range some {
			bytes += len(some[i].Key) + len(some[i].Value)
		}
		if bytes > registry.DumpBytesMax {
			return nil, datanode.Errorf(datanode.ErrNoSpace, "a dump of more than %d bytes", registry.DumpBytesMax)
		}
		entries = append(entries, some...)
		after = some[len(some)-1].Key
	}
	d.Revision = r.revision(at)
	used := make(map[datanode.LeaseID]bool)
	for _, e := range entries {
		if e.Lease != 0 && !used[e.Lease] {
			reply, err := r.fetch(ctx, r.leaseKey(e.Lease), clientv3.WithRev(at))
			if err != nil {
				return nil, err
			}
			if len(reply.Kvs) == 0 {
				continue // it was ending
			}
			ttl, err := decodeLease(reply.Kvs[0].Value)
			if err != nil {
				return nil, err
			}
			used[e.Lease] = true
			d.Leases = append(d.Leases, registry.Lease{ID: e.Lease, TTL: ttl})
		}
		d.Entries = append(d.Entries, e)
	}
	if len(d.Leases) > datanode.LeasesMax {
		return nil, datanode.Errorf(datanode.ErrNoSpace, "a dump of %d leases", len(d.Leases))
	}
	return d, nil
}

// Restore makes a registry in etcd, where there is none, from a dump. Its
// revisions are above all that the dumped one gave out, also after the dump was
// made. The leases last their TTL from when a Registry is opened. Interrupted, it
// leaves what Open refuses and Restore begins again. Errors: kv.ErrForeign,
// kv.ErrNewer, ErrConflict (there is a registry), those of Open.
func Restore(ctx context.Context, opts Options, dump []byte) error {
	d, err := registry.ParseDump(dump)
	if err != nil {
		return fmt.Errorf("restore registry in etcd: %w", err)
	}
	r, err := connect(opts)
	if err != nil {
		return err
	}
	defer r.client.Close()
	if err := r.restore(ctx, d); err != nil {
		return fmt.Errorf("restore registry %s in etcd: %w", r.root, failed(err))
	}
	return nil
}

func (r *Registry) restore(ctx context.Context, d *registry.Dump) error {
	metaKey, restoring := r.root+"meta", r.root+"restoring"
	begun, err := r.txn(ctx, []clientv3.Cmp{absent(metaKey)}, []clientv3.Op{clientv3.OpPut(restoring, "")}, nil)
	if err != nil {
		return err
	}
	if !begun.Succeeded {
		return datanode.Errorf(datanode.ErrConflict, "there is a registry")
	}
	for _, part := range []string{"k/", "l/", "e/", "a/"} {
		if _, err := r.txn(ctx, nil, []clientv3.Op{clientv3.OpDelete(r.root+part, clientv3.WithPrefix())}, nil); err != nil {
			return err
		}
	}
	m := meta{Version: metaVersion}
	if lowest := d.Revision + registry.RestoreGap; lowest > uint64(begun.Header.Revision) {
		m.Offset = lowest - uint64(begun.Header.Revision)
	}
	if err := r.fill(ctx, d); err != nil {
		return err
	}
	value, err := json.Marshal(m)
	if err != nil {
		return err
	}
	done, err := r.txn(ctx, []clientv3.Cmp{absent(metaKey), unchanged(restoring, begun.Header.Revision)},
		[]clientv3.Op{clientv3.OpPut(metaKey, string(value)), clientv3.OpDelete(restoring)}, nil)
	if err == nil && !done.Succeeded {
		err = datanode.Errorf(datanode.ErrConflict, "it is being restored twice")
	}
	return err
}

// fill puts leases and entries, some at a time.
func (r *Registry) fill(ctx context.Context, d *registry.Dump) error {
	var ops []clientv3.Op
	bytes := 0
	flush := func() error {
		_, err := r.txn(ctx, nil, ops, nil)
		ops, bytes = nil, 0
		return err
	}
	for _, l := range d.Leases {
		ops = append(ops, clientv3.OpPut(r.leaseKey(l.ID), encodeLease(l.TTL)))
		if len(ops) >= datanode.RegistryOpsMax {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	for _, e := range d.Entries {
		if len(ops)+2 > datanode.RegistryOpsMax || bytes > datanode.RegistryTxnBytesMax-datanode.RegistryValueBytesMax {
			if err := flush(); err != nil {
				return err
			}
		}
		ops = append(ops, clientv3.OpPut(r.entryKey(e.Key), encodeEntry(e.Value, e.Lease)))
		if e.Lease != 0 {
			ops = append(ops, clientv3.OpPut(r.underKey(e.Lease)+"k"+e.Key, ""))
		}
		bytes += 2*len(e.Key) + len(e.Value)
	}
	return flush()
}
