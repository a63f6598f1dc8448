package main

import (
	"github.com/urfave/cli/v2"

	"plinth/internal/api"
)

func cloneCommand() *cli.Command {
	return &cli.Command{
		Name: "clone", Usage: "make a disk that begins as a snapshot, and depends on nothing", ArgsUsage: snapshotWord + " NAME",
		Flags: apiFlags(), Action: clone, BashComplete: completeSnapshots,
	}
}

func clone(c *cli.Context) error {
	disk, name, rest, err := oneSnapshot(c, "NAME")
	if err != nil {
		return err
	}
	return call(c, func(client *api.Client) error {
		info, err := client.Clone(c.Context, disk, name, rest[0])
		if err != nil {
			return err
		}
		return printDisk(c, info)
	})
}
