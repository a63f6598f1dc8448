package blockmap

import (
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"

	"plinth/internal/id"
)

// PatchesMax bounds the patches of a batch.
const PatchesMax = 1 << 12

// Patch says that the entry of generation Gen of an LBA, if it is in From's slot
// of From's segment, lies at To. Nothing else about it changes, and nobody sees a
// difference.
type Patch struct {
	LBA      id.LBA
	Gen      id.Gen
	From, To id.Ref
}

func (b *Batch) validatePatches() error {
	if len(b.Patches) == 0 {
		return nil
	}
	if len(b.Patches) > PatchesMax || len(b.Trims)+len(b.Updates) > 0 || b.Mark != (Mark{}) {
		return fmt.Errorf("%w: a batch of %d patches and other things", ErrInvalid, len(b.Patches))
	}
	for _, p := range b.Patches {
		if p.LBA >= LBAMax || p.From.Segment == 0 || p.To.Segment == 0 {
			return fmt.Errorf("%w: patch %+v", ErrInvalid, p)
		}
	}
	return nil
}

// putPatches adds those patches of b to a step whose rows still lie where they
// say. m.apply is held, so that nobody changes the rows meanwhile.
func (m *Map) putPatches(s *step, b *Batch) error {
	for i := range b.Patches {
		p := &b.Patches[i]
		key := makePointKey(p.LBA, p.Gen)
		var e Entry
		if err := m.get(key, &e); err != nil {
			return fmt.Errorf("LBA %d, generation %d: %w", p.LBA, p.Gen, err)
		}
		if e.Zero() || e.Ref.Segment != p.From.Segment || e.Ref.Slot != p.From.Slot {
			continue
		}
		e.Ref = p.To
		var value [entryBytes]byte
		putEntry(&value, &e)
		if err := s.batch.Set(key[:], value[:], nil); err != nil {
			return err
		}
	}
	return nil
}

// Get returns the entry of one generation of an LBA, whether or not anybody sees
// it, and false if there is none. Errors are LookupRange's.
func (m *Map) Get(lba id.LBA, gen id.Gen) (Entry, bool, error) {
	if err := m.begin(); err != nil {
		return Entry{}, false, err
	}
	defer m.calls.leave()
	if lba >= LBAMax {
		return Entry{}, false, fmt.Errorf("%w: LBA %d", ErrInvalid, lba)
	}
	key := makePointKey(lba, gen)
	value, closer, err := m.db.Get(key[:])
	if errors.Is(err, pebble.ErrNotFound) {
		return Entry{}, false, nil
	}
	if err != nil {
		return Entry{}, false, fmt.Errorf("get LBA %d, generation %d: %w", lba, gen, err)
	}
	e, err := parseEntry(value)
	if err = errors.Join(err, closer.Close()); err != nil {
		return Entry{}, false, fmt.Errorf("get LBA %d, generation %d: %w", lba, gen, err)
	}
	return e, true, nil
}
