package host

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"plinth/datanode"
	"plinth/internal/disk"
	"plinth/internal/id"
	"plinth/internal/keyring"
	"plinth/internal/owner"
	"plinth/nbd"
)

// Place is where a disk is served: by this host, with an Export, or by a peer.
type Place struct {
	// Export is the disk, or a snapshot of it, as this host has it open. Release is
	// called once when nobody uses it any more.
	Export  nbd.Export
	Release func()
	// Peer is the host that serves it elsewhere, Addr where it serves peers.
	Peer, Addr string
	// While ends when the disk is known to have left the place.
	While context.Context
}

const (
	// claimAfter is how long a disk must have been without a host before a client's
	// request has this host claim it: whom it was given to, or who had it and has just
	// begun another session, comes first.
	claimAfter = 500 * time.Millisecond
	// lookPeriod is how often a place is looked for again when nothing was heard.
	lookPeriod = 100 * time.Millisecond
)

// Locate returns where a disk is served, or with a suffix "@SNAP" a snapshot of it. It
// waits while nobody serves it, and has this host claim it then. Errors: ErrUnknownDisk,
// ErrUnknownSnapshot, ErrElsewhere for a host that serves no peers, ErrClosed,
// disk.ErrFailed for one that does not open, those of the registry and ctx's.
func (h *Host) Locate(ctx context.Context, d id.Disk, suffix string) (*Place, error) {
	var asked time.Time
	for began := time.Now(); ; {
		h.mu.Lock()
		at, stay := h.owners[d], h.stay(d)
		since, free := h.free[d]
		h.mu.Unlock()
		p, err := h.Here(ctx, d, suffix)
		if !errors.Is(err, ErrElsewhere) {
			return p, err
		}
		if at.host != "" {
			rec, err := h.catalog.hostRecord(ctx, at.host)
			switch {
			case err != nil:
				return nil, err
			case rec != nil && rec.Peer == "":
				return nil, fmt.Errorf("%w: host %s serves it, and serves no peers", ErrElsewhere, at.host)
			case rec != nil:
				return &Place{Peer: at.host, Addr: rec.Peer, While: stay}, nil
			} // or else its lease has just ended
		} else if now, patience := time.Now(), h.owning.callTime(); now.Sub(asked) >= patience &&
			(free && now.Sub(since) >= claimAfter || now.Sub(began) >= 2*patience) {
			asked = now
			h.owning.send(owner.Adopt{Disk: d})
		}
		timer := time.NewTimer(lookPeriod)
		select {
		case <-stay.Done():
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil, fmt.Errorf("disk %d: no host serves it at present: %w", d, ctx.Err())
		}
		timer.Stop()
	}
}

// Here is Locate for a disk that this host serves now: ErrElsewhere otherwise. It
// does not wait for anything but a change that is under way.
func (h *Host) Here(ctx context.Context, d id.Disk, suffix string) (*Place, error) {
	h.mu.Lock()
	stay := h.stay(d)
	h.mu.Unlock()
	if suffix != "" {
		return h.snapshotHere(ctx, d, suffix, stay)
	}
	e, err := h.enter(ctx, func() (*export, error) { return h.openNumber(d) })
	if err != nil {
		return nil, err
	}
	return &Place{Export: Exports{h}.export(e), Release: func() { h.leave(e) }, While: stay}, nil
}

func (h *Host) snapshotHere(ctx context.Context, d id.Disk, suffix string, stay context.Context) (*Place, error) {
	for {
		e, err := h.openNumber(d)
		if err != nil {
			return nil, err
		}
		name := h.nameOf(e)
		t, ok := parseTarget(name + suffix)
		if !ok {
			return nil, fmt.Errorf("disk %q, snapshot %q: %w", name, suffix, ErrUnknownSnapshot)
		}
		export, release, err := Exports{h}.openSnapshot(ctx, t)
		if err == nil {
			return &Place{Export: export, Release: release, While: stay}, nil
		}
		if !errors.Is(err, ErrUnknownDisk) || h.nameOf(e) == name { // or it was renamed meanwhile
			return nil, err
		}
	}
}

