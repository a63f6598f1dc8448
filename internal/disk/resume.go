package disk

import (
	"errors"
	"fmt"

	"plinth/internal/id"
	"plinth/internal/logrec"
)

// Interrupted is the error of a WriteAt, Zero or Trim of which something is in the
// log, or may be. Who opens the disk again, with the Tail of this one as
// Config.Resume, can go on where it ended, so that nothing is done twice: between
// the two times others may have read it, and written to the same place.
type Interrupted struct {
	// Logged is how many of the call's bytes are in the log and in the write buffer,
	// from its beginning. If all are, what is wanting is a Flush, if that was asked
	// for, and the reply.
	Logged int64
	// Doubt is how many more are in the log if the next owner says Resumed. If it does
	// not they may be all the same, where another host has had the disk since.
	Doubt int64
	Err   error
}

func (e *Interrupted) Error() string { return e.Err.Error() }

// Unwrap returns why.
func (e *Interrupted) Unwrap() error { return e.Err }

// interrupted returns err, of a call of which logged bytes are in the log, and
// tried more are in doubt if err is in doubt.
func interrupted(logged, tried int64, err error) error {
	var doubt inDoubt
	switch is := errors.As(err, &doubt); {
	case err == nil || logged == 0 && !is:
		return err
	case !is:
		tried = 0
	}
	return &Interrupted{logged, tried, err}
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
	epoch id.Epoch
	// known is the last that is in the log for certain; all that was acknowledged or
	// read is up to it. doubt, if its pos is not 0, is the last of an append that may
	// have followed.
	known, doubt end
}

// Tail returns what the disk knew when it stopped serving: it must be closed.
func (d *Disk) Tail() *Tail {
	d.appendMu.Lock()
	defer d.appendMu.Unlock()
	return &Tail{d.cfg.Epoch, end{d.next - 1, d.ops.Head()}, d.doubt}
}

// Epoch is the owner's.
func (t *Tail) Epoch() id.Epoch { return t.epoch }

// Resumed reports whether the append that was in doubt at the end of Config.Resume is
// found in the log, or last in the results. Only what another host has done since can
// hide it.
func (d *Disk) Resumed() bool { return d.resumed }

// resumption compares a log with what the last owner knew of its end.
type resumption struct {
	tail           *Tail // nil: nothing is known
	known, resumed bool
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
	at := end{pos, mac}
	r.known = r.known || at == r.tail.known
	r.resumed = r.resumed || r.tail.doubt.pos != 0 && at == r.tail.doubt
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
