package shelf

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"plinth/datanode"
	"plinth/datanode/index"
	"plinth/datanode/spindle"
	"plinth/internal/registry"
)

// Recover opens the data node in dir whose index or registry is lost or
// damaged, and whose superblock, log and spindles are there. The registry is
// the newest of its copies on the spindles and what is left of it; the index is
// rebuilt from the fragments' headers and stays incomplete, which means that it
// finds no duplicates and deletes nothing, until every disk's owner has stated
// its lists and CompleteIndex is called. Interrupted, it leaves a node that Open
// refuses, or whose index Open makes anew; Recover takes it again. Errors: those of Open; datanode.ErrNotFound
// if there is no copy of the registry.
func Recover(ctx context.Context, dir string, opts Options) (*Shelf, error) {
	s, err := enter(dir, opts)
	if err == nil {
		if err = s.recover(ctx); err != nil {
			err = errors.Join(err, s.unwind())
		}
	}
	if err != nil {
		return nil, fmt.Errorf("recover data node: %w", err)
	}
	s.start()
	return s, nil
}

func (s *Shelf) recover(ctx context.Context) error {
	if err := s.readRoster(); err != nil {
		return err
	}
	if err := s.openLog(s.opts.AcceptLostLog); err != nil {
		return err
	}
	if err := s.openSpindles(); err != nil {
		return err
	}
	if err := s.meetDrives(); err != nil {
		return err
	}
	dump, err := s.newestRegistry()
	if err != nil {
		return err
	}
	if err := s.checkMember(dump); err != nil {
		return err
	}
	// Without it Open refuses: from here until the new index is whole.
	fs, dir := s.place.fs, s.place.path(indexName)
	if err := s.place.mkdir(dir); err != nil {
		return err
	}
	if err := s.place.remove(indexName, fingerprintsName); err != nil {
		return err
	}
	if err := registry.Restore(fs, s.place.path(indexName, registryName), dump); err != nil {
		return err
	}
	if err := s.rebuildIndex(ctx, s.walk); err != nil {
		return err
	}
	return s.openIndex(ctx)
}

// rebuildIndex makes an index of what walk finds, which is not complete.
func (s *Shelf) rebuildIndex(ctx context.Context, walk func(func(datanode.SegmentEntry) error) error) error {
	x, err := index.Rebuild(ctx, s.place.fs, s.place.path(indexName, fingerprintsName), s.indexDeps(), s.indexOptions(), walk)
	if err != nil {
		return err
	}
	return x.Close()
}

// newestRegistry returns the newest dump of the registry: of its own, if it
// opens, and of the sound copies on spindles.
func (s *Shelf) newestRegistry() ([]byte, error) {
	newest := s.copies.newest()
	dump, revision, err := s.ownRegistry()
	if err != nil {
		s.logger.Warn("the registry is taken from its copies", "error", err)
	} else if newest.dump == nil || revision > newest.revision {
		newest = registryCopy{dump, revision}
	}
	if newest.dump == nil {
		return nil, datanode.Errorf(datanode.ErrNotFound,
			"no copy of the registry is left on the spindles of %s: bring back the spindles that are absent", s.place.dir)
	}
	s.logger.Info("registry restored", "revision", newest.revision)
	return newest.dump, nil
}

// ownRegistry dumps the registry in its place. It copies nothing: the copies may
// be newer.
func (s *Shelf) ownRegistry() ([]byte, uint64, error) {
	r, err := registry.Open(s.place.fs, s.place.path(indexName, registryName), registry.Options{Logger: s.logger})
	if err != nil {
		return nil, 0, err
	}
	dump, revision, err := r.Dump()
	return dump, revision, errors.Join(err, r.Close())
}

// walk calls take with each segment on the spindles.
func (s *Shelf) walk(take func(datanode.SegmentEntry) error) error {
	return s.spindles.Segments(func(found spindle.SegmentOnSpindles) error {
		keeps := func(p spindle.Place) bool { return s.opts.keeps(found.Segment, p.Index, p.Spindle) }
		if !slices.ContainsFunc(found.Present, keeps) {
			return nil
		}
		return take(datanode.SegmentEntry{Header: found.Header, FragmentBytes: found.FragmentBytes})
	})
}
