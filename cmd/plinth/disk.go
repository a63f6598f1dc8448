package main

import (
	"fmt"
	"os"
	"text/tabwriter"

	"github.com/urfave/cli/v2"

	"plinth/internal/api"
	"plinth/internal/chunk"
	"plinth/internal/host"
)

func diskCommand() *cli.Command {
	return &cli.Command{
		Name: "disk", Usage: "create, list, show, resize, limit, rename, move and remove disks", HideHelpCommand: true,
		Subcommands: []*cli.Command{
			{
				Name: "create", Usage: "create an empty, thin disk", ArgsUsage: "NAME SIZE",
				Flags: append(apiFlags(),
					&cli.StringFlag{Name: "chunk", Value: chunk.SizeDefault.String(), Usage: "unit of deduplication: 4K, 8K, 16K, 32K or 64K"},
					&cli.StringFlag{Name: "cipher", Value: chunk.AES256GCM.String(), Usage: "aes-256-gcm or aes-256-xts"},
					&cli.StringFlag{Name: "durability", Value: "flush", Usage: "when a write is on stable media: flush (at the guest's flush) or stable (at once)"},
				),
				Action: createDisk,
			},
			{Name: "ls", Usage: "list the disks", Flags: apiFlags(), Action: listDisks},
			{Name: "show", Usage: "show a disk", ArgsUsage: "NAME", Flags: apiFlags(), Action: showDisk, BashComplete: completeDisks},
			{Name: "resize", Usage: "make a disk larger", ArgsUsage: "NAME SIZE", Flags: apiFlags(), Action: resizeDisk, BashComplete: completeDisks},
			{
				Name: "set", Usage: "limit what a disk's clients may do, at once and from now on", ArgsUsage: "NAME",
				Flags: append(limitsFlags(), apiFlags()...), Action: setDisk, BashComplete: completeDisks,
			},
			{Name: "rename", Usage: "give a disk another name", ArgsUsage: "NAME NEW", Flags: apiFlags(), Action: renameDisk, BashComplete: completeDisks},
			{Name: "move", Usage: "have another host serve a disk, under its clients", ArgsUsage: "NAME HOST", Flags: apiFlags(), Action: moveDisk, BashComplete: completeDisks},
			{
				Name: "rm", Usage: "remove a disk for ever", ArgsUsage: "NAME",
				Flags:  append(apiFlags(), &cli.BoolFlag{Name: "snapshots", Usage: "with all its snapshots: a disk that has some is else not removed"}),
				Action: removeDisk, BashComplete: completeDisks,
			},
		},
	}
}

func createDisk(c *cli.Context) error {
	args, err := arguments(c, "NAME", "SIZE")
	if err != nil {
		return err
	}
	req := api.CreateDisk{Name: args[0], Cipher: c.String("cipher")}
	if req.Bytes, err = parseSize(args[1]); err != nil {
		return err
	}
	size, err := chunk.ParseSize(c.String("chunk"))
	if err != nil {
		return err
	}
	req.ChunkBytes = uint32(size)
	switch d := c.String("durability"); d {
	case "flush":
	case "stable":
		req.Stable = true
	default:
		return fmt.Errorf("durability %q is neither flush nor stable", d)
	}
	return call(c, func(client *api.Client) error {
		info, err := client.CreateDisk(c.Context, req)
		if err != nil {
			return err
		}
		return printDisk(c, info)
	})
}

func listDisks(c *cli.Context) error {
	if _, err := arguments(c); err != nil {
		return err
	}
	return call(c, func(client *api.Client) error {
		disks, err := client.Disks(c.Context)
		if err != nil {
			return err
		}
		if c.Bool("json") {
			return printJSON(api.DiskList{Disks: disks})
		}
		return printDisks(disks)
	})
}

func printDisks(disks []host.DiskInfo) error {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "NAME\tSIZE\tMAPPED\tCHUNK\tCIPHER\tSNAPSHOTS\tCLIENTS\tSTATE")
	for _, d := range disks {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%d\t%d\t%s\n", d.Name, formatSize(d.Bytes), formatSize(d.LogicalBytes),
			chunk.Size(d.Chunk), d.Cipher, d.Snapshots, d.Clients, d.State)
	}
	return w.Flush()
}

