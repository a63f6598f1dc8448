package host

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"plinth/datanode"
	"plinth/internal/id"
	"plinth/internal/owner"
)

// owning carries out what package owner decides for this host: one goroutine has
// the machine, others make the calls and tell it what came of them. It begins when
// the host opens and ends when its disks are closed.
type owning struct {
	host    *Host
	catalog catalog
	node    datanode.FragmentNode
	opts    Options
	log     *slog.Logger
	life    string
	clock   func() time.Duration
	home    *home    // nil of a sole host
	over    []string // lives that are known to be over

	mu   sync.Mutex
	gone []string // reservations of lives whose row was in the way
	said string   // why there was no session, last
	// waiting are those who wait for a disk to be served, or not.
	waiting map[id.Disk][]chan error

	machine *owner.Machine // the loop's
	term    atomic.Pointer[term]
	events  chan message
	// opened are disks that the machine has not had served yet, closing those that
	// are being closed, opening the last open of each. All are the loop's.
	opened  map[id.Disk]opened
	closing map[id.Disk]<-chan struct{}
	opening map[id.Disk]*opening
	atOnce  chan struct{}   // room for disksAtOnce
	ctx     context.Context // ends with it
	cancel  context.CancelFunc
	work    sync.WaitGroup
	// tried has what came of the newest attempt at a session: nil for success.
	tried chan error
}

// revokeTimeMax bounds how long a host that ends waits to give up its session.
const revokeTimeMax = 5 * time.Second

// retryTimeMax bounds the pause before what failed is tried again.
const retryTimeMax = 500 * time.Millisecond

// callTime bounds a call to the registry: the machine asks again after that.
func (o *owning) callTime() time.Duration { return o.opts.LeaseTTL / 3 }

// hasLease reports whether the host may reply.
func (o *owning) hasLease() bool {
	t := o.term.Load()
	return t != nil && t.valid()
}

func (o *owning) retry() time.Duration { return min(o.opts.LeaseTTL/20, retryTimeMax) }

// openOwning begins the host's session, and waits for it. Errors: ErrInUse, if the
// name is that of another host that lives.
func openOwning(ctx context.Context, h *Host) (*owning, error) {
	opts := h.opts
	o := &owning{
		host: h, catalog: h.catalog, node: h.node, opts: opts, log: opts.Logger, life: newLife(), clock: opts.clock,
		events: make(chan message), tried: make(chan error, 1), opened: make(map[id.Disk]opened),
		closing: make(map[id.Disk]<-chan struct{}), opening: make(map[id.Disk]*opening), atOnce: make(chan struct{}, disksAtOnce), waiting: make(map[id.Disk][]chan error),
	}
	if !opts.Sole {
		var err error
		if o.home, o.over, err = openHome(opts.FS, opts.Dir, o.life); err != nil {
			return nil, err
		}
	}
	o.machine = owner.New(opts.Name, owner.Options{TTL: opts.LeaseTTL, Retry: o.retry()})
	o.ctx, o.cancel = context.WithCancel(context.Background())
	o.work.Add(1)
	go o.loop()
	if err := o.awaitSession(ctx); err != nil {
		o.stop()
		return nil, errors.Join(fmt.Errorf("begin the session of host %q: %w", opts.Name, err), o.giveUp())
	}
	if o.home != nil {
		if err := o.home.alone(); err != nil {
			o.stop()
			return nil, errors.Join(err, o.giveUp())
		}
	}
	o.giveUpReservations(ctx)
	return o, nil
}

// reservation is the name under which a life of a host reserves space. No other
// life uses it, so that who gives up what a dead one had cannot mean a new one's.
func (o *owning) reservation(life string) string { return o.opts.Name + "/" + life }

// goes notes a life whose reservation is to be given up.
func (o *owning) goes(life string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if name := o.reservation(life); !slices.Contains(o.gone, name) {
		o.gone = append(o.gone, name)
	}
}

// giveUpReservations gives back what earlier lives had reserved: what they
// acknowledged is reserved by who replays it.
func (o *owning) giveUpReservations(ctx context.Context) {
	o.mu.Lock()
	gone := o.gone
	o.gone = nil
	o.mu.Unlock()
	for _, life := range gone {
		for _, name := range []string{life, life + drainReservation} {
			if err := o.node.Reserve(ctx, &datanode.ReserveRequest{Host: name}); err != nil {
				o.log.Warn("the space that an earlier life had reserved was not given back", "reservation", name, "err", err)
			}
		}
	}
}

