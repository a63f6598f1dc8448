package remote

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"plinth/internal/disk"
	"plinth/internal/forward"
	"plinth/internal/host"
	"plinth/internal/id"
	"plinth/nbd"
)

const (
	// openTimeMax bounds how long a client that connects waits for the disk's place:
	// less than it has for the handshake.
	openTimeMax = 8 * time.Second
	// attendTimeMax bounds how long the next place of a disk is looked for that
	// nobody asks anything.
	attendTimeMax = 2 * time.Minute
)

// Exports serves the pool's disks over NBD under the names of host.Exports, wherever
// they are: by the agent's session of the moment, or by forwarding. Snapshots are
// opened at their disk's owner.
type Exports struct{ Agent *Agent }

// List implements nbd.Exports.
func (x Exports) List(context.Context) ([]nbd.ExportInfo, error) {
	var out []nbd.ExportInfo
	h := x.Agent.Host()
	for _, d := range h.Disks() {
		f, err := h.Find(d.Name)
		if err != nil || d.State == "failed" {
			continue
		}
		e, device := x.export(f)
		out = append(out, e.Info())
		device.release()
	}
	return out, nil
}

// Describe implements nbd.Exports.
func (x Exports) Describe(ctx context.Context, name string) (nbd.ExportInfo, error) {
	e, release, err := x.Open(ctx, name)
	if err != nil {
		return nbd.ExportInfo{}, err
	}
	defer release()
	return e.Info(), nil
}

// Open implements nbd.Exports.
func (x Exports) Open(ctx context.Context, name string) (nbd.Export, func(), error) {
	ctx, cancel := context.WithTimeout(ctx, openTimeMax)
	defer cancel()
	s, err := x.Agent.serving(ctx)
	if err != nil {
		return nbd.Export{}, nil, err
	}
	f, err := s.host.Find(name)
	if err != nil {
		return nbd.Export{}, nil, nbdError(err)
	}
	if f.Suffix != "" {
		p, err := s.host.Here(ctx, f.Disk, f.Suffix)
		if err != nil {
			return nbd.Export{}, nil, nbdError(err)
		}
		f.Export, f.Bytes = p.Export, p.Export.Device.Size()
		p.Release()
	}
	e, d := x.export(f)
	if err := d.Enter(ctx); err != nil {
		d.release()
		return nbd.Export{}, nil, nbdError(err)
	}
	return e, d.release, nil
}

func nbdError(err error) error {
	for _, unknown := range []error{host.ErrUnknownDisk, host.ErrUnknownSnapshot, host.ErrElsewhere} {
		if errors.Is(err, unknown) {
			return fmt.Errorf("%w: %w", nbd.ErrUnknownExport, err)
		}
	}
	return err
}

// export makes an export and its device, which is not in use yet, until release.
func (x Exports) export(f *host.Found) (nbd.Export, *device) {
	d := &device{agent: x.Agent, number: f.Disk, suffix: f.Suffix}
	d.life, d.cancel = context.WithCancel(x.Agent.life)
	o := forward.Options{
		Find: d.find, Bytes: f.Bytes, TLS: x.Agent.tls, Gone: gone, Begun: begun, Left: d.left, Logger: x.Agent.log,
	}
	if f.Suffix == "" {
		o.Wrote, o.Unreached = d.writes, d.want
	} else if c, ok := f.Export.Device.(nbd.Changer); ok {
		o.Bitmap = c.Bitmap()
	}
	d.bitmap = o.Bitmap != ""
	d.Device = forward.New(o)
	f.Export.Device = d.Device
	return f.Export, d
}

// device is a disk, or a snapshot, as one client of this agent has it.
type device struct {
	*forward.Device
	agent  *Agent
	number id.Disk
	suffix string
	bitmap bool // it tells what has changed, which only the disk's owner can

	wrote atomic.Pointer[session] // in which the client has written last

	life   context.Context // ends at release
	cancel context.CancelFunc
	mu     sync.Mutex
	over   bool
	work   sync.WaitGroup
}

