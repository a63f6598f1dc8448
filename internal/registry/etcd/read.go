package etcd

import (
	"context"
	"errors"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"plinth/datanode"
	"plinth/internal/registry"
)

const (
	// fetchMax bounds the entries of one answer of etcd: 32 MiB if all have the
	// largest values.
	fetchMax    = 128
	watchEvents = 256
	// watchPause is before a watch that failed is made anew.
	watchPause = 100 * time.Millisecond
)

// RegistryGet returns a key's value.
func (r *Registry) RegistryGet(ctx context.Context, q *datanode.RegistryGetRequest) (*datanode.RegistryGetReply, error) {
	if err := registry.CheckKey(q.Key); err != nil {
		return nil, err
	}
	if err := r.enter(); err != nil {
		return nil, err
	}
	defer r.calls.RUnlock()
	reply, err := r.fetch(ctx, r.entryKey(q.Key))
	if err != nil {
		return nil, err
	}
	if len(reply.Kvs) == 0 {
		return nil, datanode.Errorf(datanode.ErrNotFound, "registry key %q", q.Key)
	}
	e, err := r.entry(reply.Kvs[0])
	if err != nil {
		return nil, err
	}
	return &datanode.RegistryGetReply{Value: e.Value, Revision: e.Revision, Lease: e.Lease}, nil
}

// RegistryList returns a page.
func (r *Registry) RegistryList(ctx context.Context, q *datanode.RegistryListRequest) (*datanode.RegistryListReply, error) {
	most, err := registry.CheckList(q)
	if err != nil {
		return nil, err
	}
	if err := r.enter(); err != nil {
		return nil, err
	}
	defer r.calls.RUnlock()
	at := int64(0)
	if q.At != 0 {
		if q.At <= r.offset || q.At-r.offset > 1<<62 {
			return nil, datanode.Errorf(datanode.ErrCompacted, "revision %d", q.At)
		}
		at = int64(q.At - r.offset)
	}
	entries, at, err := r.span(ctx, q.Prefix, q.After, most, at)
	if err != nil {
		return nil, err
	}
	reply := &datanode.RegistryListReply{Revision: r.revision(at)}
	reply.Entries, reply.More = registry.Page(entries, most)
	return reply, nil
}

// span reads entries with a prefix above after: more than a page, if there are so
// many. at is etcd's revision, 0 for now, and the one that was read.
func (r *Registry) span(ctx context.Context, prefix, after string, most int, at int64) ([]datanode.RegistryEntry, int64, error) {
	from, end := r.entryKey(prefix), clientv3.GetPrefixRangeEnd(r.entryKey(prefix))
	if after != "" && after >= prefix {
		from = r.entryKey(after) + "\x00"
	}
	var entries []datanode.RegistryEntry
	bytes, more := 0, true
	for more && len(entries) <= most && bytes <= datanode.RegistryPageBytesMax {
		if from >= end {
			// Nothing is above; what is asked is the revision.
			from, end = r.root+"meta", r.root+"meta"
		}
		reply, err := r.fetch(ctx, from, clientv3.WithRange(end), clientv3.WithRev(at),
			clientv3.WithLimit(int64(min(fetchMax, most+1-len(entries)))))
		if err != nil {
			return nil, 0, err
		}
		if at == 0 {
			at = reply.Header.Revision
		}
		for _, kv := range reply.Kvs {
			e, err := r.entry(kv)
			if err != nil {
				return nil, 0, err
			}
			bytes += len(e.Key) + len(e.Value)
			entries = append(entries, e)
			from = string(kv.Key) + "\x00"
		}
		more = reply.More
	}
	return entries, at, nil
}

// RegistryWatch waits for changes.
func (r *Registry) RegistryWatch(ctx context.Context, q *datanode.RegistryWatchRequest) (*datanode.RegistryWatchReply, error) {
	if err := registry.CheckWatch(q); err != nil {
		return nil, err
	}
	if err := r.enter(); err != nil {
		return nil, err
	}
	defer r.calls.RUnlock()
	if q.After < r.offset || q.After-r.offset > 1<<62 {
		return nil, datanode.Errorf(datanode.ErrCompacted, "revision %d", q.After)
	}
	wait := q.Wait
	if wait == 0 {
		wait = datanode.RegistryWatchMax
	}
	within, cancel := context.WithTimeout(clientv3.WithRequireLeader(ctx), wait)
	defer cancel()
	defer context.AfterFunc(r.life, cancel)()
	for {
		reply, err := r.watchOnce(within, q)
		if err != nil || reply != nil {
			return reply, err
		}
		select {
		case <-time.After(watchPause):
			continue
		case <-within.Done():
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if r.life.Err() != nil {
			return nil, datanode.ErrClosed
		}
		return &datanode.RegistryWatchReply{Revision: q.After}, nil
	}
}

// watchOnce waits for the first changes; nil for none before ctx ended or the
// watch broke.
func (r *Registry) watchOnce(ctx context.Context, q *datanode.RegistryWatchRequest) (*datanode.RegistryWatchReply, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	after := int64(q.After - r.offset)
	changes := r.client.Watch(ctx, r.entryKey(q.Prefix), clientv3.WithRange(clientv3.GetPrefixRangeEnd(r.entryKey(q.Prefix))),
		clientv3.WithRev(after+1), clientv3.WithCreatedNotify())
	for got := range changes {
		switch err := got.Err(); {
		case got.CompactRevision != 0, errors.Is(err, rpctypes.ErrCompacted), errors.Is(err, rpctypes.ErrFutureRev):
			return nil, datanode.Errorf(datanode.ErrCompacted, "revision %d", q.After)
		case err != nil && refused(err):
			return nil, failed(err)
		case err != nil:
			return nil, nil
		case got.Header.Revision < after: // a member that is behind, or another registry
			reply, err := r.fetch(ctx, r.root+"meta")
			if err != nil {
				return nil, nil
			}
			if reply.Header.Revision < after {
				return nil, datanode.Errorf(datanode.ErrCompacted, "revision %d is not reached", q.After)
			}
		case len(got.Events) > 0:
			return r.events(got.Events, q)
		}
	}
	return nil, nil
}

// events translates what a watch got, whole revisions, up to the one with which
// the page is full.
func (r *Registry) events(got []*clientv3.Event, q *datanode.RegistryWatchRequest) (*datanode.RegistryWatchReply, error) {
	enough := q.Max
	if enough == 0 {
		enough = watchEvents
	}
	reply := &datanode.RegistryWatchReply{}
	bytes := 0
	for _, ev := range got {
		e := datanode.RegistryEvent{
			Key: string(ev.Kv.Key[len(r.entryKey("")):]), Revision: r.revision(ev.Kv.ModRevision), Deleted: ev.Type == clientv3.EventTypeDelete,
		}
		if (len(reply.Events) >= enough || bytes >= datanode.RegistryPageBytesMax) && reply.Revision < e.Revision {
			break
		}
		if !e.Deleted {
			var err error
			if e.Value, e.Lease, err = decodeEntry(ev.Kv); err != nil {
				return nil, err
			}
		}
		bytes += len(e.Key) + len(e.Value)
		reply.Events = append(reply.Events, e)
		reply.Revision = e.Revision
	}
	return reply, nil
}
