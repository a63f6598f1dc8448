package disk

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"plinth/internal/id"
	"plinth/internal/logrec"
)

// DoneTime is for how long a disk remembers what was done for a tag, and where earlier
// owners ended, counted anew by each owner. Who sends a change again must give it up
// well before.
const DoneTime = 4 * time.Minute

// ledger remembers what was done for changes that hosts forward, and where what earlier
// owners appended ends: so that a change whose answer was lost is not done again.
//
// It is in the log as long as it matters: an operation's record and that of its tag are one
// append; each result is preceded by what the operations that leave the log with it, or
// have left it, said (carry), and a checkpoint's record has that of the results that leave the
// log with it. Only what is stable is carried: that of which the operations are.
type ledger struct {
	mu      sync.Mutex
	changes map[doneSlot]doneChange // at most logrec.ChangesMax
	owners  map[id.Epoch]doneOwner  // at most logrec.OwnersMax
}

// doneSlot is one of a session's slots, which one change after the other has.
type doneSlot struct {
	session [16]byte
	slot    uint64
}

type doneChange struct {
	number uint64
	end    int64  // byte offset in the disk up to which the change is in the log
	pos    id.Pos // of its record in the operations; 0: of one that was carried
	at     time.Time
}

type doneOwner struct {
	pos id.Pos
	at  time.Time
}

// errGivenUp is of a copy of a change that nobody waits for any more.
var errGivenUp = errors.New("the change was given up by who sent it")

func slotOf(t id.Tag) doneSlot { return doneSlot{t.Session, t.Number % id.TagSlots} }

func newLedger() ledger {
	return ledger{changes: make(map[doneSlot]doneChange), owners: make(map[id.Epoch]doneOwner)}
}

// find returns how many of the n bytes at off a change has in the log, from their
// beginning.
func (l *ledger) find(t id.Tag, off, n int64) (int64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c, ok := l.changes[slotOf(t)]
	switch {
	case !ok || c.number < t.Number:
		return 0, nil
	case c.number > t.Number:
		return 0, errGivenUp
	}
	return min(max(c.end-off, 0), n), nil
}

// note adds what a record says that lies at pos, 0 for one of the results or of a
// checkpoint.
func (l *ledger) note(d *logrec.Done, pos id.Pos) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	for _, c := range d.Changes {
		key := slotOf(c.Tag)
		old, ok := l.changes[key]
		if ok && (old.number > c.Tag.Number || old.number == c.Tag.Number && old.end >= c.End) {
			continue
		}
		if !ok && len(l.changes) >= logrec.ChangesMax {
			thin(l.changes, func(c doneChange) time.Time { return c.at })
		}
		l.changes[key] = doneChange{c.Tag.Number, c.End, pos, now}
	}
	for _, o := range d.Owners {
		l.noteOwner(o.Epoch, o.Pos, now)
	}
}

// owner notes that an owner's operations up to pos are in the log, or were.
func (l *ledger) owner(epoch id.Epoch, pos id.Pos) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.noteOwner(epoch, pos, time.Now())
}

// noteOwner is under mu.
func (l *ledger) noteOwner(epoch id.Epoch, pos id.Pos, now time.Time) {
	old, ok := l.owners[epoch]
	if pos <= old.pos {
		return
	}
	if !ok && len(l.owners) >= logrec.OwnersMax {
		thin(l.owners, func(o doneOwner) time.Time { return o.at })
	}
	l.owners[epoch] = doneOwner{pos, now}
}

// thin forgets the oldest eighth.
func thin[K comparable, V any](m map[K]V, at func(V) time.Time) {
	keys := slices.SortedFunc(maps.Keys(m), func(a, b K) int { return at(m[a]).Compare(at(m[b])) })
	for _, k := range keys[:len(keys)/8+1] {
		delete(m, k)
	}
}

