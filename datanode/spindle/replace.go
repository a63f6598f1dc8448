package spindle

import (
	"context"
	"errors"
	"slices"

	"plinth/internal/id"
)

// ErrServes is returned by Replace, which has changed nothing: the spindle's drive is there.
var ErrServes = errors.New("its drive serves")

// Replace has another drive be spindle n, in the directory of one that does not serve:
// it looks once more whether that is so. When no call is at work on the former one any
// more, whose files are closed then, it calls fresh, which makes the new one as CreateOne
// does and returns the options to open it with. Until it is open calls fail as before.
// What ends the context before leaves the former spindle, out of service. Errors:
// ErrServes, the context's, those of fresh, ErrVersion, datanode.ErrSpindle: the new one
// cannot be opened, and is the spindle all the same.
func (s *Set) Replace(ctx context.Context, n id.Spindle, fresh func() (Options, error)) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.life.RUnlock()
	s.replacing.Lock()
	defer s.replacing.Unlock()
	all := s.all()
	former := all[n]
	idle := make(chan error, 1)
	s.probes.Go(func() { // which a drive may hang for long
		if former.probe(); former.serving() == nil {
			idle <- ErrServes
			return
		}
		// By paths they would come to the new drive.
		former.calls.Wait()
		if err := former.close(); err != nil {
			former.log.Warn("files of a drive that is replaced are not closed well", "error", err)
		}
		idle <- nil
	})
	select {
	case err := <-idle:
		if err != nil {
			return err
		}
	case <-ctx.Done():
		return ctx.Err()
	}
	opts, err := fresh()
	if err != nil {
		return err
	}
	sp, err := openSpindle(former.fs, former.dir, n, &opts)
	if err != nil {
		return err
	}
	next := slices.Clone(all)
	next[n] = sp
	measure(next) // before it serves: what can be reserved must not seem to be nothing
	s.current.Store(&next)
	if err := sp.serving(); err != nil {
		return err
	}
	return nil
}

// Add opens one more spindle, which CreateOne made in a directory under the next number.
// Errors: ErrVersion, datanode.ErrSpindle: it cannot be opened, and is a spindle all the same.
func (s *Set) Add(dir string, opts Options) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.life.RUnlock()
	s.replacing.Lock()
	defer s.replacing.Unlock()
	all := s.all()
	sp, err := openSpindle(all[0].fs, dir, id.Spindle(len(all)), &opts)
	if err != nil {
		return err
	}
	next := append(slices.Clone(all), sp)
	measure(next) // before it serves: what can be reserved must not seem to be nothing
	s.current.Store(&next)
	if err := sp.serving(); err != nil {
		return err
	}
	return nil
}