// printDisk shows one disk in lines.
func printDisk(c *cli.Context, d *host.DiskInfo) error {
	if c.Bool("json") {
		return printJSON(d)
	}
	durability := "flush"
	if d.Stable {
		durability = "stable"
	}
	lines := [][2]string{
		{"name", d.Name},
		{"id", fmt.Sprint(d.ID)},
		{"size", fmt.Sprintf("%s (%d bytes)", formatSize(d.Bytes), d.Bytes)},
		{"chunk", chunk.Size(d.Chunk).String()},
		{"cipher", d.Cipher},
		{"durability", durability},
		{"created", d.Created.Local().Format("2006-01-02 15:04:05")},
		{"state", d.State},
		{"clients", fmt.Sprint(d.Clients)},
		{"epoch", fmt.Sprint(d.Epoch)},
		{"snapshots", fmt.Sprint(d.Snapshots)},
		{"limits", formatLimits(&d.Limits)},
	}
	if w := d.Waits; w.Limit > 0 || w.CPU > 0 {
		lines = append(lines, [2]string{"waits", fmt.Sprintf("%d requests for limits, %.1f s together; %d for CPU time, %.1f s", w.Limit, w.LimitSeconds, w.CPU, w.CPUSeconds)})
	}
	lines = append(lines, spaceLines(d.LogicalBytes, d.ExclusiveBytes, d.SharedBytes, d.SpaceAt)...)
	if d.CloneOf != 0 {
		lines = append(lines, [2]string{"clone of", fmt.Sprintf("disk %d, until its own first pass", d.CloneOf)})
	}
	if d.IndependentSeconds > 0 {
		lines = append(lines, [2]string{"independent", fmt.Sprintf("after %.1f s", d.IndependentSeconds)})
	}
	if d.Reason != "" {
		lines = append(lines, [2]string{"reason", d.Reason})
	}
	return printLines(lines)
}

func showDisk(c *cli.Context) error {
	args, err := arguments(c, "NAME")
	if err != nil {
		return err
	}
	return call(c, func(client *api.Client) error {
		info, err := client.Disk(c.Context, args[0])
		if err != nil {
			return err
		}
		return printDisk(c, info)
	})
}

func resizeDisk(c *cli.Context) error {
	args, err := arguments(c, "NAME", "SIZE")
	if err != nil {
		return err
	}
	bytes, err := parseSize(args[1])
	if err != nil {
		return err
	}
	return call(c, func(client *api.Client) error {
		info, err := client.ResizeDisk(c.Context, args[0], bytes)
		if err != nil {
			return err
		}
		return printDisk(c, info)
	})
}

func renameDisk(c *cli.Context) error {
	args, err := arguments(c, "NAME", "NEW")
	if err != nil {
		return err
	}
	return call(c, func(client *api.Client) error {
		info, err := client.RenameDisk(c.Context, args[0], args[1])
		if err != nil {
			return err
		}
		return printDisk(c, info)
	})
}

func moveDisk(c *cli.Context) error {
	args, err := arguments(c, "NAME", "HOST")
	if err != nil {
		return err
	}
	return call(c, func(client *api.Client) error {
		info, err := client.MoveDisk(c.Context, args[0], args[1])
		if err != nil {
			return err
		}
		return printDisk(c, info)
	})
}

func removeDisk(c *cli.Context) error {
	args, err := arguments(c, "NAME")
	if err != nil {
		return err
	}
	return call(c, func(client *api.Client) error {
		remove := client.RemoveDisk
		if c.Bool("snapshots") {
			remove = client.RemoveDiskWithSnapshots
		}
		err := remove(c.Context, args[0])
		if err == nil && c.Bool("json") {
			err = printJSON(map[string]string{"removed": args[0]})
		}
		return err
	})
}
