package index

import (
	"cmp"
	mathbits "math/bits"
	"slices"

	"plinth/datanode"
	"plinth/internal/id"
)

// tally adds up what disks hold of one segment. It is used again for the next.
type tally struct {
	slots int
	disks []tallied
	words []uint64 // of all disks, after another
	width int      // words of a disk
}

// tallied is one disk's part; its slots are the words at its place.
type tallied struct {
	disk    id.Disk
	cleared id.Epoch // births up to it are replaced
}

func (t *tally) reset(slots int) {
	t.slots, t.width = slots, (slots+63)/64
	t.disks, t.words = t.disks[:0], t.words[:0]
}

// add makes room for a disk and returns its words.
func (t *tally) add(d id.Disk, cleared id.Epoch) []uint64 {
	t.disks = append(t.disks, tallied{d, cleared})
	n := len(t.words)
	t.words = slices.Grow(t.words, t.width)[:n+t.width]
	clear(t.words[n:])
	return t.words[n:]
}

func (t *tally) at(i int) []uint64 { return t.words[i*t.width : (i+1)*t.width] }

// list takes in a disk's list.
func (t *tally) list(d id.Disk, l *listRow) {
	words := t.add(d, l.set.epoch)
	for i, b := range l.bits[:min(len(l.bits), (t.slots+7)/8)] {
		words[i/8] |= uint64(b) << (i % 8 * 8)
	}
	if last := t.slots % 64; last > 0 {
		words[t.width-1] &= 1<<last - 1
	}
}

// births takes in the births that no list has replaced, after all lists.
func (t *tally) births(births []datanode.Birth) {
	slot := 0
	for _, b := range births {
		i := slices.IndexFunc(t.disks, func(d tallied) bool { return d.disk == b.Disk })
		if i < 0 {
			i = len(t.disks)
			t.add(b.Disk, 0)
		}
		if b.Epoch > t.disks[i].cleared {
			words := t.at(i)
			for s := slot; s < slot+int(b.Slots); s++ {
				words[s/64] |= 1 << (s % 64)
			}
		}
		slot += int(b.Slots)
	}
}

// sum returns how many slots are held, and the disks that hold any, in order.
func (t *tally) sum() (live int, uses []datanode.DiskUse) {
	uses = make([]datanode.DiskUse, len(t.disks))
	for i, d := range t.disks {
		uses[i].Disk = d.disk
	}
	for w := range t.width {
		once, twice := uint64(0), uint64(0)
		for i := range t.disks {
			held := t.words[i*t.width+w]
			once, twice = once|held, twice|once&held
		}
		live += mathbits.OnesCount64(once)
		for i := range t.disks {
			held := t.words[i*t.width+w]
			uses[i].Slots += mathbits.OnesCount64(held)
			uses[i].Exclusive += mathbits.OnesCount64(held &^ twice)
		}
	}
	uses = slices.DeleteFunc(uses, func(u datanode.DiskUse) bool { return u.Slots == 0 })
	slices.SortFunc(uses, func(a, b datanode.DiskUse) int { return cmp.Compare(a.Disk, b.Disk) })
	return live, uses
}
