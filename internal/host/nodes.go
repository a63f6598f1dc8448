package host

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"plinth/datanode"
	"plinth/internal/id"
	"plinth/internal/rack"
	"plinth/internal/stripe"
)

// Nodes describes the pool's data nodes.
func (h *Host) Nodes(ctx context.Context) ([]datanode.NodeInfo, error) {
	st, err := h.node.Status(ctx)
	if err != nil {
		return nil, err
	}
	return h.nodes(ctx, st)
}

// nodes describes the data nodes, of which st is the status just now.
func (h *Host) nodes(ctx context.Context, st *datanode.Status) ([]datanode.NodeInfo, error) {
	if several, ok := h.node.(datanode.Several); ok {
		all, err := several.Nodes(ctx)
		if err != nil || all != nil {
			h.noteComing(ctx, all)
			return all, err
		}
	}
	one := datanode.NodeInfo{State: "in", Registry: true, Answers: true, Since: h.began, Log: st.Log, Spindles: len(st.Spindles), Addresses: []string{}}
	for _, sp := range st.Spindles {
		if sp.State == datanode.SpindleOK {
			one.SpindlesOK++
		}
		one.CapacityBytes += sp.CapacityBytes
		one.AllocatedBytes += sp.AllocatedBytes
	}
	all := []datanode.NodeInfo{one}
	h.noteComing(ctx, all)
	return all, nil
}

// noteComing adds what is known of a change to the nodes that it is about: which spindles are
// to be used, and for whom it waits. Of a node that still gets new segments it is not
// known what will be left there.
func (h *Host) noteComing(ctx context.Context, all []datanode.NodeInfo) {
	l := h.layouts()
	coming, used := l.Any(stripe.Coming), l.Used()
	for i := range all {
		n := &all[i]
		if n.State == string(rack.NodeIn) {
			for _, s := range n.Numbers().All() {
				if !used[s] {
					n.SpindlesComing++
				}
			}
		}
		if n.State == string(rack.NodeJoining) || n.State == string(rack.NodeDraining) && coming || n.SpindlesComing > 0 {
			n.Waits, n.Leaving = h.waitsFor(ctx), nil
		}
	}
}

// nodeWarnings says which nodes do not answer, and which lack logs.
func (h *Host) nodeWarnings(all []datanode.NodeInfo) (out []string) {
	for _, n := range all {
		if !n.Answers {
			out = append(out, fmt.Sprintf("data node %s (%d) does not answer since %s: its spindles %v are missed, and what is written meanwhile is not on it",
				n.Name, n.Number, n.Since.Format(time.DateTime), n.Numbers()))
		}
		out = append(out, changeWarnings(&n)...)
		if n.LogsMissingCount == 0 {
			continue
		}
		names := h.diskNames(n.LogsMissing)
		if more := n.LogsMissingCount - len(n.LogsMissing); more > 0 {
			names = append(names, fmt.Sprintf("%d more", more))
		}
		out = append(out, fmt.Sprintf("data node %s (%d) has not, or not yet, the logs of these disks, which have too few replicas: %s", n.Name, n.Number, strings.Join(names, ", ")))
	}
	return out
}

// changeWarnings says how far a node is that comes or goes.
func changeWarnings(n *datanode.NodeInfo) []string {
	switch {
	case n.Waits != "" && n.SpindlesComing > 0:
		return []string{fmt.Sprintf("%d new spindles of data node %s (%d) are not used yet, which waits for %s", n.SpindlesComing, n.Name, n.Number, n.Waits)}
	case n.Waits != "":
		return []string{fmt.Sprintf("data node %s (%d) is %s, which waits for %s", n.Name, n.Number, n.State, n.Waits)}
	case n.Leaving == nil:
		return nil
	case n.Leaving.Empty():
		return []string{fmt.Sprintf("data node %s (%d) is drained: plinth node rm %s takes it out", n.Name, n.Number, n.Name)}
	}
	return []string{fmt.Sprintf("data node %s (%d) is being drained: %v", n.Name, n.Number, n.Leaving)}
}

// spareStatus is of the host that looks at the segments.
func (h *Host) spareStatus() *SpareStatus {
	at := h.cleaner.lookedAt.Load()
	if !h.anySpare() || at == 0 || !h.isWarden(h.owning.term.Load()) {
		return nil
	}
	return &SpareStatus{h.cleaner.spare.Load(), time.Unix(0, at)}
}

// anySpare reports whether there are layouts that lose something with a node.
func (h *Host) anySpare() bool {
	return h.layouts().Any(stripe.Spare) || h.layouts().Any(stripe.OldSpare)
}

// ofSilent reports whether a spindle is of a node that does not answer.
func ofSilent(all []datanode.NodeInfo, s id.Spindle) bool {
	return slices.ContainsFunc(all, func(n datanode.NodeInfo) bool {
		return !n.Answers && n.Numbers().Has(s)
	})
}

func (h *Host) diskNames(all []id.Disk) (names []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, d := range all {
		if e := h.byID[d]; e != nil {
			names = append(names, e.now.Name)
		} else {
			names = append(names, fmt.Sprint(d))
		}
	}
	return names
}

// disturbedTime is how long after a node has come back what failed is put down to it.
const disturbedTime = 10 * time.Second

// logRetried logs an error of what is tried again. While a node is away it is no news.
func (h *Host) logRetried(what string, err error) {
	level := slog.LevelError
	if several, ok := h.node.(datanode.Several); ok {
		all, nerr := several.Nodes(h.life)
		away := nerr != nil || slices.ContainsFunc(all, func(n datanode.NodeInfo) bool { return !n.Answers })
		if away || time.Since(several.Returned()) < disturbedTime {
			level = slog.LevelWarn
		}
	}
	h.log.Log(h.life, level, what, "err", err)
}
