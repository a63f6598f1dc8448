package host

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"plinth/datanode"
	"plinth/internal/id"
	"plinth/internal/stripe"
)

const (
	keyDraining        = "draining"
	drainingRowVersion = 1
	// drainingTries bounds how often a change of the row tries again against others.
	drainingTries = 16
)

// drainingRow names the spindles that are to be emptied, each in its incarnation: a new drive
// in the place of one is used. A host that has not heard of it yet writes there; what it
// writes is moved, too.
type drainingRow struct {
	Version  int                   `json:"version"`
	Spindles map[id.Spindle]uint64 `json:"spindles"`
}

// DrainingSpindle is a spindle that is being emptied. Segments have fragments on it, of Bytes,
// as this host saw them last; nil: it has not looked.
type DrainingSpindle struct {
	Spindle  id.Spindle `json:"spindle"`
	Segments *int64     `json:"segments,omitempty"`
	Bytes    int64      `json:"bytes"`
}

func parseDraining(value []byte) (*drainingRow, error) {
	row := &drainingRow{Version: drainingRowVersion}
	if value == nil {
		return row, nil
	}
	if err := json.Unmarshal(value, row); err != nil {
		return nil, fmt.Errorf("row %s of the registry: %w", keyDraining, err)
	}
	if row.Version != drainingRowVersion {
		return nil, fmt.Errorf("row %s of the registry has version %d, this program knows %d: use a newer one", keyDraining, row.Version, drainingRowVersion)
	}
	return row, nil
}

// loadDraining reads which spindles are to be emptied.
func (h *Host) loadDraining(ctx context.Context) error {
	value, _, err := h.catalog.get(ctx, keyDraining)
	if err != nil {
		return err
	}
	h.seeDraining(value)
	return nil
}

// seeDraining takes what the row says, nil: there is none.
func (h *Host) seeDraining(value []byte) {
	row, err := parseDraining(value)
	if err != nil { // which costs no data
		h.log.Warn("which spindles are to be drained is not known", "err", err)
		return
	}
	h.draining.Store(row)
	h.drainNext.Store(0)
	h.drainLeft.Store(nil)
}

// avoidDraining has new segments avoid the spindles that are being emptied.
func (h *Host) avoidDraining(now []datanode.SpindleStatus) {
	var avoid []id.Spindle
	if row := h.draining.Load(); row != nil {
		for _, sp := range now {
			if in, ok := row.Spindles[sp.Spindle]; ok && (sp.Incarnation == in || sp.Incarnation == 0) {
				avoid = append(avoid, sp.Spindle)
			}
		}
	}
	h.pool.Stripes.SetDraining(avoid)
}

// DrainSpindle has what a spindle has moved to others, or with on unset calls that off. It
// returns when that is recorded; Status tells how far it is. Errors: ErrNodes.
func (h *Host) DrainSpindle(ctx context.Context, n id.Spindle, on bool) error {
	st, err := h.node.Status(ctx)
	if err != nil {
		return err
	}
	for range drainingTries {
		value, revision, err := h.catalog.get(ctx, keyDraining)
		if err != nil {
			return err
		}
		row, err := parseDraining(value)
		if err != nil {
			return err
		}
		next, err := row.with(h.layouts(), st, n, on)
		if err != nil {
			return err
		}
		if value, err = json.Marshal(next); err != nil {
			return err
		}
		err = h.catalog.commit(ctx, &datanode.RegistryTxn{
			Compares: []datanode.Compare{{Key: keyDraining, Revision: revision}}, Puts: []datanode.Put{{Key: keyDraining, Value: value}},
		})
		if err == nil {
			h.seeDraining(value)
			h.avoidDraining(st.Spindles)
			h.log.Info("which spindles are to be drained was changed", "spindle", n, "drain", on)
		}
		if !errors.Is(err, datanode.ErrConflict) {
			return err
		}
	}
	return fmt.Errorf("change which spindles are drained: %w", datanode.ErrConflict)
}