// awaitSession waits for the first lease, and where the name is in use for as long
// as a host that died may have had it.
func (o *owning) awaitSession(ctx context.Context) error {
	var patience <-chan time.Time
	var rival *rivalError
	for {
		select {
		case err := <-o.tried:
			if err == nil {
				return nil
			}
			if !errors.As(err, &rival) {
				return err
			}
			if patience == nil {
				o.log.Info("waits for the end of an earlier session", "host", o.opts.Name, "life", rival.has.Life)
				patience = time.After(rival.has.ttl() + o.opts.LeaseTTL/2)
			}
		case <-patience:
			return rival
		case <-ctx.Done():
			return errors.Join(ctx.Err(), errorOf(rival))
		}
	}
}

func errorOf(r *rivalError) error {
	if r == nil {
		return nil
	}
	return r
}

// stop ends the loop and all that it has begun: no disk is opened any more. The
// lease lasts for what is left of it.
func (o *owning) stop() {
	o.cancel()
	o.work.Wait()
	for d, n := range o.opened {
		delete(o.opened, d)
		o.shut(d, n.e)
	}
	o.work.Wait()
}

// giveUp ends the session after stop: what it had is free for others at once.
// Nothing may be served any more.
func (o *owning) giveUp() error {
	var err error
	if t := o.term.Load(); t != nil {
		t.lost.Store(true)
		ctx, cancel := context.WithTimeout(context.Background(), min(revokeTimeMax, o.callTime()))
		defer cancel()
		if err := o.revoke(ctx, t.lease); err != nil {
			o.log.Warn("the session was not given up: others wait for its end", "host", o.opts.Name, "err", err)
		} else {
			o.goes(o.life)
			o.giveUpReservations(ctx)
		}
	}
	if o.home != nil {
		err = o.home.Close()
	}
	return err
}

// loop gives the machine events and time. After the machine was suspended it wakes
// late, which harms nobody: who replies looks at the clock.
func (o *owning) loop() {
	defer o.work.Done()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		var m message
		select {
		case <-o.ctx.Done():
			return
		case m = <-o.events:
		case <-timer.C:
		}
		o.keepOpened(m)
		o.step(m.event)
		o.discard(m)
		o.endOpen(m)
		timer.Reset(max(o.machine.Wake()-o.clock(), time.Millisecond))
	}
}

// step is one of the machine's: what it decides about the lease counts before its
// actions are carried out.
func (o *owning) step(e owner.Event) {
	actions := o.machine.Step(o.clock(), e)
	lease := o.machine.Lease()
	t := o.term.Load()
	if t != nil && t.lease != lease {
		t.lost.Store(true)
		o.log.Warn("the session has ended: nothing is served until there is another one", "host", o.opts.Name, "lease", uint64(t.lease))
		t = nil
	}
	if lease != 0 {
		began := t == nil
		if began {
			t = &term{lease: lease, clock: o.clock}
		}
		until := int64(o.machine.Until())
		if o.opts.Sole {
			until = math.MaxInt64 // its lock says so, and nobody can take what it has
		}
		t.until.Store(until)
		if began {
			defer o.tell(nil)
		}
	}
	o.term.Store(t)
	for _, a := range actions {
		o.carry(a)
	}
}

// tell says what came of an attempt at a session, to who waits for the first one.
func (o *owning) tell(err error) {
	select {
	case <-o.tried:
	default:
	}
	select {
	case o.tried <- err:
	default:
	}
}

// send tells the machine of an event.
func (o *owning) send(e owner.Event) { o.tellLoop(message{event: e}) }

func (o *owning) tellLoop(m message) {
	select {
	case o.events <- m:
	case <-o.ctx.Done():
		if m.e != nil && m.e.disk != nil {
			_ = m.e.disk.Close() // it was not served
		}
	}
}

