package etcd

import (
	"context"
	"crypto/rand"
	"fmt"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"plinth/datanode"
	"plinth/internal/registry"
)

const (
	// slotsMax bounds the commits of a Registry at once; more wait.
	slotsMax = 32
	// sessionTTL is much longer than a commit can take, outcome included.
	sessionTTL = time.Minute
	// sessionsMax bounds how often a commit begins again with a new session.
	sessionsMax = 3
	// resolvePause is between tries to learn an outcome.
	resolvePause = 50 * time.Millisecond
)

// session is a lease of this Registry's own, and the slots under it.
type session struct {
	lease   datanode.LeaseID
	renewed time.Duration // when the last renewal that succeeded was sent
	next    int           // number of the next new slot
	free    []*slot
}

// slot is a key that one commit at a time compares and puts.
type slot struct {
	session *session
	key     string
	at      int64 // revision of etcd that put it; 0: it is not there
}

// takeSlot returns a slot that nobody else uses, of a session that lasts.
func (r *Registry) takeSlot(ctx context.Context) (*slot, error) {
	r.beginning.Lock()
	defer r.beginning.Unlock()
	r.mu.Lock()
	lasts := r.session != nil && r.now()-r.session.renewed < sessionTTL/2
	r.mu.Unlock()
	if !lasts {
		s := &session{renewed: r.now()}
		var err error
		if s.lease, err = r.grant(ctx, sessionTTL); err != nil {
			return nil, err
		}
		r.mu.Lock()
		r.session = s
		r.mu.Unlock()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.session
	if s == nil { // another commit found that it has ended
		return nil, errSession
	}
	if n := len(s.free); n > 0 {
		last := s.free[n-1]
		s.free = s.free[:n-1]
		return last, nil
	}
	s.next++
	return &slot{session: s, key: fmt.Sprintf("%ss%x", r.underKey(s.lease), s.next)}, nil
}

// putBack frees a slot whose state is known.
func (r *Registry) putBack(s *slot) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s.session.free = append(s.session.free, s)
}

// dropSession makes the next commit begin a new session.
func (r *Registry) dropSession(s *session) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.session == s {
		r.session = nil
	}
}

