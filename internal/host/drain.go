package host

import (
	"context"
	"errors"
	"time"

	"plinth/datanode"
	"plinth/internal/disk"
	"plinth/internal/id"
)

const (
	// lookTime is how often a host looks at most at all segments, and lookShare how much
	// longer it takes between two looks than for one.
	lookTime  = 3 * time.Second
	lookShare = 20
	// drainRoomShare of what is free, 1/drainRoomShare, one pass may store anew before what
	// it has moved is given back.
	drainRoomShare = 4
	// drainReservation is added to a host's name where it reserves that.
	drainReservation = "/drain"
)

// drainPass has a pass store anew what lies on data nodes and spindles that are being drained. The
// reservation for it is to be given up after the pass.
func (h *Host) drainPass(ctx context.Context, o *disk.PassOptions) (giveUp func(), err error) {
	if !h.drains() {
		return func() {}, nil
	}
	st, err := h.node.Status(ctx)
	if err != nil {
		return nil, err
	}
	g := h.pool.Geometry
	name := h.owning.reservation(h.owning.life) + drainReservation
	fragments := st.FreeBytes / drainRoomShare
	err = h.node.Reserve(ctx, &datanode.ReserveRequest{Host: name, Bytes: max(fragments, 1)})
	if errors.Is(err, datanode.ErrNoSpace) {
		fragments = 0 // others were faster
	} else if err != nil {
		return nil, err
	}
	// Headers and what fills fragments up take some of it.
	o.Leaves, o.Room = h.pool.Stripes.Leaves, fragments*int64(g.K)/int64(g.Width())*9/10
	o.Rehomed = func(ctx context.Context, bytes int64) error { return h.paceRebuild(ctx, bytes/int64(g.K)) }
	return func() {
		if err := h.node.Reserve(context.WithoutCancel(ctx), &datanode.ReserveRequest{Host: name}); err != nil {
			h.log.Warn("the space that was reserved for what leaves a data node was not given back", "err", err)
		}
	}, nil
}

// leaving returns the disks that have something on a data node or a spindle that is being drained, nil if
// it is not the time to look.
func (h *Host) leaving(ctx context.Context) (map[id.Disk]bool, error) {
	if !h.drains() || time.Now().UnixNano() < h.drainNext.Load() {
		return nil, nil
	}
	began := time.Now()
	out, err := h.lookLeaving(ctx)
	if err == nil {
		h.drainNext.Store(nextLook(began))
	}
	return out, err
}

// nextLook returns when to look at all segments again, Unix ns, after a look that began then.
func nextLook(began time.Time) int64 {
	return time.Now().Add(max(lookTime, lookShare*time.Since(began))).UnixNano()
}

// lookLeaving goes through all segments for that, and counts what is left on spindles and in
// lists.
func (h *Host) lookLeaving(ctx context.Context) (map[id.Disk]bool, error) {
	began := time.Now()
	out, left, lists := make(map[id.Disk]bool), make(map[id.Spindle]leftOn), leftOn{}
	for _, s := range h.pool.Stripes.Draining() {
		left[s] = leftOn{}
	}
	for after := id.Segment(0); ; {
		reply, err := h.node.Usage(ctx, &datanode.UsageRequest{After: after})
		if err != nil {
			return nil, err
		}
		for i := range reply.Segments {
			u := &reply.Segments[i]
			if after = u.Segment; h.pool.Stripes.Leaves(u.Segment) {
				h.countLeft(left, u)
				h.countList(&lists, u.Segment, u.StoredBytes)
				for _, d := range u.Disks {
					out[d.Disk] = true
				}
			}
		}
		if !reply.More || len(reply.Segments) == 0 {
			break
		}
	}
	h.drainLeft.Store(&drainLeft{began, left, lists})
	return out, nil
}
