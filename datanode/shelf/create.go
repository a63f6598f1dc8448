package shelf

import (
	"context"
	"errors"
	"fmt"

	"plinth/datanode"
	"plinth/datanode/spindle"
	"plinth/internal/id"
)

// Create makes a data node in dir, which is empty, not there, or holds empty
// spindle directories (mounted drives). The node appears whole: what an
// interrupted Create left is taken for none, and the next one clears it. Nothing
// is left open. Errors: ErrExists, ErrTooLarge, ErrLocked, those of the file
// system.
func Create(dir string, opts Options) error {
	if err := create(dir, opts); err != nil {
		return fmt.Errorf("create data node: %w", err)
	}
	return nil
}

func create(dir string, opts Options) (err error) {
	if err := opts.Validate(); err != nil {
		return err
	}
	p := place{opts.fs(), dir}
	if _, err := p.leftovers(); err != nil {
		return err // before the directory is touched: it may be anybody's
	}
	if err := p.mkdir(dir); err != nil {
		return err
	}
	lock, err := p.lock()
	if err != nil {
		return err
	}
	s := &Shelf{place: p, opts: opts, logger: opts.logger()}
	s.owns(lock)
	defer func() { err = errors.Join(err, s.unwind()) }()
	left, err := p.leftovers()
	if err != nil {
		return err
	}
	for _, name := range left {
		if err := p.clear(name); err != nil {
			return err
		}
	}
	drives, err := p.drives(opts.spindles())
	if err != nil {
		return err
	}
	if s.super, err = opts.sized(drives); err != nil {
		return err
	}
	if err := p.begin(); err != nil {
		return err
	}
	if err := s.makeParts(); err != nil {
		return err
	}
	if err := p.writeSuperblock(s.super); err != nil {
		return err
	}
	return p.remove(creatingName)
}

// makeParts makes log, spindles, index and registry, and leaves them open.
func (s *Shelf) makeParts() error {
	s.roster = &roster{seats: make([]seat, s.super.spindles)}
	if err := s.openLog(true); err != nil {
		return err
	}
	dirs := s.place.spindles(s.super.spindles)
	for _, dir := range dirs {
		if err := s.place.mkdir(dir); err != nil {
			return err
		}
	}
	if err := spindle.Create(s.place.fs, dirs, s.spindleOptions()); err != nil {
		return err
	}
	if err := s.openSpindles(); err != nil {
		return err
	}
	for n := range s.roster.seats {
		identity, _ := s.spindles.Identity(id.Spindle(n))
		s.roster.seats[n].meet(identity, 0)
	}
	if err := s.place.writeRoster(s.super.poolID, s.roster); err != nil {
		return err
	}
	if err := s.place.mkdir(s.place.path(indexName)); err != nil {
		return err
	}
	if s.opts.Rejoin {
		if err := s.rebuildIndex(context.Background(), func(func(datanode.SegmentEntry) error) error { return nil }); err != nil {
			return err
		}
	}
	if err := s.openFingerprints(!s.opts.Rejoin); err != nil {
		return err
	}
	return s.openRegistry(true)
}
