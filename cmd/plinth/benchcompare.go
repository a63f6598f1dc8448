package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/urfave/cli/v2"

	"plinth/bench/compare"
)

// compareCommand puts plinth beside other servers.
func compareCommand() *cli.Command {
	return &cli.Command{
		Name: "compare", Usage: "measure plinth beside qemu-nbd and nbdkit under fio, which must be installed",
		Description: "Prints Markdown. Samples are kept in --results: the same call goes on where an earlier one ended.",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "dir", Usage: "where disks lie while they are measured", DefaultText: "the system's directory for temporary files"},
			&cli.StringFlag{Name: "results", Usage: "file of samples", DefaultText: "none is kept"},
			&cli.StringSliceFlag{Name: "server", Usage: "measure only these"},
			&cli.StringSliceFlag{Name: "row", Usage: "measure only these"},
			&cli.IntFlag{Name: "rounds", Usage: "times that each is measured", DefaultText: "3"},
			&cli.DurationFlag{Name: "runtime", Usage: "of one measurement", DefaultText: "2s"},
			&cli.DurationFlag{Name: "sustained-runtime", Usage: "of one that writes more than the log's size", DefaultText: "12s"},
			&cli.GenericFlag{Name: "size", Value: new(sizeFlag), Usage: "of each disk", DefaultText: "1G"},
			&cli.GenericFlag{Name: "log-size", Value: new(sizeFlag), Usage: "of plinth's log", DefaultText: "512M"},
			&cli.StringFlag{Name: "plot", Usage: "write medians as a plot, in SVG"},
			&cli.StringFlag{Name: "stages", Usage: "what go test -bench printed of the stages; adds what they allow"},
			&cli.StringFlag{Name: "profile", Usage: "measure where plinth's CPU time goes in this row, and nothing else"},
			&cli.BoolFlag{Name: "scale", Usage: "measure plinth with more disks, depth and size, and nothing else"},
			&cli.DurationFlag{Name: "budget", Usage: "begin no measurement that would end later", DefaultText: "none"},
		},
		Action: runCompare,
	}
}

func runCompare(c *cli.Context) error {
	if _, err := arguments(c); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp(c.String("dir"), "plinth-compare-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	cfg := compare.Config{
		Plinth: self, Dir: filepath.Join(dir, "run"), Results: c.String("results"), Servers: c.StringSlice("server"), Rows: c.StringSlice("row"),
		Rounds: c.Int("rounds"), Runtime: c.Duration("runtime"), SustainedRuntime: c.Duration("sustained-runtime"),
		DiskBytes: size(c, "size"), LogBytes: size(c, "log-size"), Budget: c.Duration("budget"), Progress: os.Stderr,
	}
	if cfg.Results == "" {
		cfg.Results = filepath.Join(dir, "results")
	}
	fmt.Printf("%s, plinth %s, %s\n\n", compare.Machine(), version(), time.Now().UTC().Format(time.DateOnly))
	if row := c.String("profile"); row != "" {
		b, err := compare.Profile(c.Context, cfg, row)
		if err != nil {
			return err
		}
		return b.WriteText(os.Stdout)
	}
	if c.Bool("scale") {
		s, err := compare.Scale(c.Context, cfg)
		if err != nil {
			return err
		}
		return s.WriteText(os.Stdout)
	}
	res, err := compare.Run(c.Context, cfg)
	if err != nil {
		return err
	}
	if err := res.WriteTables(os.Stdout); err != nil {
		return err
	}
	if path := c.String("stages"); path != "" {
		if err := writeLimits(res, path); err != nil {
			return err
		}
	}
	if path := c.String("plot"); path != "" {
		if err := writePlot(res, path); err != nil {
			return err
		}
	}
	if res.Left > 0 {
		fmt.Fprintf(os.Stderr, "%d measurements are left: the same call goes on with --results %s\n", res.Left, cfg.Results)
	}
	return nil
}

func writePlot(res *compare.Results, path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	return errors.Join(res.WritePlot(f), f.Close())
}

func writeLimits(res *compare.Results, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return res.WriteLimits(os.Stdout, f)
}
