package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"plinth/internal/api"
	"plinth/internal/handover"
	"plinth/internal/keyring"
)

// upSocketName is where a server awaits its successor.
const upSocketName = "up.sock"

// takeOver ends the process that serves the directory, and takes its sockets. Where
// there is none it does nothing. What may be wrong with this process is found
// before: afterwards nobody would serve.
func (s *server) takeOver(ctx context.Context) (err error) {
	path := filepath.Join(s.data, upSocketName)
	if _, err := os.Stat(path); err == nil && s.rootKey != "" {
		if _, err := keyring.LoadRootFile(s.rootKey); err != nil {
			return fmt.Errorf("take over: %w", err)
		}
	}
	s.sockets, err = handover.Take(ctx, path)
	if errors.Is(err, handover.ErrNobody) {
		s.log.Info("there is nobody to take over from")
		return nil
	}
	return err
}

// awaitSuccessor returns when a successor has come and its hand-over is prepared:
// the sockets go on listening then. It returns nil when ctx ends, and at once where
// nobody can ask.
func (s *server) awaitSuccessor(ctx context.Context, a *agent) *handover.Successor {
	l, err := api.ListenUnix(filepath.Join(s.data, upSocketName))
	if err != nil {
		s.log.Warn("--take-over by another plinth will not work", "err", err)
		return nil
	}
	successor, err := handover.Await(ctx, l, s.log, func(ctx context.Context) {
		ctx, cancel := context.WithTimeout(ctx, shutdownTimeMax)
		defer cancel()
		if err := a.host().Quiesce(ctx); err != nil && ctx.Err() == nil {
			s.log.Warn("cannot destage before handing over", "err", err)
		}
	})
	if err != nil {
		if ctx.Err() == nil {
			s.log.Warn("--take-over by another plinth will not work any more", "err", err)
		}
		return nil
	}
	for _, socket := range s.sockets {
		socket.Keep()
	}
	return successor
}