// with returns the row with a spindle to be emptied, or not. Those go whose drive is another
// one by now. Errors are for an operator.
func (r *drainingRow) with(l *stripe.Layouts, st *datanode.Status, n id.Spindle, on bool) (*drainingRow, error) {
	next := &drainingRow{Version: drainingRowVersion, Spindles: maps.Clone(r.Spindles)}
	if next.Spindles == nil {
		next.Spindles = make(map[id.Spindle]uint64)
	}
	var sp *datanode.SpindleStatus
	stored, capacity := int64(0), int64(0)
	for i := range st.Spindles {
		s := &st.Spindles[i]
		if in := next.Spindles[s.Spindle]; s.Incarnation != 0 && in != s.Incarnation {
			delete(next.Spindles, s.Spindle)
		}
		if s.Spindle == n {
			sp = s
		} else if s.State == datanode.SpindleOK && next.Spindles[s.Spindle] == 0 {
			stored, capacity = stored+s.AllocatedBytes, capacity+s.CapacityBytes
		}
	}
	switch _, is := next.Spindles[n]; {
	case sp == nil:
		return nil, fmt.Errorf("%w: there is no spindle %d: plinth status --json lists them", ErrNodes, n)
	case !on && !is:
		return nil, fmt.Errorf("%w: spindle %d is not being drained", ErrNodes, n)
	case !on:
		delete(next.Spindles, n)
		return next, nil
	case is:
		return nil, fmt.Errorf("%w: spindle %d is being drained already: plinth status shows how far that is", ErrNodes, n)
	case sp.State != datanode.SpindleOK || sp.Incarnation == 0:
		return nil, fmt.Errorf("%w: spindle %d is %s (%s): what it had is restored when its drive is replaced", ErrNodes, n, sp.State, sp.Reason)
	}
	next.Spindles[n] = sp.Incarnation
	avoid := slices.Collect(maps.Keys(next.Spindles))
	for _, s := range st.Spindles {
		if s.State != datanode.SpindleOK {
			avoid = append(avoid, s.Spindle)
		}
	}
	if !l.Without(avoid) {
		return nil, fmt.Errorf("%w: spindle %d cannot be drained: without it and others that are drained or do not serve, the rest does not carry stripes of %s", ErrNodes, n, l.Geometry)
	}
	if stored+sp.AllocatedBytes > capacity*drainFullMax/100 {
		return nil, fmt.Errorf("%w: spindle %d cannot be drained: the others have %d of %d bytes, and would have %d more; give back space first", ErrNodes, n, stored, capacity, sp.AllocatedBytes)
	}
	return next, nil
}

// drainFullMax is how full, in percent, spindles may become by what leaves another one.
const drainFullMax = 90

// drainLeft is what was left on spindles that are being emptied, and in lists that leave.
type drainLeft struct {
	at    time.Time
	on    map[id.Spindle]leftOn
	lists leftOn
}

// drainLeftTime is how long that is good for those who only look.
const drainLeftTime = 5 * time.Second

// drainingStatus describes the spindles that are being emptied.
func (h *Host) drainingStatus(ctx context.Context) (out []DrainingSpindle) {
	draining := h.pool.Stripes.Draining()
	if len(draining) == 0 {
		return nil
	}
	left := h.leftNow(ctx)
	for _, s := range draining {
		d := DrainingSpindle{Spindle: s}
		if left != nil {
			if of, ok := left.on[s]; ok {
				d.Segments, d.Bytes = &of.segments, of.bytes
			}
		}
		out = append(out, d)
	}
	return out
}

func (d *DrainingSpindle) warning() string {
	switch {
	case d.Segments == nil:
		return fmt.Sprintf("spindle %d is being drained", d.Spindle)
	case *d.Segments == 0:
		return fmt.Sprintf("spindle %d is drained: its drive can be replaced, or plinth spindle use %d has it used again", d.Spindle, d.Spindle)
	}
	return fmt.Sprintf("spindle %d is being drained: %d segments are left, with %d bytes there", d.Spindle, *d.Segments, d.Bytes)
}

// leftOn is what is left on a spindle, or in lists.
type leftOn struct{ segments, bytes int64 }

// countLeft adds a segment to what is left on spindles that are being emptied.
func (h *Host) countLeft(left map[id.Spindle]leftOn, u *datanode.SegmentUse) {
	l := h.layouts()
	if !l.Has(u.Segment.Layout()) {
		return
	}
	list := l.Lists[u.Segment.Layout()]
	for _, s := range list {
		if of, ok := left[s]; ok {
			left[s] = leftOn{of.segments + 1, of.bytes + u.StoredBytes/int64(len(list))}
		}
	}
}
