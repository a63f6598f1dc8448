package main

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/urfave/cli/v2"

	"plinth/datanode/shelf"
	"plinth/internal/host"
	"plinth/internal/standalone"
)

func upCommand() *cli.Command {
	return &cli.Command{
		Name:   "up",
		Usage:  "run everything on this machine: a data node, an agent and a first disk",
		Flags:  slices.Concat(siteFlags(), serveFlags("DATA")),
		Action: up,
	}
}

func up(c *cli.Context) error {
	if _, err := arguments(c); err != nil {
		return err
	}
	opts, err := siteOptions(c)
	if err != nil {
		return err
	}
	if err := flashOptions(c, &opts.Host); err != nil {
		return err
	}
	spareProcessor()
	s, err := newServer(c, opts.Dir, opts.Keys, opts.Logger)
	if err != nil {
		return err
	}
	return s.serve(c, func(ctx context.Context) (*agent, error) {
		site, err := standalone.Open(ctx, opts)
		if errors.Is(err, shelf.ErrLocked) {
			err = fmt.Errorf("%w; --take-over goes on with the disks of a plinth up", err)
		}
		if err != nil {
			return nil, err
		}
		return &agent{
			host: func() *host.Host { return site.Host }, exports: host.Exports{Host: site.Host}, rootKey: site.NewRootKey,
			wait: func(context.Context) error { return nil }, close: site.Close,
		}, nil
	})
}
