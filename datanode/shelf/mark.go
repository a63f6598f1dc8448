package shelf

import (
	"encoding/binary"
	"errors"
	"sync"

	"plinth/datanode"
	"plinth/internal/id"
)

// markName is the small file of a spindle that says how often it was opened.
const markName = "opens"

// meetDrives compares the drives that serve with the roster, takes note of those that
// were not known, and marks all. A drive that is older than the node knows serves, under
// another incarnation: what it has is right, as segments never change, and hosts restore
// what it lacks.
func (s *Shelf) meetDrives() error {
	for _, st := range s.spindles.Status() {
		if st.State != datanode.SpindleOK {
			continue
		}
		opens := uint64(0)
		b, err := s.spindles.GetMeta(st.Spindle, markName)
		switch {
		case err == nil && len(b) == 8:
			opens = binary.LittleEndian.Uint64(b)
		case err != nil && !errors.Is(err, datanode.ErrNotFound):
			s.logger.Warn("a spindle's mark cannot be read: it may be an older copy", "spindle", st.Spindle, "error", err)
		}
		identity, _ := s.spindles.Identity(st.Spindle)
		if seat := &s.roster.seats[st.Spindle]; seat.meet(identity, opens) {
			s.logger.Warn("a spindle has gone back in time: hosts restore what it lacks", "spindle", st.Spindle,
				"path", st.Path, "opens", opens, "known", seat.opens)
		}
	}
	return s.mark()
}

// mark counts an opening, on the spindles first: one that knows of more than the roster
// is not older.
func (s *Shelf) mark() error {
	var running sync.WaitGroup
	for _, st := range s.spindles.Status() {
		if st.State != datanode.SpindleOK {
			continue
		}
		running.Go(func() {
			seat := &s.roster.seats[st.Spindle]
			err := s.spindles.PutMeta(st.Spindle, markName, binary.LittleEndian.AppendUint64(nil, seat.opens+1))
			if err != nil {
				s.logger.Warn("a spindle takes no mark", "spindle", st.Spindle, "error", err)
				return
			}
			seat.opens++
		})
	}
	running.Wait()
	return s.place.writeRoster(s.super.poolID, s.roster)
}

// incarnation returns a spindle's, 0 where no drive was ever seen.
func (s *Shelf) incarnation(n id.Spindle) uint64 {
	s.rosterMu.Lock()
	defer s.rosterMu.Unlock()
	return s.roster.seats[n].incarnation
}
