package stripe

import (
	"errors"
	"fmt"
	"slices"
	"sort"

	"plinth/datanode"
	"plinth/internal/id"
)

// Builder packs sealed chunks into one segment at a time. It is not safe for
// concurrent use.
type Builder struct {
	g      Geometry
	chunks []packed
	births []datanode.Birth
	bytes  int // sum of chunk lengths
	// fragment and offset are where the next chunk would go if fragments had
	// their nominal length: what fits there, Seal can pack.
	fragment, offset int
}

type packed struct {
	fp         id.Fingerprint
	sealed     []byte
	plainBytes uint32
}

// NewBuilder returns an empty builder for a valid geometry.
func NewBuilder(g Geometry) *Builder {
	if err := g.Validate(); err != nil {
		panic(err) // geometries are validated where they come in
	}
	return &Builder{g: g}
}

// Add takes a sealed chunk, born held by (disk, epoch), and returns its slot.
// It keeps sealed until Reset. It reports false, and takes nothing, if the
// segment has no room for the chunk. Consecutive chunks of one owner share a
// birth run. It panics for a length that no location can name: what seals
// chunks bounds and aligns them.
func (b *Builder) Add(disk id.Disk, epoch id.Epoch, fp id.Fingerprint, sealed []byte, plainBytes int) (slot id.Slot, ok bool) {
	if _, ok := id.MakeLocation(0, len(sealed)); !ok || plainBytes <= 0 {
		panic(fmt.Sprintf("stripe: sealed chunk of %d bytes for %d of plaintext", len(sealed), plainBytes))
	}
	n := b.g.NominalBytes()
	fragment, offset := b.fragment, b.offset
	if offset+len(sealed) > n {
		fragment, offset = fragment+1, 0
	}
	run := len(b.births) - 1
	same := run >= 0 && b.births[run].Disk == disk && b.births[run].Epoch == epoch
	if fragment >= b.g.K || len(b.chunks) == id.SlotsMax || !same && len(b.births) == datanode.BirthsMax {
		return 0, false
	}
	if same {
		b.births[run].Slots++
	} else {
		b.births = append(b.births, datanode.Birth{Disk: disk, Epoch: epoch, Slots: 1})
	}
	b.fragment, b.offset = fragment, offset+len(sealed)
	b.bytes += len(sealed)
	b.chunks = append(b.chunks, packed{fp, sealed, uint32(plainBytes)})
	return id.Slot(len(b.chunks) - 1), true
}

// Len returns the number of chunks taken.
func (b *Builder) Len() int { return len(b.chunks) }

// Bytes returns the sum of their sealed lengths.
func (b *Builder) Bytes() int { return b.bytes }

// Reset empties the builder and forgets the chunks' bytes.
func (b *Builder) Reset() {
	clear(b.chunks)
	*b = Builder{g: b.g, chunks: b.chunks[:0]}
}

// Seal packs what was added: chunks in order, none straddling a fragment,
// fragments as short as that allows in blocks, the rest zeros, then parity. The
// segment owns its memory, (k+m)/k times that of the chunks; the builder keeps
// its content until Reset. It fails on an empty builder.
func (b *Builder) Seal() (*Segment, error) {
	if len(b.chunks) == 0 {
		return nil, errors.New("seal a segment: it has no chunk")
	}
	fragmentBytes := b.fragmentBytes()
	s := newSegment(b.g, datanode.KindChunks, b.bytes, fragmentBytes, slices.Clone(b.births))
	s.Slots = make([]datanode.SlotEntry, len(b.chunks))
	fragment, offset := 0, 0
	for i, c := range b.chunks {
		if offset+len(c.sealed) > fragmentBytes {
			clear(s.Fragments[fragment][offset:])
			fragment, offset = fragment+1, 0
		}
		copy(s.Fragments[fragment][offset:], c.sealed)
		location, ok := id.MakeLocation(fragment*b.g.NominalBytes()+offset, len(c.sealed))
		if !ok {
			panic(fmt.Sprintf("stripe: no location for %d bytes at fragment %d, byte %d", len(c.sealed), fragment, offset))
		}
		s.Slots[i] = datanode.SlotEntry{Slot: id.Slot(i), Fingerprint: c.fp, Location: location, PlainBytes: c.plainBytes}
		offset += len(c.sealed)
	}
	s.clearData(b.g, fragment, offset)
	return s, s.encode(b.g)
}

// fragmentBytes returns the shortest fragment length, in whole blocks, at which
// the chunks fit. The nominal length is one: Add saw to it.
func (b *Builder) fragmentBytes() int {
	nominal := b.g.NominalBytes() / datanode.BlockBytes
	least := (b.bytes + b.g.K*datanode.BlockBytes - 1) / (b.g.K * datanode.BlockBytes)
	blocks := least + sort.Search(nominal-least, func(i int) bool { return b.fits((least + i) * datanode.BlockBytes) })
	return blocks * datanode.BlockBytes
}

// fits reports whether the chunks, in order, fit in k fragments of that length.
// If they do, they fit in longer ones.
func (b *Builder) fits(fragmentBytes int) bool {
	fragment, offset := 0, 0
	for _, c := range b.chunks {
		if offset+len(c.sealed) > fragmentBytes {
			fragment, offset = fragment+1, 0
			if fragment == b.g.K || len(c.sealed) > fragmentBytes {
				return false
			}
		}
		offset += len(c.sealed)
	}
	return true
}
