package shelf

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"plinth/datanode"
	"plinth/datanode/spindle"
	"plinth/internal/id"
	"plinth/internal/registry"
)

// copyName is the name of the registry's copy among a spindle's small files.
const copyName = "registry"

// copiesFor returns how many copies of the registry outlive what the pool's
// data outlives: m+1, where m is the parity that this many spindles get.
func copiesFor(spindles int) int {
	switch {
	case spindles >= 6: // 8+2, 4+2
		return 3
	case spindles >= 2: // 2+1, 1+1
		return 2
	}
	return 1
}

// copies keeps the registry's copies on the spindles.
type copies struct {
	spindles *spindle.Set
	logger   *slog.Logger
	// floor is the revision of the newest copy that was there when the node was
	// opened: an older registry is not copied over it.
	floor uint64
}

// registryCopy is a dump and its revision.
type registryCopy struct {
	dump     []byte
	revision uint64
}

// newest returns the newest sound copy on the spindles that serve, without a
// dump if there is none.
func (c *copies) newest() registryCopy {
	var best registryCopy
	for _, s := range c.spindles.Status() {
		if s.State != datanode.SpindleOK {
			continue
		}
		dump, err := c.spindles.GetMeta(s.Spindle, copyName)
		if errors.Is(err, datanode.ErrNotFound) {
			continue
		}
		var revision uint64
		if err == nil {
			var d *registry.Dump
			if d, err = registry.ParseDump(dump); err == nil {
				revision = d.Revision
			}
		}
		if err != nil {
			c.logger.Warn("a copy of the registry cannot be used", "spindle", s.Spindle, "path", s.Path, "error", err)
		} else if best.dump == nil || revision > best.revision {
			best = registryCopy{dump, revision}
		}
	}
	return best
}

// put writes a dump to so many healthy spindles as are wanted, the lowest first,
// so that an old copy seldom outlives on another. Fewer are logged, none is an
// error. The registry calls it once at a time.
func (c *copies) put(dump []byte, revision uint64) error {
	if revision < c.floor {
		return fmt.Errorf("the registry is at revision %d, a copy of it at %d", revision, c.floor)
	}
	var healthy []id.Spindle
	all := c.spindles.Status()
	want := copiesFor(len(all))
	for _, s := range all {
		if s.State == datanode.SpindleOK {
			healthy = append(healthy, s.Spindle)
		}
	}
	written := 0
	var failures []error
	for written < want && len(healthy) > 0 {
		n := min(want-written, len(healthy))
		errs := make([]error, n)
		var running sync.WaitGroup
		for i, s := range healthy[:n] {
			running.Go(func() { errs[i] = c.spindles.PutMeta(s, copyName, dump) })
		}
		running.Wait()
		for i, err := range errs {
			if err == nil {
				written++
			} else {
				failures = append(failures, fmt.Errorf("spindle %d: %w", healthy[i], err))
			}
		}
		healthy = healthy[n:]
	}
	if written == 0 && len(failures) == 0 {
		return fmt.Errorf("no spindle is in service to take a copy of the registry at revision %d", revision)
	}
	if written == 0 {
		return fmt.Errorf("no spindle took a copy of the registry at revision %d: %w", revision, errors.Join(failures...))
	}
	if written < want {
		c.logger.Warn("too few copies of the registry", "revision", revision, "copies", written, "wanted", want,
			"error", errors.Join(failures...))
	}
	return nil
}
