package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
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
			Usage: "make a new drive, mounted empty on spindle-N, the spindle; what is stopped is changed in its directory, what runs is asked at the API",
			Flags: slices.Concat([]cli.Flag{
				&cli.StringFlag{Name: "data", Value: dataDefault, Usage: "directory of a plinth up"},
				&cli.StringFlag{Name: "dir", Usage: "directory of a plinth datanode that is stopped; N is then the number in it"},
			}, apiFlags()[:3], verboseFlags()),
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
	dir, data := c.String("dir"), c.String("data")
	ask := dir == "" && c.IsSet("api") && !c.IsSet("data")
	if !ask {
		err = replaceStopped(c, cmp.Or(dir, filepath.Join(data, "datanode")), n)
		switch locked := errors.Is(err, shelf.ErrLocked); {
		case locked && dir != "":
			return fmt.Errorf("%w, or name a host's API instead, and the spindle as its status does", err)
		case locked || errors.Is(err, shelf.ErrNoNode) && dir == "" && !c.IsSet("data"):
			ask = true
		case err != nil:
			return err
		}
	}
	when := "when plinth runs, "
	if ask {
		if when = ""; !c.IsSet("api") {
			if err := c.Set("api", "unix:"+filepath.Join(data, apiSocketName)); err != nil {
				return err
			}
		}
		if err := call(c, func(client *api.Client) error { return client.ReplaceSpindle(c.Context, n) }); err != nil {
			return err
		}
	}
	fmt.Printf("spindle %d is a new drive, and the one before is refused from now on; %sstatus says how far its content is restored\n", n, when)
	return nil
}

// replaceStopped replaces a spindle of a data node that nobody has open.
func replaceStopped(c *cli.Context, dir string, n id.Spindle) error {
	pool, err := shelf.PoolID(vfs.Default, dir)
	if err != nil {
		return err
	}
	return shelf.ReplaceSpindle(dir, int(n), shelf.Options{PoolID: pool, Logger: newLogger(c)})
}
