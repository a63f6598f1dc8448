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

	"plinth/datanode"
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
			Name:  "add",
			Usage: "make one more spindle of a drive, mounted empty on spindle-N of the next number N; where spindles are directories of one file system it is made. What is stopped is changed in its directory, what runs is asked at the API",
			Flags: slices.Concat([]cli.Flag{
				&cli.StringFlag{Name: "data", Value: dataDefault, Usage: "directory of a plinth up"},
				&cli.StringFlag{Name: "dir", Usage: "directory of a plinth datanode that is stopped"},
				&cli.StringFlag{Name: "node", Usage: "the data node that gets it, where the pool has several"},
			}, apiFlags()[:3], verboseFlags()),
			Action: addSpindle,
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
	when := "when plinth runs, "
	stopped, err := changeStopped(c, func(dir string, opts shelf.Options) error { return shelf.ReplaceSpindle(dir, int(n), opts) })
	if err == nil && !stopped {
		when = ""
		err = call(c, func(client *api.Client) error { return client.ReplaceSpindle(c.Context, n) })
	}
	if err != nil {
		return err
	}
	fmt.Printf("spindle %d is a new drive, and the one before is refused from now on; %sstatus says how far its content is restored\n", n, when)
	return nil
}

// changeStopped changes the drives of a data node that nobody has open: the one in --dir, or in
// --data where no --api is given. It returns false if a running one is to be asked at --api,
// which is set then.
func changeStopped(c *cli.Context, change func(dir string, opts shelf.Options) error) (stopped bool, err error) {
	dir, data := c.String("dir"), c.String("data")
	if dir != "" || !c.IsSet("api") || c.IsSet("data") {
		in := cmp.Or(dir, filepath.Join(data, "datanode"))
		pool, err := shelf.PoolID(vfs.Default, in)
		if err == nil {
			err = change(in, shelf.Options{PoolID: pool, Logger: newLogger(c)})
		}
		switch locked := errors.Is(err, shelf.ErrLocked); {
		case locked && dir != "":
			return false, fmt.Errorf("%w, or name a host's API instead, and the spindle as its status does", err)
		case !locked && (!errors.Is(err, shelf.ErrNoNode) || dir != "" || c.IsSet("data")):
			return err == nil, err
		}
	}
	if c.IsSet("api") {
		return false, nil
	}
	return false, c.Set("api", "unix:"+filepath.Join(data, apiSocketName))
}

// addSpindle returns when new segments use the spindle.
func addSpindle(c *cli.Context) error {
	if _, err := arguments(c); err != nil {
		return err
	}
	var n int
	stopped, err := changeStopped(c, func(dir string, opts shelf.Options) (err error) {
		n, err = shelf.AddSpindle(dir, opts)
		return err
	})
	if stopped {
		fmt.Printf("the data node has one more spindle, its number %d; new segments use it when plinth runs\n", n)
	}
	if err != nil || stopped {
		return err
	}
	return call(c, func(client *api.Client) error {
		before, err := nodeNamed(c, client)
		if err != nil {
			return err
		}
		if err := client.AddSpindle(c.Context, c.String("node")); err != nil {
			return err
		}
		return awaitNode(c, client, before.Name, func(n *datanode.NodeInfo) bool {
			if n.Spindles <= before.Spindles || n.SpindlesComing > 0 {
				return false
			}
			fmt.Printf("the data node has %d spindles, and new segments use all of them\n", n.Spindles)
			return true
		})
	})
}

// nodeNamed describes the data node that --node names, which may be missing where there is one.
func nodeNamed(c *cli.Context, client *api.Client) (*datanode.NodeInfo, error) {
	all, err := client.Nodes(c.Context)
	if err != nil {
		return nil, err
	}
	for i := range all {
		if all[i].Name == c.String("node") || len(all) == 1 && !c.IsSet("node") {
			return &all[i], nil
		}
	}
	return nil, fmt.Errorf("data node %q: the pool has none of that name; --node takes one of plinth node ls", c.String("node"))
}
