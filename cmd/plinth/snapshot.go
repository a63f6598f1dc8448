package main

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"

	"plinth/internal/api"
	"plinth/internal/host"
)

// snapshotWord is how commands name a snapshot: as NBD exports it.
const snapshotWord = "DISK@SNAPSHOT"

func snapshotCommand() *cli.Command {
	return &cli.Command{
		Name: "snapshot", Usage: "create, list, rename and remove snapshots, and go back to one", HideHelpCommand: true,
		Subcommands: []*cli.Command{
			{
				Name: "create", Usage: "make a snapshot of a disk, or of several at one instant", ArgsUsage: "DISK [NAME] | DISK DISK…",
				Flags: append(apiFlags(),
					&cli.StringFlag{Name: "name", Usage: "name of the snapshots", DefaultText: "the time, UTC"},
					&cli.StringSliceFlag{Name: "label", Usage: "KEY=VALUE to keep with them; may be repeated"},
					&cli.StringFlag{Name: "expire", Usage: "when they are removed: after a time like 36h, 7d or 2w, or on a day like 2031-12-24", DefaultText: "never"},
				),
				Action: createSnapshots, BashComplete: completeDisks,
			},
			{Name: "ls", Usage: "list the snapshots of a disk, or of all", ArgsUsage: "[DISK]", Flags: apiFlags(), Action: listSnapshots, BashComplete: completeDisks},
			{Name: "show", Usage: "show a snapshot", ArgsUsage: snapshotWord, Flags: apiFlags(), Action: showSnapshot, BashComplete: completeSnapshots},
			{Name: "rename", Usage: "give a snapshot another name", ArgsUsage: snapshotWord + " NAME", Flags: apiFlags(), Action: renameSnapshot, BashComplete: completeSnapshots},
			{
				Name: "rm", Usage: "remove a snapshot", ArgsUsage: snapshotWord,
				Flags:  append(apiFlags(), &cli.BoolFlag{Name: "wait", Usage: "wait until its clients have left"}),
				Action: removeSnapshot, BashComplete: completeSnapshots,
			},
			{Name: "rollback", Usage: "make the disk what it was then; later snapshots stay", ArgsUsage: snapshotWord, Flags: apiFlags(), Action: rollback, BashComplete: completeSnapshots},
		},
	}
}

// parseSnapshot takes DISK@SNAPSHOT apart. What names may be is the host's to say.
func parseSnapshot(word string) (disk, snapshot string, err error) {
	disk, snapshot, found := strings.Cut(word, "@")
	if !found || disk == "" || snapshot == "" {
		return "", "", fmt.Errorf("%q is not a snapshot: write %s, like vm1@monday", word, snapshotWord)
	}
	return disk, snapshot, nil
}

// oneSnapshot returns the snapshot that is the first of the arguments named, and
// the others.
func oneSnapshot(c *cli.Context, more ...string) (disk, snapshot string, rest []string, err error) {
	args, err := arguments(c, append([]string{snapshotWord}, more...)...)
	if err != nil {
		return "", "", nil, err
	}
	disk, snapshot, err = parseSnapshot(args[0])
	return disk, snapshot, args[1:], err
}

func createSnapshots(c *cli.Context) error {
	req := api.CreateSnapshots{Disks: c.Args().Slice()}
	if len(req.Disks) == 0 {
		_, err := arguments(c, "DISK", "[NAME]")
		return err
	}
	var err error
	if req.Name = c.String("name"); c.IsSet("name") && req.Name == "" {
		return fmt.Errorf("--name is empty")
	}
	if req.Labels, err = parseLabels(c.StringSlice("label")); err != nil {
		return err
	}
	if text := c.String("expire"); c.IsSet("expire") {
		at, err := parseExpiry(text, time.Now())
		if err != nil {
			return err
		}
		req.Expires = &at
	}
	return call(c, func(client *api.Client) error {
		if len(req.Disks) == 2 && req.Name == "" {
			disks, err := client.Disks(c.Context)
			if err != nil {
				return err
			}
			if !slices.ContainsFunc(disks, func(d host.DiskInfo) bool { return d.Name == req.Disks[1] }) {
				req.Disks, req.Name = req.Disks[:1], req.Disks[1]
			}
		}
		infos, err := client.CreateSnapshots(c.Context, req)
		switch {
		case err != nil:
			return err
		case c.Bool("json"):
			return printJSON(api.SnapshotList{Snapshots: infos})
		}
		for _, s := range infos {
			fmt.Println(s.Disk + "@" + s.Name)
		}
		return nil
	})
}

func parseLabels(words []string) (map[string]string, error) {
	var out map[string]string
	for _, word := range words {
		key, value, found := strings.Cut(word, "=")
		if _, twice := out[key]; !found || key == "" || twice {
			return nil, fmt.Errorf("label %q: write KEY=VALUE, each key once", word)
		}
		if out == nil {
			out = map[string]string{}
		}
		out[key] = value
	}
	return out, nil
}

// daysMax bounds times in days and weeks: a century.
const daysMax = 36525

// parseExpiry reads a time from now on, with days and weeks too, or a day, which
// begins at midnight here.
func parseExpiry(text string, now time.Time) (time.Time, error) {
	if at, err := time.ParseInLocation("2006-01-02", text, time.Local); err == nil && at.After(now) {
		return at.UTC(), nil
	}
	after, err := time.ParseDuration(text)
	for unit, days := range map[string]int{"d": 1, "w": 7} {
		number, found := strings.CutSuffix(text, unit)
		if !found {
			continue
		}
		var n int
		if n, err = strconv.Atoi(number); err == nil && n > daysMax/days {
			err = strconv.ErrRange
		}
		after = time.Duration(n*days) * 24 * time.Hour
	}
	if err != nil || after <= 0 {
		return time.Time{}, fmt.Errorf("--expire %q is neither a time like 36h, 7d or 2w nor a day to come like 2031-12-24", text)
	}
	return now.Add(after).UTC().Truncate(time.Second), nil
}

