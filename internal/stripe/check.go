package stripe

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"plinth/datanode"
	"plinth/internal/id"
)

// DamageKind says what is wrong with a fragment or a block of it.
type DamageKind uint8

const (
	DamageMissing     DamageKind = 1 // the spindle works and does not have the fragment
	DamageUnreachable DamageKind = 2 // the spindle does not work
	DamageUnreadable  DamageKind = 3 // the spindle could not read the fragment
	DamageHeader      DamageKind = 4 // the fragment's header fails its checksum
	DamageFields      DamageKind = 5 // the header is valid, and not that of the other fragments
	DamageBlock       DamageKind = 6 // a block fails its checksum
	DamageParity      DamageKind = 7 // checksums hold, and the blocks of the stripe do not belong together
)

func (k DamageKind) String() string {
	names := [...]string{"", "missing", "unreachable", "unreadable", "bad header", "wrong fields", "bad block", "wrong parity"}
	if int(k) < len(names) && k > 0 {
		return names[k]
	}
	return fmt.Sprintf("damage(%d)", uint8(k))
}

// IndexUnknown stands for a fragment that cannot be told from the others.
const IndexUnknown = 255

// Damage is one thing that is wrong with a stripe.
type Damage struct {
	Spindle id.Spindle // zero if Index is IndexUnknown
	Index   uint8
	Offset  uint32 // of a block in its fragment, in bytes; 0 for a whole one
	Kind    DamageKind
	// Repaired: the fragment was rewritten and is on stable media.
	Repaired bool
}

func (d Damage) String() string {
	text := fmt.Sprintf("fragment %d on spindle %d, byte %d: %s", d.Index, d.Spindle, d.Offset, d.Kind)
	if d.Index == IndexUnknown {
		text = fmt.Sprintf("byte %d of all fragments: %s", d.Offset, d.Kind)
	}
	if d.Repaired {
		text += ", repaired"
	}
	return text
}

// Report is what Check found, in the order of fragments and offsets.
type Report struct {
	Segment id.Segment
	Damage  []Damage
	// LostBlocks counts blocks of the stripe (each of k+m fragments) of which
	// fewer than k are good: what lies in their bad ones is lost, unless
	// unreachable spindles come back.
	LostBlocks int
}

// Whole reports whether nothing is wrong.
func (r *Report) Whole() bool { return len(r.Damage) == 0 }

// Check reads a whole stripe under its checksums and compares its fragments
// with each other. With repair it rewrites, on spindles that work, each
// fragment whose right content is beyond doubt: every block of it good, or
// computed from k that are, with no other good one contradicting. A single
// fragment that contradicts k+1 others is rewritten, too. It restores missing
// fragments, so the caller asks for repair only while the segment is not being
// deleted. It blocks for the node and while too many stripes are in memory.
//
// Errors: ErrNotFound if no fragment is left, ErrSpindle or ErrCorrupt if none
// could be read, those of a whole call. Damage that remains is no error. With
// an error of the repair comes a report as well.
func (s *Store) Check(ctx context.Context, seg id.Segment, repair bool) (*Report, error) {
	release, err := hold(ctx, s.checks)
	if err != nil {
		return nil, err
	}
	defer release()
	v, err := s.survey(ctx, seg)
	if err != nil {
		return nil, err
	}
	report := &Report{Segment: seg}
	v.itemize(report)
	if !v.known {
		report.LostBlocks = v.blocks
		return report, nil
	}
	v.solve()
	report.LostBlocks = v.lost
	for _, m := range v.parity {
		d := Damage{Index: uint8(m.index), Offset: uint32(m.block * blockBytes), Kind: DamageParity}
		if m.index != IndexUnknown {
			d.Spindle = v.list[m.index]
		}
		report.Damage = append(report.Damage, d)
	}
	slices.SortStableFunc(report.Damage, func(a, b Damage) int {
		return cmp.Or(cmp.Compare(a.Index, b.Index), cmp.Compare(a.Offset, b.Offset))
	})
	if !repair || report.Whole() {
		return report, nil
	}
	done, err := s.rewrite(ctx, v, func(int) bool { return true })
	for i := range report.Damage {
		d := &report.Damage[i]
		d.Repaired = d.Index != IndexUnknown && done[d.Index]
	}
	return report, err
}

// Scrub has the node test the checksums of a segment's fragments, without sending
// them, and reports whether each is on its spindle, good, and of the same content as
// the others; those on spindles that do not work are passed over. What it can not see
// is parity that does not fit: Check does. Errors: those of Check.
func (s *Store) Scrub(ctx context.Context, seg id.Segment) (sound bool, err error) {
	v, answers, err := s.look(ctx, seg, true)
	if err != nil {
		return false, err
	}
	for i := range v.parts {
		if p := &v.parts[i]; p.state != unreachable && (p.state != present || len(answers[i].Bad) > 0) {
			return false, nil
		}
	}
	return v.known, nil
}

// itemize reports what is wrong with each fragment by itself.
func (v *survey) itemize(report *Report) {
	kinds := map[state]DamageKind{
		missing: DamageMissing, unreachable: DamageUnreachable, unreadable: DamageUnreadable,
		badHeader: DamageHeader, badFields: DamageFields,
	}
	for i := range v.parts {
		p := &v.parts[i]
		d := Damage{Spindle: v.list[i], Index: uint8(i), Kind: kinds[p.state]}
		if p.state != present {
			report.Damage = append(report.Damage, d)
			continue
		}
		for b := range p.bad {
			if p.bad[b] {
				d.Kind, d.Offset = DamageBlock, uint32(b*datanode.BlockBytes)
				report.Damage = append(report.Damage, d)
			}
		}
	}
}
