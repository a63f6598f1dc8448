package main

import (
	"context"
	"fmt"
	"path/filepath"
	"strconv"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/urfave/cli/v2"

	"plinth/datanode/shelf"
	"plinth/internal/api"
	"plinth/internal/id"
)

func spindleCommand() *cli.Command {
	return &cli.Command{
		Name: "spindle", Usage: "drives of a data node",
		Subcommands: []*cli.Command{{
			Name: "replace", ArgsUsage: "N",
			Usage: "make a new drive, mounted empty on spindle-N, the spindle; run it while plinth is stopped",
			Flags: append([]cli.Flag{
				&cli.StringFlag{Name: "data", Value: dataDefault, Usage: "directory of a plinth up"},
				&cli.StringFlag{Name: "dir", Usage: "directory of a plinth datanode", DefaultText: "DATA/datanode"},
			}, verboseFlags()...),
			Action: replaceSpindle,
		}, {
			Name: "drain", ArgsUsage: "N", Usage: "move what a spindle has to others, so that it can be replaced without a loss of redundancy",
			Flags: apiFlags(), Action: changeSpindle((*api.Client).DrainSpindle, "what spindle %d has is moved to others: plinth status says how far that is, and plinth spindle use %d calls it off\n"),
		}, {
			Name: "use", ArgsUsage: "N", Usage: "have a spindle used again that is being drained",
			Flags: apiFlags(), Action: changeSpindle((*api.Client).UseSpindle, "spindle %d is used again: plinth spindle drain %d has it emptied\n"),
		}},
	}
}

// changeSpindle calls the API with a spindle's number.
func changeSpindle(change func(*api.Client, context.Context, id.Spindle) error, done string) cli.ActionFunc {
	return func(c *cli.Context) error {
		args, err := arguments(c, "N")
		if err != nil {
			return err
		}
		n, err := parseSpindle(args[0])
		if err != nil {
			return err
		}
		return call(c, func(client *api.Client) error {
			if err := change(client, c.Context, n); err != nil {
				return err
			}
			fmt.Printf(done, n, n)
			return nil
		})
	}
}

func parseSpindle(text string) (id.Spindle, error) {
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		return 0, fmt.Errorf("spindle %q: not a number as plinth status shows it", text)
	}
	return id.Spindle(n), nil
}

func replaceSpindle(c *cli.Context) error {
	args, err := arguments(c, "N")
	if err != nil {
		return err
	}
	n, err := parseSpindle(args[0])
	if err != nil {
		return err
	}
	dir := c.String("dir")
	if dir == "" {
		dir = filepath.Join(c.String("data"), "datanode")
	}
	pool, err := shelf.PoolID(vfs.Default, dir)
	if err != nil {
		return err
	}
	if err := shelf.ReplaceSpindle(dir, int(n), shelf.Options{PoolID: pool, Logger: newLogger(c)}); err != nil {
		return err
	}
	fmt.Printf("spindle %d is a new drive, and the one before is refused from now on; when plinth runs, status says how far its content is restored\n", n)
	return nil
}
