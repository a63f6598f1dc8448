package host

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"plinth/datanode"
	"plinth/internal/id"
	"plinth/internal/rack"
)

// AddSpindle has a data node, whose name may be empty where there is only one, make a spindle
// more of the drive that is mounted where it wants its next one. It returns when the
// node has it; Nodes tells when new segments use it. Errors: ErrNodes, those of
// datanode.Node.
func (h *Host) AddSpindle(ctx context.Context, node string) error {
	all, err := h.Nodes(ctx)
	if err != nil {
		return err
	}
	at := slices.IndexFunc(all, func(n datanode.NodeInfo) bool { return n.Name == node })
	if node == "" && len(all) == 1 {
		at = 0
	}
	switch {
	case at < 0 && node == "":
		return fmt.Errorf("%w: say which data node gets a spindle: plinth node ls lists them", ErrNodes)
	case at < 0:
		return fmt.Errorf("%w: the pool has no data node %s: plinth node ls lists them", ErrNodes, node)
	case all[at].State != string(rack.NodeIn):
		return fmt.Errorf("%w: data node %s is %s: only one that is in gets spindles", ErrNodes, node, all[at].State)
	}
	n := &all[at]
	defer h.wakeMembers()
	err = h.node.AddSpindle(ctx, &datanode.AddSpindleRequest{Node: n.Number, Spindle: id.Spindle(n.Spindles)})
	if errors.Is(err, datanode.ErrInvalid) {
		return fmt.Errorf("%w: %w", ErrNodes, err)
	}
	return err
}