// RegistryCommit applies a transaction. It is on a majority of the members at
// return.
func (r *Registry) RegistryCommit(ctx context.Context, t *datanode.RegistryTxn) (*datanode.RegistryCommitReply, error) {
	if err := registry.CheckTxn(t); err != nil {
		return nil, err
	}
	if err := r.enter(); err != nil {
		return nil, err
	}
	defer r.calls.RUnlock()
	select {
	case r.slots <- struct{}{}:
		defer func() { <-r.slots }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	ctx = context.WithoutCancel(ctx)
	p, err := r.plan(t)
	if err != nil {
		return nil, err
	}
	for range sessionsMax {
		revision, err := r.attempt(ctx, p)
		if err == nil {
			return &datanode.RegistryCommitReply{Revision: r.revision(revision)}, nil
		}
		if err != errSession {
			return nil, err
		}
	}
	return nil, datanode.Errorf(datanode.ErrUnreachable, "etcd: sessions do not last")
}

// errSession is attempt's: nothing was done, the session has ended.
var errSession = datanode.Errorf(datanode.ErrLeaseLost, "session of the registry")

// plan is a transaction as etcd gets it, without the slot.
type plan struct {
	cmps   []clientv3.Cmp
	then   []clientv3.Op
	probes []probe
}

// probe is a condition that is looked at again when some condition does not hold,
// to say which error it is.
type probe struct {
	key  string
	want string // value; "" for any
	err  *datanode.Error
}

// plan translates a transaction whose bounds were checked.
func (r *Registry) plan(t *datanode.RegistryTxn) (*plan, error) {
	p := &plan{}
	for _, g := range t.Guards {
		key, want := r.entryKey(datanode.EpochKey(g.Disk)), encodeEntry(datanode.EpochValue(g.Epoch), 0)
		p.cmps = append(p.cmps, clientv3.Compare(clientv3.Value(key), "=", want))
		p.probes = append(p.probes, probe{key, want, datanode.Errorf(datanode.ErrFenced, "disk %d, epoch %d", g.Disk, g.Epoch)})
	}
	for _, c := range t.Compares {
		if c.Revision == 0 {
			p.cmps = append(p.cmps, absent(r.entryKey(c.Key)))
			continue
		}
		if c.Revision <= r.offset || c.Revision-r.offset > 1<<62 {
			return nil, datanode.Errorf(datanode.ErrConflict, "key %q cannot have revision %d", c.Key, c.Revision)
		}
		p.cmps = append(p.cmps, unchanged(r.entryKey(c.Key), int64(c.Revision-r.offset)))
	}
	leases := make(map[datanode.LeaseID]bool)
	for _, put := range t.Puts {
		p.then = append(p.then, clientv3.OpPut(r.entryKey(put.Key), encodeEntry(put.Value, put.Lease)))
		if put.Lease == 0 {
			continue
		}
		p.then = append(p.then, clientv3.OpPut(r.underKey(put.Lease)+"k"+put.Key, ""))
		if !leases[put.Lease] {
			leases[put.Lease] = true
			p.cmps = append(p.cmps, present(r.leaseKey(put.Lease)))
			p.probes = append(p.probes, probe{r.leaseKey(put.Lease), "", datanode.Errorf(datanode.ErrLeaseLost, "lease %d", put.Lease)})
		}
	}
	for _, key := range t.Deletes {
		p.then = append(p.then, clientv3.OpDelete(r.entryKey(key)))
	}
	return p, nil
}

// attempt sends a transaction under the session and learns its outcome. Its
// revision is etcd's. Errors: errSession and those of RegistryCommit.
func (r *Registry) attempt(ctx context.Context, p *plan) (int64, error) {
	s, err := r.takeSlot(ctx)
	if err != nil {
		return 0, err
	}
	sessionKey := r.leaseKey(s.session.lease)
	mark := append([]byte{rowVersion, 0}, make([]byte, 16)...)
	rand.Read(mark[2:])
	cmps := append([]clientv3.Cmp{present(sessionKey), unchanged(s.key, s.at)}, p.cmps...)
	then := append([]clientv3.Op{clientv3.OpPut(s.key, string(mark))}, p.then...)
	if len(p.then) == 0 {
		then = nil // it only compares
	}
	otherwise := []clientv3.Op{clientv3.OpGet(sessionKey, clientv3.WithCountOnly())}
	for _, probe := range p.probes {
		otherwise = append(otherwise, clientv3.OpGet(probe.key))
	}
	reply, err := r.txn(ctx, cmps, then, otherwise)
	switch {
	case err != nil && refused(err):
		r.putBack(s)
		return 0, failed(err)
	case err != nil:
		return r.resolve(s, mark, err)
	case reply.Succeeded:
		if then != nil {
			s.at = reply.Header.Revision
		}
		r.putBack(s)
		return reply.Header.Revision, nil
	case reply.Responses[0].GetResponseRange().Count == 0:
		r.dropSession(s.session)
		return 0, errSession
	}
	r.putBack(s)
	for i, probe := range p.probes {
		kvs := reply.Responses[i+1].GetResponseRange().Kvs
		if len(kvs) == 0 || probe.want != "" && string(kvs[0].Value) != probe.want {
			return 0, probe.err
		}
	}
	return 0, datanode.Errorf(datanode.ErrConflict, "a compare does not hold")
}

// resolve learns whether a transaction whose answer did not come was applied, and
// sees to it that it will not be if it was not. cause is why it did not.
func (r *Registry) resolve(s *slot, mark []byte, cause error) (int64, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*r.opts.Timeout)
	defer cancel()
	closed := append([]byte{rowVersion, 1}, mark[2:]...)
	sessionKey := r.leaseKey(s.session.lease)
	for {
		reply, err := r.txn(ctx,
			[]clientv3.Cmp{present(sessionKey), unchanged(s.key, s.at)},
			[]clientv3.Op{clientv3.OpPut(s.key, string(closed))},
			[]clientv3.Op{clientv3.OpGet(s.key)})
		if err == nil && reply.Succeeded {
			s.at = reply.Header.Revision
			r.putBack(s)
			return 0, datanode.Errorf(datanode.ErrUnreachable, "etcd: %v", cause)
		}
		if err == nil {
			return r.outcome(s, mark, closed, reply, cause)
		}
		select {
		case <-time.After(resolvePause):
		case <-ctx.Done():
			return 0, datanode.Errorf(datanode.ErrOutcome, "etcd: %v, then %v", cause, err)
		}
	}
}

// outcome reads what a slot that changed tells.
func (r *Registry) outcome(s *slot, mark, closed []byte, reply *clientv3.TxnResponse, cause error) (int64, error) {
	kvs := reply.Responses[0].GetResponseRange().Kvs
	if len(kvs) == 1 && kvs[0].ModRevision == s.at {
		// The session has ended, and nothing under it can be applied any more.
		r.dropSession(s.session)
		return 0, datanode.Errorf(datanode.ErrUnreachable, "etcd: %v", cause)
	}
	if len(kvs) == 1 {
		switch s.at = kvs[0].ModRevision; string(kvs[0].Value) {
		case string(mark):
			r.putBack(s)
			return s.at, nil
		case string(closed): // by an earlier try
			r.putBack(s)
			return 0, datanode.Errorf(datanode.ErrUnreachable, "etcd: %v", cause)
		}
	}
	r.dropSession(s.session)
	return 0, datanode.Errorf(datanode.ErrOutcome, "etcd: %v, and the session has ended", cause)
}