func listSnapshots(c *cli.Context) error {
	names := c.Args().Slice()
	if len(names) > 1 {
		_, err := arguments(c, "[DISK]")
		return err
	}
	return call(c, func(client *api.Client) error {
		if len(names) == 0 {
			disks, err := client.Disks(c.Context)
			if err != nil {
				return err
			}
			for _, d := range disks {
				names = append(names, d.Name)
			}
		}
		all := []host.SnapshotInfo{}
		for _, name := range names {
			infos, err := client.Snapshots(c.Context, name)
			if err != nil {
				return err
			}
			all = append(all, infos...)
		}
		if c.Bool("json") {
			return printJSON(api.SnapshotList{Snapshots: all})
		}
		return printSnapshots(all)
	})
}

func printSnapshots(infos []host.SnapshotInfo) error {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "NAME\tSIZE\tCREATED\tEXPIRES\tMAPPED\tEXCLUSIVE\tCLIENTS\tSTATE\tLABELS")
	for _, s := range infos {
		mapped, exclusive := "-", "-"
		if s.SpaceAt != nil {
			mapped, exclusive = formatSize(s.LogicalBytes), formatSize(s.ExclusiveBytes)
		}
		fmt.Fprintf(w, "%s@%s\t%s\t%s\t%s\t%s\t%s\t%d\t%s\t%s\n", s.Disk, s.Name, formatSize(s.Bytes), formatTime(&s.Created), formatTime(s.Expires),
			mapped, exclusive, s.Clients, s.State, formatLabels(s.Labels))
	}
	return w.Flush()
}

func formatTime(t *time.Time) string {
	if t == nil {
		return "-"
	}
	return t.Local().Format("2006-01-02 15:04:05")
}

// formatLabels writes labels in order, as they are given. Control characters are
// quoted.
func formatLabels(labels map[string]string) string {
	var out []string
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		word := key + "=" + labels[key]
		if quoted := strconv.Quote(word); strings.ContainsRune(quoted, '\\') {
			word = quoted
		}
		out = append(out, word)
	}
	return strings.Join(out, ",")
}

func showSnapshot(c *cli.Context) error {
	disk, name, _, err := oneSnapshot(c)
	if err != nil {
		return err
	}
	return call(c, func(client *api.Client) error {
		info, err := client.Snapshot(c.Context, disk, name)
		if err != nil {
			return err
		}
		return printSnapshot(c, info)
	})
}

func printSnapshot(c *cli.Context, s *host.SnapshotInfo) error {
	if c.Bool("json") {
		return printJSON(s)
	}
	lines := [][2]string{
		{"name", s.Disk + "@" + s.Name},
		{"id", fmt.Sprint(s.ID)},
		{"size", fmt.Sprintf("%s (%d bytes)", formatSize(s.Bytes), s.Bytes)},
		{"created", formatTime(&s.Created)},
		{"expires", formatTime(s.Expires)},
		{"labels", formatLabels(s.Labels)},
		{"state", s.State},
		{"clients", fmt.Sprint(s.Clients)},
	}
	if s.Group != 0 {
		lines = append(lines, [2]string{"group", fmt.Sprint(s.Group)})
	}
	lines = append(lines, spaceLines(s.LogicalBytes, s.ExclusiveBytes, s.SharedBytes, s.SpaceAt)...)
	return printLines(lines)
}

// spaceLines show what was counted by the last pass.
func spaceLines(logical, exclusive, shared int64, at *time.Time) [][2]string {
	if at == nil {
		return [][2]string{{"mapped", "not counted yet"}}
	}
	return [][2]string{
		{"mapped", formatSize(logical) + "  as of " + formatTime(at)},
		{"exclusive", formatSize(exclusive) + "  compressed, needed by nothing else"},
		{"shared", formatSize(shared) + "  compressed, needed by others too"},
	}
}

// printLines shows names and values.
func printLines(lines [][2]string) error {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	for _, line := range lines {
		fmt.Fprintf(w, "%s\t%s\n", line[0], line[1])
	}
	return w.Flush()
}

func renameSnapshot(c *cli.Context) error {
	disk, name, rest, err := oneSnapshot(c, "NAME")
	if err != nil {
		return err
	}
	return call(c, func(client *api.Client) error {
		info, err := client.RenameSnapshot(c.Context, disk, name, rest[0])
		if err != nil || !c.Bool("json") {
			return err
		}
		return printJSON(info)
	})
}

func removeSnapshot(c *cli.Context) error {
	disk, name, _, err := oneSnapshot(c)
	if err != nil {
		return err
	}
	return call(c, func(client *api.Client) error {
		err := client.RemoveSnapshot(c.Context, disk, name, c.Bool("wait"))
		if err == nil && c.Bool("json") {
			err = printJSON(map[string]string{"removed": disk + "@" + name})
		}
		return err
	})
}

func rollback(c *cli.Context) error {
	disk, name, _, err := oneSnapshot(c)
	if err != nil {
		return err
	}
	return call(c, func(client *api.Client) error {
		info, err := client.Rollback(c.Context, disk, name)
		if err != nil || !c.Bool("json") {
			return err
		}
		return printJSON(info)
	})
}
