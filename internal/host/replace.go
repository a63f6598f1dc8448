package host

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"plinth/datanode"
	"plinth/internal/id"
	"plinth/internal/rebuild"
	"plinth/internal/stripe"
)

// ReplaceSpindle has a spindle's data node take the drive that is mounted, empty, in the
// spindle's place. The rebuild finds it by itself. It is refused where stripes would lack
// more fragments than their parity makes up for: a drive that is away may yet come back.
// Errors: ErrNodes, those of datanode.Node.
func (h *Host) ReplaceSpindle(ctx context.Context, n id.Spindle) error {
	st, err := h.node.Status(ctx)
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(st.Spindles, func(s datanode.SpindleStatus) bool { return s.Spindle == n }) {
		return fmt.Errorf("%w: there is no spindle %d: plinth status --json lists them", ErrNodes, n)
	}
	h.rebuild.mu.Lock()
	others := lacking(h.layouts(), rebuild.ServingOf(st.Spindles), h.rebuild.row.Whole, n)
	h.rebuild.mu.Unlock()
	if others != nil {
		return fmt.Errorf("%w: with spindle %d replaced there would be stripes of %s without fragments on more spindles than can be made up for: %v are away or being rebuilt; wait, or bring back what is away. Where nothing comes back, stop the data node and replace the drive then",
			ErrNodes, n, h.layouts().Geometry, others)
	}
	err = h.node.ReplaceSpindle(ctx, &datanode.ReplaceSpindleRequest{Spindle: n})
	if errors.Is(err, datanode.ErrInvalid) {
		return fmt.Errorf("%w: %w", ErrNodes, err)
	}
	return err
}

// lacking returns the spindles of a layout that do not serve, or not in the incarnation in
// which they are whole, if those are too many together with n; nil: there is no such layout.
func lacking(l *stripe.Layouts, serving rebuild.Serving, whole map[id.Spindle]uint64, n id.Spindle) []id.Spindle {
	for layout, list := range l.Lists {
		if l.Kind(id.Layout(layout)) == stripe.Free || !slices.Contains(list, n) {
			continue
		}
		var others []id.Spindle
		for _, s := range list {
			if s != n && (serving[s] == 0 || whole != nil && whole[s] != serving[s]) {
				others = append(others, s)
			}
		}
		if len(others) >= l.Geometry.M {
			return others
		}
	}
	return nil
}
