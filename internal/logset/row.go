package logset

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"plinth/datanode"
	"plinth/internal/id"
)

// Boot names a run of a node's machine.
type Boot = [16]byte

// Member is a node that is in sync, as of a run of its machine.
type Member struct {
	Node id.Node
	Boot Boot
}

// Row is a log set as the registry has it: the nodes in sync, by number. It is
// empty for a disk that has none yet.
type Row []Member

// Has tells whether the row names a node.
func (r Row) Has(n id.Node) bool {
	return slices.ContainsFunc(r, func(m Member) bool { return m.Node == n })
}

// Ends are the positions that a node's streams hold: First to End-1. Turn names the
// fence that told them: what is thrown away later is thrown away under the newest.
type Ends struct {
	First, End [datanode.Streams]id.Pos
	Turn       uint64
}

// answer is what a node says when it is fenced.
type answer struct {
	boot Boot
	ends Ends
}

// ErrNoReplica says that too few nodes of a log set answer for the log to be taken over. The
// caller tries again when others do.
var ErrNoReplica = errors.New("too few replicas of the log can be reached")

// Sources are the nodes, by stream, that have all that was acknowledged.
type Sources [datanode.Streams]id.Node

// sources chooses where a log is taken over from: the longest node of the row. Some
// node must have answered that was not booted anew since it was in sync, because that
// one has all that was acknowledged; or all of the row, because what was synced is on
// each. What a longer one has beside is an append whose owner may have died waiting.
func sources(row Row, answers map[id.Node]answer) (Sources, error) {
	var reached, missing, suspect []id.Node
	for _, m := range row {
		a, ok := answers[m.Node]
		if !ok {
			missing = append(missing, m.Node)
			continue
		}
		reached = append(reached, m.Node)
		if a.boot != m.Boot && m.Boot != (Boot{}) {
			suspect = append(suspect, m.Node)
		}
	}
	if len(reached) == 0 || len(suspect) == len(reached) && len(missing) > 0 {
		return Sources{}, fmt.Errorf("%w: of %d in sync, nodes %v do not answer and %v were booted anew", ErrNoReplica, len(row), missing, suspect)
	}
	var from Sources
	for s := range from {
		from[s] = slices.MaxFunc(reached, func(a, b id.Node) int {
			return cmp.Compare(answers[a].ends.End[s], answers[b].ends.End[s])
		})
	}
	return from, nil
}