// openNumber is open for a disk of that number. A disk whose lease or log says that
// it is not this host's any more is elsewhere, also before that is known otherwise.
func (h *Host) openNumber(d id.Disk) (*export, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	e := h.byID[d]
	switch {
	case h.closing:
		return nil, ErrClosed
	case e == nil || h.byName[e.now.Name] != e:
		return nil, fmt.Errorf("disk %d: %w", d, ErrUnknownDisk)
	case errors.Is(e.err, ErrElsewhere):
		return nil, e.err
	case e.err != nil:
		return nil, fmt.Errorf("disk %q does not open: %w: %w", e.now.Name, disk.ErrFailed, e.err)
	case e.term != nil && !e.term.valid(), errors.Is(e.disk.Err(), datanode.ErrFenced):
		return nil, h.absence(e)
	}
	return e, nil
}

// Left reports whether an error of a disk of this host says nothing of the request,
// but that the disk has left it, or the host its lease: another place may have it.
func Left(err error) bool {
	for _, e := range []error{ErrNoLease, ErrClosed, disk.ErrClosed, datanode.ErrFenced} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// Want has this host take a disk from whoever serves it.
func (h *Host) Want(d id.Disk) { h.owning.send(owner.Want{Disk: d}) }

// Found is what an export's name means.
type Found struct {
	Disk id.Disk
	// Export has no device yet. Bytes is the disk's size as far as it is known.
	Export nbd.Export
	Bytes  int64
	// Suffix names a snapshot, as Locate takes it.
	Suffix string
}

// Find returns what the name of an export means, wherever the disk is. Errors:
// ErrUnknownDisk.
func (h *Host) Find(name string) (*Found, error) {
	name, suffix, snapshot := strings.Cut(name, "@")
	if snapshot {
		suffix = "@" + suffix
	} else if all := h.exports(); name == "" && len(all) == 1 {
		name = h.nameOf(all[0])
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	e := h.byName[name]
	if e == nil {
		return nil, fmt.Errorf("disk %q: %w", name, ErrUnknownDisk)
	}
	export := nbd.Export{Name: e.now.Name + suffix, ReadOnly: snapshot, MultiConn: true, PreferredBlockSize: e.rec.Chunk}
	export.Description = fmt.Sprintf("plinth disk %d of pool %v", e.rec.ID, h.keys.ID())
	return &Found{e.rec.ID, export, e.now.Bytes, suffix}, nil
}

// Keys are the pool's.
func (h *Host) Keys() *keyring.Pool { return h.keys }

// presence is for as long as nothing changes in where a disk is served.
type presence struct {
	context.Context
	end context.CancelFunc
}

// stay returns a context that ends when a disk moves, comes or goes, or the host is
// closed; mu is held.
func (h *Host) stay(d id.Disk) context.Context {
	p, ok := h.stays[d]
	if !ok {
		p.Context, p.end = context.WithCancel(h.life)
		h.stays[d] = p
	}
	return p.Context
}

// stir tells those who use a disk, or look for it, that its place has changed; mu is
// held.
func (h *Host) stir(d id.Disk) {
	if p, ok := h.stays[d]; ok {
		p.end()
		delete(h.stays, d)
	}
}

// ownerNote is what a host has heard of a disk's owner.
type ownerNote struct {
	host     string // another one; empty: none, or this one
	epoch    id.Epoch
	revision uint64 // of the registry, as of which it is so
}

// noteOwner notes who owns a disk as of a revision, nil for nobody. It reports
// whether that is news.
func (h *Host) noteOwner(d id.Disk, row *ownerRow, revision uint64) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	old := h.owners[d]
	if revision < old.revision {
		return false
	}
	now := ownerNote{revision: revision}
	if row != nil {
		delete(h.free, d)
		if row.Host != h.opts.Name {
			now.host, now.epoch = row.Host, row.Epoch
			h.formers[d] = row.Host
		}
	}
	h.owners[d] = now
	if now.host != old.host || now.epoch != old.epoch {
		h.stir(d)
	}
	if e := h.byID[d]; e != nil && e.disk == nil && errors.Is(e.err, ErrElsewhere) {
		h.replace(e)
	}
	return true
}