// carry returns what is remembered of operations up to through, nil for nothing, and
// forgets what is too old.
func (l *ledger) carry(through id.Pos) []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	oldest := time.Now().Add(-DoneTime)
	var d logrec.Done
	for key, c := range l.changes {
		switch {
		case c.at.Before(oldest):
			delete(l.changes, key)
		case c.pos <= through:
			d.Changes = append(d.Changes, logrec.Change{Tag: id.Tag{Session: key.session, Number: c.number}, End: c.end})
		}
	}
	for epoch, o := range l.owners {
		if o.at.Before(oldest) {
			delete(l.owners, epoch)
			continue
		}
		d.Owners = append(d.Owners, logrec.OwnerEnd{Epoch: epoch, Pos: min(o.pos, through)})
	}
	if len(d.Changes)+len(d.Owners) == 0 {
		return nil
	}
	slices.SortFunc(d.Changes, func(a, b logrec.Change) int {
		return cmp.Or(slices.Compare(a.Tag.Session[:], b.Tag.Session[:]), cmp.Compare(a.Tag.Number, b.Tag.Number))
	})
	slices.SortFunc(d.Owners, func(a, b logrec.OwnerEnd) int { return cmp.Compare(a.Epoch, b.Epoch) })
	return d.Append(nil)
}

func (l *ledger) ownerEnd(epoch id.Epoch) id.Pos {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.owners[epoch].pos
}

// read is note for a record that was read. One of a version that is not known is
// skipped.
func (l *ledger) read(data []byte, pos id.Pos) error {
	d, err := logrec.DecodeDone(data)
	if errors.Is(err, logrec.ErrUnsupported) {
		return nil
	}
	if err == nil {
		l.note(d, pos)
	}
	return err
}

// Carried reports whether what an earlier owner of the disk has appended, or tried to,
// at a position (Interrupted) is in the log, or was. It is asked within DoneTime. Errors:
// ErrClosed where this owner may be older than that one, ErrFailed.
func (d *Disk) Carried(epoch id.Epoch, pos id.Pos) (bool, error) {
	switch {
	case epoch == d.cfg.Epoch: // one whose append is in doubt has failed
		return true, d.usable()
	case epoch > d.cfg.Epoch:
		return false, fmt.Errorf("disk %s: its owner of epoch %d is asked for one of epoch %d: %w", d.cfg.Name, d.cfg.Epoch, epoch, ErrClosed)
	}
	return pos <= d.done.ownerEnd(epoch), nil
}

// Once is a disk for one change that a host forwards: its calls do what is not yet done
// for the tag, and so nothing when they are repeated, by an owner of the disk or the next
// one. No two of them are under way at once. [Disk.Once] makes it.
type Once struct {
	d   *Disk
	tag id.Tag
}

// Once returns the disk for a change.
func (d *Disk) Once(tag id.Tag) Once { return Once{d, tag} }

// WriteAt is Disk.WriteAt. A part of p that is in the log is left out.
func (o Once) WriteAt(ctx context.Context, p []byte, off int64, fua bool) error {
	return o.d.writeAt(ctx, &o.tag, p, off, fua)
}

// Zero is Disk.Zero.
func (o Once) Zero(ctx context.Context, off, n int64, fua bool) error {
	return o.d.zero(ctx, &o.tag, off, n, fua)
}

// Trim is Disk.Trim.
func (o Once) Trim(ctx context.Context, off, n int64, fua bool) error {
	return o.d.trim(ctx, &o.tag, off, n, fua)
}

// isDone returns how many bytes of a change are in the log, 0 without a tag.
func (d *Disk) isDone(tag *id.Tag, off, n int64) (int64, error) {
	if tag == nil {
		return 0, nil
	}
	done, err := d.done.find(*tag, off, n)
	if err != nil {
		return 0, fmt.Errorf("disk %s: %w", d.cfg.Name, err)
	}
	return done, nil
}

// tagged adds to records of a change that is in the log up to end, once they are, the one
// that says so.
func tagged(recs []pending, tag *id.Tag, end int64) []pending {
	if tag == nil {
		return recs
	}
	done := logrec.Done{Changes: []logrec.Change{{Tag: *tag, End: end}}}
	return append(recs, pending{op: logrec.Op{Type: logrec.TypeDone}, data: done.Append(nil)})
}