// carry begins what an action asks for.
func (o *owning) carry(a owner.Action) {
	switch a.Do {
	case owner.Grant:
		o.call(func(ctx context.Context) owner.Event {
			lease, err := o.grant(ctx, a.TTL)
			if o.news(err) {
				o.log.Warn("no session yet, will retry", "host", o.opts.Name, "err", err)
			}
			if err != nil {
				o.tell(err)
			}
			return owner.Granted{Call: a.Call, Outcome: outcomeOf(err), Lease: lease}
		})
	case owner.KeepAlive:
		o.call(func(ctx context.Context) owner.Event {
			err := o.catalog.node.RegistryKeepAlive(ctx, &datanode.RegistryKeepAliveRequest{Lease: a.Lease})
			return owner.KeptAlive{Call: a.Call, Outcome: outcomeOf(err)}
		})
	default:
		o.carryDisk(a)
	}
}

// news reports whether an attempt at a session failed as none did before.
func (o *owning) news(err error) bool {
	text := ""
	if err != nil {
		text = err.Error()
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	news := text != o.said
	o.said = text
	return news && err != nil
}

// call makes a call beside the loop.
func (o *owning) call(do func(context.Context) owner.Event) {
	o.work.Add(1)
	go func() {
		defer o.work.Done()
		ctx, cancel := context.WithTimeout(o.ctx, o.callTime())
		defer cancel()
		o.send(do(ctx))
	}()
}

// outcomeOf says what an error of the registry or a data node means.
func outcomeOf(err error) owner.Outcome {
	switch {
	case err == nil:
		return owner.Done
	case errors.Is(err, datanode.ErrConflict):
		return owner.Refused
	case errors.Is(err, datanode.ErrLeaseLost):
		return owner.Lost
	case errors.Is(err, datanode.ErrFenced):
		return owner.Overtaken
	}
	return owner.Failed
}

// grant asks for a lease and puts the host's row under it. A row of a life that is
// known to be over goes at once, and what it owned with it.
func (o *owning) grant(ctx context.Context, ttl time.Duration) (datanode.LeaseID, error) {
	for {
		if ctx.Err() != nil { // the next attempt may have a lease that must not be revoked
			return 0, ctx.Err()
		}
		reply, err := o.catalog.node.RegistryGrant(ctx, &datanode.RegistryGrantRequest{TTL: ttl})
		if err != nil {
			return 0, err
		}
		err = o.putHost(ctx, reply.Lease, ttl)
		if err == nil {
			return reply.Lease, nil
		}
		if rerr := o.revoke(ctx, reply.Lease); rerr != nil {
			return 0, errors.Join(err, rerr)
		}
		if !errors.Is(err, datanode.ErrConflict) {
			return 0, err
		}
		has, err := o.catalog.hostRecord(ctx, o.opts.Name)
		if err != nil {
			return 0, err
		}
		if has == nil {
			continue // it has just gone
		}
		if has.Life != o.life {
			o.goes(has.Life)
		}
		if !o.isOver(has) {
			return 0, &rivalError{has}
		}
		if ctx.Err() != nil {
			return 0, ctx.Err()
		}
		if err := o.revoke(ctx, has.lease); err != nil {
			return 0, err
		}
	}
}

// isOver reports whether the life that a row names is known to be over: one of this
// directory, or this very one, whose lease has ended. A sole host has the lock of
// the data node's directory, which every sole host had for as long as it lived.
func (o *owning) isOver(r *HostRecord) bool {
	return r.Life == o.life || slices.Contains(o.over, r.Life) || r.Sole && o.opts.Sole
}

func (o *owning) putHost(ctx context.Context, lease datanode.LeaseID, ttl time.Duration) error {
	row, err := json.Marshal(&HostRecord{
		Version: hostRowVersion, Life: o.life, Sole: o.opts.Sole, TTL: ttl.Seconds(), Peer: o.opts.Peer, Lends: o.opts.lends(), Began: time.Now().UTC().Truncate(time.Second),
		Layouts: o.host.learnt.Load(),
	})
	if err != nil {
		return err
	}
	key := hostKey(o.opts.Name)
	_, err = o.catalog.decide(ctx, &datanode.RegistryTxn{
		Compares: []datanode.Compare{{Key: key}}, Puts: []datanode.Put{{Key: key, Value: row, Lease: lease}},
	}, key, row)
	if err != nil {
		return fmt.Errorf("%s of the registry: %w", key, err)
	}
	return nil
}

// revoke ends a lease.
func (o *owning) revoke(ctx context.Context, lease datanode.LeaseID) error {
	return o.catalog.node.RegistryRevoke(ctx, &datanode.RegistryRevokeRequest{Lease: lease})
}
