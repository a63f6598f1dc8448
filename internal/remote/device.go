package remote

import (
	"context"
	"errors"
	"sync/atomic"

	"plinth/internal/disk"
	"plinth/internal/host"
	"plinth/nbd"
)

// Exports serves the agent's disks over NBD, as host.Exports does; requests of a
// session that has ended wait for the next one.
type Exports struct{ Agent *Agent }

// List implements nbd.Exports.
func (x Exports) List(ctx context.Context) ([]nbd.ExportInfo, error) {
	return host.Exports{Host: x.Agent.Host()}.List(ctx)
}

// Describe implements nbd.Exports.
func (x Exports) Describe(ctx context.Context, name string) (info nbd.ExportInfo, err error) {
	err = x.Agent.in(ctx, x.Agent.now.Load(), func(s *session) error {
		info, err = host.Exports{Host: s.host}.Describe(ctx, name)
		return err
	})
	return info, err
}

// Open implements nbd.Exports.
func (x Exports) Open(ctx context.Context, name string) (nbd.Export, func(), error) {
	a := x.Agent
	d := &device{agent: a}
	var export nbd.Export
	err := a.in(ctx, a.now.Load(), func(s *session) error {
		o, err := a.open(ctx, s, name)
		if err != nil {
			return err
		}
		d.name, export = o.Name, o.Export // the canonical name
		d.at.Store(o)
		if !a.register(s, d) {
			o.release()
			return errEnded
		}
		return nil
	})
	if err != nil {
		return nbd.Export{}, nil, err
	}
	export.Device = d
	if _, changes := d.at.Load().Device.(nbd.Changer); changes {
		export.Device = &changer{d}
	}
	return export, func() { a.forget(d) }, nil
}

// errEnded says that a session ended before the call could be counted in it.
var errEnded = errors.New("the session with the data node has ended")

// in does something in a session, and as long as that ends meanwhile, in the next.
func (a *Agent) in(ctx context.Context, s *session, do func(*session) error) error {
	for {
		err := do(s)
		if err == nil || ctx.Err() != nil || !s.broken() {
			return err
		}
		if s, err = a.await(ctx, s, err); err != nil {
			return err
		}
	}
}

// await returns the session that follows one that ended with err.
func (a *Agent) await(ctx context.Context, s *session, err error) (*session, error) {
	select {
	case <-s.over:
	case <-ctx.Done():
		return nil, errors.Join(ctx.Err(), err)
	case <-a.life.Done():
		return nil, host.ErrClosed
	}
	if s.next == nil {
		return nil, errors.Join(a.failed, err)
	}
	return s.next, nil
}

// opened is an export in one session.
type opened struct {
	nbd.Export
	session *session
	release func()
	err     error // why there is none
}

func (a *Agent) open(ctx context.Context, s *session, name string) (*opened, error) {
	e, release, err := host.Exports{Host: s.host}.Open(ctx, name)
	if err != nil {
		return nil, err
	}
	return &opened{Export: e, session: s, release: release}, nil
}

// register counts a device that was opened in a session, unless that has ended.
func (a *Agent) register(s *session, d *device) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.between || a.now.Load() != s {
		return false
	}
	a.devices[d] = struct{}{}
	return true
}

func (a *Agent) forget(d *device) {
	a.mu.Lock()
	delete(a.devices, d)
	o := d.at.Load()
	a.mu.Unlock()
	if o.err == nil {
		o.release()
	}
}

// releaseDevices lets go of what was open in a session, whose host is closed. From
// here on no device is opened in it.
func (a *Agent) releaseDevices(s *session) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.between = true
	for d := range a.devices {
		o := d.at.Load()
		if o.err == nil {
			o.release()
		}
		d.at.Store(&opened{Export: o.Export, session: s, err: errEnded})
	}
}

// openDevices opens in a new session what clients have open. What does not open
// there will fail all requests, unless the session has ended, too.
func (a *Agent) openDevices(s *session) (map[*device]*opened, error) {
	a.mu.Lock()
	all := make(map[*device]*opened, len(a.devices))
	for d := range a.devices {
		all[d] = nil
	}
	a.mu.Unlock()
	for d := range all {
		o, err := a.open(a.life, s, d.name)
		if err != nil {
			o = &opened{Export: d.at.Load().Export, session: s, err: err}
		}
		all[d] = o
	}
	if !s.broken() {
		return all, nil
	}
	for _, o := range all {
		if o.err == nil {
			o.release()
		}
	}
	return nil, errEnded
}