func (d *device) release() {
	d.mu.Lock()
	d.over = true
	d.mu.Unlock()
	d.cancel()
	d.work.Wait()
	d.Close()
}

// left finds the next place, so that the disk has this client there, too.
func (d *device) left() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.over {
		return
	}
	d.work.Go(func() {
		ctx, cancel := context.WithTimeout(d.life, attendTimeMax)
		defer cancel()
		_ = d.Enter(ctx) // the next request tries again
	})
}

// here is a disk that this process serves, in one session: a forward.Place's Of.
type here struct{ session *session }

// find returns the disk's place.
func (d *device) find(ctx context.Context) (forward.Place, error) {
	for {
		s, err := d.agent.serving(ctx)
		if err != nil {
			return forward.Place{}, err
		}
		p, err := s.host.Locate(ctx, d.number, d.suffix)
		switch {
		case err == nil && p.Addr != "" && d.bitmap:
			return forward.Place{}, fmt.Errorf("%w: what has changed since a snapshot is told by host %s, which serves the disk now", forward.ErrNone, p.Peer)
		case err == nil && p.Addr != "":
			return forward.Place{Addr: p.Addr, Export: peerName(d.number, d.suffix), While: p.While}, nil
		case err == nil:
			return forward.Place{Local: p.Export.Device, Release: p.Release, While: p.While, Of: here{s}}, nil
		case s.broken() || ctx.Err() == nil && errors.Is(err, host.ErrClosed):
			if err := d.agent.await(ctx, s); err != nil {
				return forward.Place{}, err
			}
		case errors.Is(err, host.ErrUnknownDisk), errors.Is(err, host.ErrUnknownSnapshot), errors.Is(err, host.ErrElsewhere), errors.Is(err, disk.ErrFailed):
			return forward.Place{}, fmt.Errorf("%w: %w", forward.ErrNone, err)
		default:
			return forward.Place{}, err
		}
	}
}

// gone reports whether an error of a place in this process says that the disk has
// left it: with the session, its lease, or to another host.
func gone(of any, err error) bool { return of.(here).session.broken() || host.Left(err) }

// begun is forward.Options.Begun. Where the session goes on, so does the data node, and
// has in its log what it said.
func begun(left any, err error) []forward.Piece {
	var part *disk.Interrupted
	if !errors.As(err, &part) {
		return nil
	}
	return []forward.Piece{
		{Bytes: part.Logged, Epoch: part.Epoch, Pos: part.LoggedAt, Sure: !left.(here).session.broken()},
		{Bytes: part.Doubt, Epoch: part.Epoch, Pos: part.DoubtAt},
	}
}

// Disks remember what was done for longer than it is sent again.
const _ = uint(disk.DoneTime - forward.ResendTimeMax - time.Minute)

// writes has this host ask for the disk if a client's first write in a session goes to
// a peer, and with no later one: or else clients at two hosts that both write would toss
// it about, and an operator could not move it from who writes.
func (d *device) writes(peer bool) {
	if s := d.agent.now.Load(); d.wrote.Swap(s) != s && peer {
		s.host.Want(d.number)
	}
}

// want asks for a disk whose host this one does not reach.
func (d *device) want() { d.agent.Host().Want(d.number) }

// serving returns the session of the moment, or the next one, for which it waits.
func (a *Agent) serving(ctx context.Context) (*session, error) {
	for {
		s := a.now.Load()
		if !s.broken() {
			return s, nil
		}
		if err := a.await(ctx, s); err != nil {
			return nil, err
		}
	}
}

// await waits for the session that follows one that has ended.
func (a *Agent) await(ctx context.Context, s *session) error {
	select {
	case <-s.over:
	case <-ctx.Done():
		return ctx.Err()
	case <-a.life.Done():
		return fmt.Errorf("%w: %w", forward.ErrNone, nbd.ErrShutdown)
	}
	if s.next == nil {
		return fmt.Errorf("%w: %w", forward.ErrNone, a.failed)
	}
	return nil
}
