package main

import (
	"bufio"
	"fmt"
	"os"

	"github.com/urfave/cli/v2"

	"plinth/internal/api"
	"plinth/internal/host"
)

func diffCommand() *cli.Command {
	return &cli.Command{
		Name: "diff", Usage: "list the bytes that differ between two snapshots of a disk: offset, length, what is there now",
		ArgsUsage: "DISK@OLDER DISK@NEWER", Flags: apiFlags(), Action: diff, BashComplete: completeSnapshots,
	}
}

func diff(c *cli.Context) error {
	args, err := arguments(c, "DISK@OLDER", "DISK@NEWER")
	if err != nil {
		return err
	}
	disk, from, err := parseSnapshot(args[0])
	if err != nil {
		return err
	}
	other, to, err := parseSnapshot(args[1])
	if err != nil {
		return err
	}
	if disk != other {
		return fmt.Errorf("%s and %s are snapshots of two disks", args[0], args[1])
	}
	return call(c, func(client *api.Client) error {
		out := bufio.NewWriter(os.Stdout)
		var whole *host.DiffReport
		for offset, more := int64(0), true; more; {
			page, err := client.Diff(c.Context, disk, from, to, offset, 0)
			if err != nil {
				return err
			}
			if !c.Bool("json") {
				printExtents(out, page.Extents)
			} else if whole == nil {
				whole = page
			} else {
				whole.Extents = append(whole.Extents, page.Extents...)
			}
			more, offset = page.Next > offset, page.Next
		}
		if whole != nil {
			whole.Next = 0
			return printJSON(whole)
		}
		return out.Flush()
	})
}

func printExtents(out *bufio.Writer, extents []host.DiffExtent) {
	for _, e := range extents {
		now := "data"
		if e.Zero {
			now = "zero"
		}
		fmt.Fprintf(out, "%d\t%d\t%s\n", e.Offset, e.Length, now)
	}
}