// publish lets clients go on in a session.
func (a *Agent) publish(last, next *session, all map[*device]*opened) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for d, o := range all {
		if _, there := a.devices[d]; there {
			d.at.Store(o)
		} else if o.err == nil {
			o.release()
		}
		if o.err != nil {
			a.log.Error("an export that has clients does not open any more", "export", d.name, "err", o.err)
		}
	}
	a.between = false
	a.now.Store(next)
	last.next = next
	close(last.over)
}

// device is an export that outlives sessions.
type device struct {
	agent *Agent
	name  string
	at    atomic.Pointer[opened]
}

// do does a call in the newest session, and as long as that ends meanwhile, in the
// next. again is called before each next one.
func (d *device) do(ctx context.Context, call func(nbd.Device) error, again func(s *session, err error)) error {
	for {
		o := d.at.Load()
		err := o.err
		if err == nil {
			err = call(o.Device)
		}
		if errors.Is(err, host.ErrNoLease) {
			o.session.guard.end("the host's own has")
		}
		if err == nil || ctx.Err() != nil || !o.session.broken() {
			return err
		}
		next, werr := d.agent.await(ctx, o.session, err)
		if werr != nil {
			return werr
		}
		if again != nil {
			again(next, err)
		}
	}
}

// change does a call that changes n bytes, of which each is done once.
func (d *device) change(ctx context.Context, n int64, call func(dev nbd.Device, done int64) error) error {
	done := int64(0)
	return d.do(ctx, func(dev nbd.Device) error {
		if done == n && n > 0 { // only the answer was wanting
			return dev.Flush(ctx)
		}
		return call(dev, done)
	}, func(next *session, err error) {
		var part *disk.Interrupted
		if !errors.As(err, &part) {
			return
		}
		done += part.Logged
		if part.Doubt > 0 && next.host.Resumed(d.name) {
			done += part.Doubt
		}
	})
}

func (d *device) Size() int64 { return d.at.Load().Device.Size() }

func (d *device) ReadAt(ctx context.Context, p []byte, off int64) error {
	return d.do(ctx, func(dev nbd.Device) error { return dev.ReadAt(ctx, p, off) }, nil)
}

// TryReadAt implements nbd.TryReader.
func (d *device) TryReadAt(p []byte, off int64) bool {
	o := d.at.Load()
	dev, ok := o.Device.(nbd.TryReader)
	return ok && o.err == nil && dev.TryReadAt(p, off)
}

func (d *device) WriteAt(ctx context.Context, p []byte, off int64, fua bool) error {
	return d.change(ctx, int64(len(p)), func(dev nbd.Device, done int64) error {
		return dev.WriteAt(ctx, p[done:], off+done, fua)
	})
}

func (d *device) Trim(ctx context.Context, off, n int64, fua bool) error {
	return d.change(ctx, n, func(dev nbd.Device, _ int64) error { return dev.Trim(ctx, off, n, fua) })
}

func (d *device) Zero(ctx context.Context, off, n int64, mayTrim, fua bool) error {
	return d.change(ctx, n, func(dev nbd.Device, _ int64) error { return dev.Zero(ctx, off, n, mayTrim, fua) })
}

func (d *device) Flush(ctx context.Context) error {
	return d.do(ctx, func(dev nbd.Device) error { return dev.Flush(ctx) }, nil)
}

// Extents implements nbd.Extenter. What each was told is told once.
func (d *device) Extents(ctx context.Context, off, n int64, each func(nbd.Extent) bool) error {
	told := false
	return d.do(ctx, func(dev nbd.Device) error {
		err := dev.(nbd.Extenter).Extents(ctx, off, n, func(e nbd.Extent) bool {
			told = true
			return each(e)
		})
		if told { // it may end early, and does before the next session
			return nil
		}
		return err
	}, nil)
}

// ZeroIsFast implements nbd.FastZeroer.
func (d *device) ZeroIsFast(off, n int64, mayTrim bool) bool {
	dev, ok := d.at.Load().Device.(nbd.FastZeroer)
	return ok && dev.ZeroIsFast(off, n, mayTrim)
}

// Prefetch implements nbd.Prefetcher.
func (d *device) Prefetch(ctx context.Context, off, n int64) error {
	return d.do(ctx, func(dev nbd.Device) error { return dev.(nbd.Prefetcher).Prefetch(ctx, off, n) }, nil)
}

// changer is a device that tells what has changed, an nbd.Changer.
type changer struct{ *device }

func (c *changer) Bitmap() string { return c.at.Load().Device.(nbd.Changer).Bitmap() }

func (c *changer) Changes(ctx context.Context, off, n int64, each func(int64, bool) bool) error {
	told := false
	return c.do(ctx, func(dev nbd.Device) error {
		err := dev.(nbd.Changer).Changes(ctx, off, n, func(n int64, dirty bool) bool {
			told = true
			return each(n, dirty)
		})
		if told {
			return nil
		}
		return err
	}, nil)
}
