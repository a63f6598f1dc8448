package shelf

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"plinth/datanode"
	"plinth/datanode/spindle"
	"plinth/internal/id"
)

// ReplaceSpindle makes spindle n of the node in dir, which nobody has open, in its
// directory, which is there and empty: a new drive is mounted on it. From then on the
// drive that was the spindle is refused. Interrupted, it may be repeated. The rest is the
// hosts': they restore what the spindle had. Errors: those of Open, ErrNotReplaced.
func ReplaceSpindle(dir string, n int, opts Options) error {
	s, err := enter(dir, opts)
	if err == nil {
		err = errors.Join(s.replaceClosed(n), s.unwind())
	}
	if err != nil {
		return fmt.Errorf("replace spindle %d: %w", n, err)
	}
	return nil
}

func (s *Shelf) replaceClosed(n int) error {
	if err := s.openDrives(); err != nil {
		return err
	}
	return s.replace(context.Background(), n)
}

// openDrives opens the spindles alone, of a node that nobody has open.
func (s *Shelf) openDrives() error {
	if err := s.readRoster(); err != nil {
		return err
	}
	if err := s.openSpindles(); err != nil {
		return err
	}
	return s.meetDrives()
}

// ReplaceSpindle implements datanode.Node: the rules are those of the function, which is
// for a node that nobody has open.
func (s *Shelf) ReplaceSpindle(ctx context.Context, r *datanode.ReplaceSpindleRequest) error {
	err := s.changeDrive(ctx, "replace", r.Spindle, ErrNotReplaced, s.replace)
	if err == nil {
		s.logger.Info("spindle is a new drive: hosts restore what it had", "spindle", r.Spindle)
	}
	return err
}

// changeDrive changes the drive of a spindle of a node that serves. refused is the error that
// says what is in the way.
func (s *Shelf) changeDrive(ctx context.Context, what string, n id.Spindle, refused error, change func(context.Context, int) error) error {
	err := s.Held()
	if err == nil {
		err = change(ctx, int(n))
	}
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	}
	err = fmt.Errorf("%s spindle %d: %w", what, n, err)
	if errors.Is(err, refused) {
		return &datanode.Error{Code: datanode.CodeInvalid, Text: err.Error()}
	}
	return datanode.AsError(err)
}

// callsTime is how long a replacement waits for calls at work on the former drive: one that
// is dead may hold them for ever.
const callsTime = 10 * time.Second

// replace makes spindle n of the drive in its directory, and opens it. What a crash leaves
// of it is the former drive, or one that is to be restored.
func (s *Shelf) replace(ctx context.Context, n int) error {
	if has := len(s.spindles.Status()); n < 0 || n >= has {
		return fmt.Errorf("%w: the node has spindles 0 to %d", ErrNotReplaced, has-1)
	}
	path := s.place.path(spindleName(n))
	limited, cancel := context.WithTimeout(ctx, callsTime)
	defer cancel()
	err := s.spindles.Replace(limited, id.Spindle(n), func() (spindle.Options, error) {
		spindles := s.spindles.Status()
		if err := s.newDrive(path, spindles); err != nil {
			return spindle.Options{}, fmt.Errorf("%w: %w", ErrNotReplaced, err)
		}
		// The roster first: from here on the old drive is refused, and the next try draws
		// another identity. And before the drive serves: hosts must not take it for the one
		// that they know.
		identity := spindle.NewIdentity()
		if err := s.seat(n, seat{known: true, identity: identity, incarnation: identity}); err != nil {
			return spindle.Options{}, err
		}
		opts := s.spindleOptions()
		return opts, spindle.CreateOne(s.place.fs, path, id.Spindle(n), opts)
	})
	switch {
	case errors.Is(err, spindle.ErrServes):
		return fmt.Errorf("%w: %w: unmount that and mount the new one on %s", ErrNotReplaced, err, path)
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%w: calls to its former drive have not ended in %v: try again", ErrNotReplaced, callsTime)
	}
	return err
}

// seat notes, durably, which drive a spindle is.
func (s *Shelf) seat(n int, is seat) error {
	s.rosterMu.Lock()
	defer s.rosterMu.Unlock()
	next := *s.roster
	next.seats = slices.Clone(next.seats)
	next.seats[n] = is
	if err := s.place.writeRoster(s.super.poolID, &next); err != nil {
		return err
	}
	s.roster = &next
	return nil
}

// newDrive tests that a spindle's directory is that of a new drive, beside others.
func (s *Shelf) newDrive(path string, others []datanode.SpindleStatus) error {
	info, err := s.place.fs.Stat(path)
	if isNotExist(err) {
		return fmt.Errorf("there is no %s: make it and mount the new drive on it", path)
	}
	if err != nil {
		return err
	}
	names, err := s.place.fs.List(path)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	names = slices.DeleteFunc(names, func(name string) bool { return name == lostFound || name == spindle.Unfinished })
	if len(names) > 0 {
		return fmt.Errorf("%s holds %s: a new drive is empty", path, names[0])
	}
	// An empty directory of the node's own file system is a drive that is not mounted,
	// where the other spindles have drives of their own.
	node, err := s.place.fs.Stat(s.place.dir)
	if err != nil || node.DeviceID() != info.DeviceID() {
		return err
	}
	if mounted, err := s.mounted(others); err != nil || mounted != "" {
		return errors.Join(err, fmt.Errorf("no drive is mounted on %s, and there is one on %s", path, mounted))
	}
	return nil
}

// mounted returns the directory of a spindle that serves and has a file system of its own,
// empty where the first that serves has not.
func (s *Shelf) mounted(spindles []datanode.SpindleStatus) (path string, err error) {
	node, err := s.place.fs.Stat(s.place.dir)
	if err != nil {
		return "", err
	}
	for _, other := range spindles {
		if other.State != datanode.SpindleOK {
			continue
		}
		info, err := s.place.fs.Stat(other.Path)
		if err != nil || info.DeviceID() != node.DeviceID() {
			return other.Path, err
		}
		return "", nil
	}
	return "", nil
}
