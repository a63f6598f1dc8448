package shelf

import (
	"errors"
	"fmt"
	"slices"

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
		err = errors.Join(s.replace(n), s.unwind())
	}
	if err != nil {
		return fmt.Errorf("replace spindle %d: %w", n, err)
	}
	return nil
}

func (s *Shelf) replace(n int) error {
	if n < 0 || n >= s.super.spindles {
		return fmt.Errorf("%w: the node has spindles 0 to %d", ErrNotReplaced, s.super.spindles-1)
	}
	if err := s.readRoster(); err != nil {
		return err
	}
	if err := s.openSpindles(); err != nil {
		return err
	}
	if err := s.meetDrives(); err != nil {
		return err
	}
	spindles := s.spindles.Status()
	if spindles[n].State == datanode.SpindleOK {
		return fmt.Errorf("%w: its drive serves: unmount that and mount the new one on %s", ErrNotReplaced, spindles[n].Path)
	}
	if err := s.newDrive(n, spindles); err != nil {
		return err
	}
	identity := spindle.NewIdentity()
	s.roster.seats[n] = seat{known: true, identity: identity, incarnation: identity}
	// The roster first: from here on the old drive is refused, and the next try draws
	// another identity.
	if err := s.place.writeRoster(s.super.poolID, s.roster); err != nil {
		return err
	}
	opts := s.spindleOptions()
	return spindle.CreateOne(s.place.fs, spindles[n].Path, id.Spindle(n), opts)
}

// newDrive tests that a spindle's directory is that of a new drive.
func (s *Shelf) newDrive(n int, spindles []datanode.SpindleStatus) error {
	path := spindles[n].Path
	info, err := s.place.fs.Stat(path)
	if isNotExist(err) {
		return fmt.Errorf("%w: there is no %s: make it and mount the new drive on it", ErrNotReplaced, path)
	}
	if err != nil {
		return err
	}
	names, err := s.place.fs.List(path)
	if err != nil {
		return fmt.Errorf("%w: %s: %w", ErrNotReplaced, path, err)
	}
	names = slices.DeleteFunc(names, func(name string) bool { return name == lostFound || name == spindle.Unfinished })
	if len(names) > 0 {
		return fmt.Errorf("%w: %s holds %s: a new drive is empty", ErrNotReplaced, path, names[0])
	}
	// An empty directory of the node's own file system is a drive that is not mounted,
	// where the other spindles have drives of their own.
	node, err := s.place.fs.Stat(s.place.dir)
	if err != nil {
		return err
	}
	if node.DeviceID() != info.DeviceID() {
		return nil
	}
	for _, other := range spindles {
		if other.State != datanode.SpindleOK {
			continue
		}
		info, err := s.place.fs.Stat(other.Path)
		if err == nil && info.DeviceID() == node.DeviceID() {
			return nil
		}
		return errors.Join(err, fmt.Errorf("%w: no drive is mounted on %s, and there is one on %s", ErrNotReplaced, path, other.Path))
	}
	return nil
}
