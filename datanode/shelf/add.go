package shelf

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"plinth/datanode"
	"plinth/datanode/spindle"
	"plinth/internal/id"
)

// AddSpindle gives the node in dir, which nobody has open, a spindle more: in the directory
// of the next number, on which an empty drive is mounted. Where all spindles are directories
// of the node's own file system it is made. Interrupted, it may be repeated. Hosts use
// the spindle as soon as all of them know it. It returns the spindle's number. Errors: those
// of Open, ErrNotAdded.
func AddSpindle(dir string, opts Options) (n int, err error) {
	s, err := enter(dir, opts)
	if err == nil {
		err = s.addClosed()
		n = s.super.spindles - 1
		err = errors.Join(err, s.unwind())
	}
	if err != nil {
		return 0, fmt.Errorf("add a spindle: %w", err)
	}
	return n, nil
}

func (s *Shelf) addClosed() error {
	if err := s.openDrives(); err != nil {
		return err
	}
	return s.add(context.Background(), s.super.spindles)
}

// AddSpindle implements datanode.Node: the rules are those of the function, which is for a
// node that nobody has open.
func (s *Shelf) AddSpindle(ctx context.Context, r *datanode.AddSpindleRequest) error {
	err := s.changeDrive(ctx, "add", r.Spindle, ErrNotAdded, s.add)
	if err == nil {
		s.logger.Info("the node has a spindle more", "spindle", r.Spindle)
	}
	return err
}

// add makes spindle n, the next, and opens it. Until the superblock counts it a crash leaves
// a directory that the next try clears.
func (s *Shelf) add(ctx context.Context, n int) error {
	s.adding.Lock()
	defer s.adding.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	has := s.spindles.Status()
	switch {
	case n != len(has):
		return fmt.Errorf("%w: the node has %d spindles, so that the next one is %d", ErrNotAdded, len(has), len(has))
	case n >= spindlesMax:
		return fmt.Errorf("%w: the node has %d spindles, which is the most", ErrNotAdded, n)
	}
	path := s.place.path(spindleName(n))
	if err := s.emptyDrive(path, has); err != nil {
		return fmt.Errorf("%w: %w", ErrNotAdded, err)
	}
	identity := spindle.NewIdentity()
	opts := s.spindleOptions()
	opts.Identities[id.Spindle(n)] = identity
	if err := spindle.CreateOne(s.place.fs, path, id.Spindle(n), opts); err != nil {
		return fmt.Errorf("%w: %w", ErrNotAdded, err)
	}
	super := s.super
	super.spindles = n + 1
	if err := s.place.writeSuperblock(super); err != nil {
		return err
	}
	s.rosterMu.Lock()
	s.super.spindles = super.spindles
	next := *s.roster
	next.seats = append(slices.Clone(next.seats), seat{known: true, identity: identity, incarnation: identity})
	s.roster = &next
	err := s.place.writeRoster(s.super.poolID, s.roster)
	s.rosterMu.Unlock()
	if err != nil { // the next start takes the drive as it is
		s.logger.Warn("which drive the new spindle is was not noted", "spindle", n, "error", err)
	}
	return s.spindles.Add(path, opts)
}

// emptyDrive tests that a directory is that of a new drive, beside others. It makes one where
// none of the others has a file system of its own, and clears what an interrupted
// try left.
func (s *Shelf) emptyDrive(path string, others []datanode.SpindleStatus) error {
	there, err := exists(s.place.fs, path)
	if err != nil {
		return err
	}
	if there {
		names, err := s.place.fs.List(path)
		if err != nil {
			return err
		}
		if spindle.Fresh(names, lostFound) {
			if err := s.place.remove(spindleName(len(others)), spindle.SuperName); err != nil {
				return err
			}
		}
		return s.newDrive(path, others)
	}
	if mounted, err := s.mounted(others); err != nil || mounted != "" {
		return errors.Join(err, fmt.Errorf("there is no %s, and a drive is mounted on %s: make it and mount the new drive on it", path, mounted))
	}
	return s.place.mkdir(path)
}
