package main

import (
	"errors"
	"fmt"

	"github.com/urfave/cli/v2"

	"plinth/internal/api"
	"plinth/internal/host"
)

func reclaimCommand() *cli.Command {
	return &cli.Command{
		Name: "reclaim", Usage: "free what nobody needs now, instead of when it is due",
		Flags: append(apiFlags(),
			&cli.BoolFlag{Name: "dry-run", Usage: "change nothing, and print the plan"},
			&cli.BoolFlag{Name: "full", Usage: "empty every segment of which an eighth or more is dead"},
		),
		Action: reclaim,
	}
}

func reclaim(c *cli.Context) error {
	if _, err := arguments(c); err != nil {
		return err
	}
	opts := host.ReclaimOptions{DryRun: c.Bool("dry-run"), Full: c.Bool("full")}
	return call(c, func(client *api.Client) error {
		r, err := client.Reclaim(c.Context, opts)
		switch {
		case err != nil:
			return err
		case c.Bool("json"):
			err = printJSON(r)
		case opts.DryRun:
			fmt.Print(r.Plan)
		default:
			printReclaim(r)
		}
		if err == nil && len(r.Damaged) > 0 {
			err = errors.New("some segments cannot be emptied, because a chunk in them does not open: plinth verify says more")
		}
		return err
	})
}

func printReclaim(r *host.ReclaimReport) {
	fmt.Printf("emptied %s in %s, moving %s (%s)\n", plural(r.Condemned, "segment"), plural(r.Cycles, "cycle"),
		plural(int(r.MovedChunks), "chunk"), formatSize(r.MovedBytes))
	fmt.Printf("freed %s, %s on spindles\n", plural(r.Deleted, "segment"), formatSize(r.FreedBytes))
	if r.Waiting > 0 {
		fmt.Printf("%s more are empty, and are freed after the next pass of the disks that used them\n", plural(r.Waiting, "segment"))
	}
	for _, s := range r.Damaged {
		fmt.Printf("damaged: segment %s\n", s)
	}
}
