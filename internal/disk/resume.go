package disk

import (
	"errors"
	"fmt"

	"plinth/internal/id"
	"plinth/internal/logrec"
)

// Interrupted is the error of a WriteAt, Zero or Trim of which something is in the
// log, or may be. Who has the disk next says how much is (Carried), so that the call can go
// on from there and nothing is done twice: between the two times others may have
// read it, and written to the same place.
type Interrupted struct {
	// Logged is how many of the call's bytes are in the log and in the write buffer,
	// from its beginning. If all are, what is wanting is a Flush, if that was asked
	// for, and the reply.
	Logged int64
	// Doubt is how many more may be in the log.
	Doubt int64
	// Epoch is the owner's; LoggedAt and DoubtAt are the positions of the last record of
	// each, for Carried.
	Epoch             id.Epoch
	LoggedAt, DoubtAt id.Pos
	Err               error
}

func (e *Interrupted) Error() string { return e.Err.Error() }

// Unwrap returns why.
func (e *Interrupted) Unwrap() error { return e.Err }

// progress is how many bytes of a call are in the log, and where the last record of them is.
type progress struct {
	bytes int64
	at    id.Pos
}

func (p *progress) logged(n int64, pos id.Pos) {
	p.bytes += n
	p.at = pos
}

// interrupted returns err, of a call of which p is logged, and if err is in doubt tried
// more bytes may be, with their last record at pos.
func (d *Disk) interrupted(p progress, tried int64, pos id.Pos, err error) error {
	var doubt inDoubt
	switch is := errors.As(err, &doubt); {
	case err == nil || p.bytes == 0 && !is:
		return err
	case !is:
		tried, pos = 0, 0
	}
	return &Interrupted{p.bytes, tried, d.cfg.Epoch, p.at, pos, err}
}

// inDoubt marks the error of an append that may have been done.
type inDoubt struct{ error }

func (e inDoubt) Unwrap() error { return e.error }

// end is a place in a disk's operations: a record with its MAC, which stands for
// all before it.
type end struct {
	pos id.Pos
	mac logrec.MAC
}

// Tail is what an owner knows of the end of its disk's operations.
type Tail struct {
	// known is the last that is in the log for certain; all that was acknowledged or
	// read is up to it.
	known end
}

// Tail returns what the disk knew when it stopped serving: it must be closed.
func (d *Disk) Tail() *Tail {
	d.appendMu.Lock()
	defer d.appendMu.Unlock()
	return &Tail{end{d.next - 1, d.ops.Head()}}
}

// resumption compares a log with what the last owner knew of its end.
type resumption struct {
	tail  *Tail // nil: nothing is known
	known bool
}

// begin returns a resumption for a log that is replayed from behind through on:
// all up to there is in results, which only what was stable can be.
func (t *Tail) begin(through id.Pos, mac logrec.MAC) resumption {
	r := resumption{tail: t}
	if t != nil {
		r.known = through > t.known.pos
		r.see(through, mac)
	}
	return r
}

// see compares one record.
func (r *resumption) see(pos id.Pos, mac logrec.MAC) {
	if r.tail == nil {
		return
	}
	r.known = r.known || end{pos, mac} == r.tail.known
}

// end returns an error if the log, which ends at last, lacks something that an earlier
// owner knew to be in it. Other hosts may have had the disk since, and appended more.
func (r *resumption) end(last id.Pos) error {
	if r.tail == nil || r.known {
		return nil
	}
	return fmt.Errorf("the log ends at position %d, but operations up to %d were acknowledged: "+
		"the data node lost what was not flushed: %w", last, r.tail.known.pos, ErrCorrupt)
}
