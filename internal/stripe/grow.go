package stripe

import (
	"fmt"
	"slices"

	"plinth/internal/id"
)

// A pool's layouts change in steps, each a new version, and a list that something may
// lie in keeps its number and its spindles: a segment's number says where it is. Prepare
// adds lists over the nodes that the pool shall have; when every host knows them, Switch
// has new segments use them, and no others; when nothing lies any more where a node that
// goes has spindles, Drop gives those lists' numbers free.

// Prepare returns a new version with lists over the spindles of nodes, of the kinds
// Coming and ComingSpare. Lists that were coming before are free then, and those that get
// nothing new and are empty. The places of lists that were free already, and are empty, are
// taken. An error if the nodes do not carry the stripes, or there is no room for so many
// lists.
func (l *Layouts) Prepare(nodes [][]id.Spindle, empty func(id.Layout) bool) (*Layouts, error) {
	made, err := MakeSpreadLayouts(l.Geometry, nodes, l.Version+1)
	if err != nil {
		return nil, err
	}
	return l.prepare(made, empty)
}

// PrepareOne is Prepare for the spindles of a pool's one node.
func (l *Layouts) PrepareOne(spindles []id.Spindle, empty func(id.Layout) bool) (*Layouts, error) {
	made, err := MakeLayouts(l.Geometry, spindles, l.Version+1)
	if err != nil {
		return nil, err
	}
	return l.prepare(made, empty)
}

func (l *Layouts) prepare(made *Layouts, empty func(id.Layout) bool) (*Layouts, error) {
	out := l.next()
	var room []int
	for n, k := range out.Kinds {
		switch k {
		case Usual, Spare:
		case Free:
			if empty(id.Layout(n)) {
				room = append(room, n)
			}
		case Coming, ComingSpare:
			out.Kinds[n] = Free
		default:
			if empty(id.Layout(n)) {
				out.Kinds[n] = Free
			}
		}
	}
	for n, list := range made.Lists {
		at := len(out.Lists)
		if len(room) > 0 {
			at, room = room[0], room[1:]
		}
		if at == len(out.Lists) {
			out.Lists, out.Kinds = append(out.Lists, nil), append(out.Kinds, Free)
		}
		out.Lists[at], out.Kinds[at] = list, Coming
		if made.Kind(id.Layout(n)) == Spare {
			out.Kinds[at] = ComingSpare
		}
	}
	if most := listsMax(l.Geometry); len(out.Lists) > most {
		return nil, fmt.Errorf("%d lists of spindles are in use, and with %d more there would be above %d: nodes that are drained and removed give some free", len(l.Lists), len(made.Lists), most)
	}
	return out, out.Validate()
}

// Switch returns a new version in which new segments use the lists that were coming, if
// some were, and what lies on spindles that leave is to be moved. of tells a spindle's
// node, and whether that leaves.
func (l *Layouts) Switch(of func(id.Spindle) (node id.Node, leaves bool)) (*Layouts, error) {
	out := l.next()
	comes := l.Any(Coming)
	for n, k := range out.Kinds {
		switch k {
		case Free:
		case Coming:
			out.Kinds[n] = Usual
		case ComingSpare:
			out.Kinds[n] = Spare
		case Usual, Spare:
			if comes {
				out.Kinds[n] = l.retired(n, of)
			}
		default:
			out.Kinds[n] = l.retired(n, of)
		}
	}
	return out, out.Validate()
}

// Rebalance returns a new version in which what lies in lists that get nothing new is to be
// moved to those that do, or with on unset stays, where it does not leave for another
// reason; nil if nothing changes.
func (l *Layouts) Rebalance(on bool, of func(id.Spindle) (node id.Node, leaves bool)) (*Layouts, error) {
	out, changed := l.next(), false
	for n, k := range out.Kinds {
		switch {
		case on && k == Old:
			out.Kinds[n] = Leaving
		case !on && k == Leaving:
			out.Kinds[n] = l.retired(n, of)
		}
		changed = changed || out.Kinds[n] != k
	}
	if !changed {
		return nil, nil
	}
	return out, out.Validate()
}

// retired is the kind of a list that gets nothing new.
func (l *Layouts) retired(n int, of func(id.Spindle) (id.Node, bool)) Kind {
	kind, on := Old, make(map[id.Node]int)
	for _, s := range l.Lists[n] {
		node, leaves := of(s)
		if leaves {
			return Leaving
		}
		if on[node]++; on[node] > l.Geometry.M {
			kind = OldSpare
		}
	}
	return kind
}

// Drop returns a new version in which the lists with spindles that have gone are free.
func (l *Layouts) Drop(gone func(id.Spindle) bool) (*Layouts, error) {
	out := l.next()
	for n, list := range out.Lists {
		if slices.ContainsFunc(list, gone) {
			out.Kinds[n] = Free
		}
	}
	return out, out.Validate()
}

// next returns a copy to be changed.
func (l *Layouts) next() *Layouts {
	out := &Layouts{Version: l.Version + 1, Geometry: l.Geometry, Lists: slices.Clone(l.Lists), Kinds: slices.Clone(l.Kinds)}
	if out.Kinds == nil {
		out.Kinds = make([]Kind, len(out.Lists))
	}
	return out
}
