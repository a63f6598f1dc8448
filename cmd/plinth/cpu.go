package main

import (
	"errors"
	"fmt"

	"github.com/urfave/cli/v2"

	"plinth/internal/api"
	"plinth/internal/gate"
	"plinth/internal/host"
)

const cpuModeDefault = "fast"

// cpuFlags say how much CPU time a process may use.
func cpuFlags(more string) []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "mode", Usage: "CPU time to use at most: fast (20 % of the cores) or insane (40 %), 2 cores at least" + more},
		&cli.Float64Flag{Name: "cores", Usage: "or so many cores, such as 1 or 0.5"},
	}
}

// cpuOf reads cpuFlags; gate.CPU says what is wrong with them.
func cpuOf(c *cli.Context) gate.CPU {
	cpu := gate.CPU{Mode: c.String("mode"), Cores: c.Float64("cores")}
	if !c.IsSet("mode") && !c.IsSet("cores") {
		cpu.Mode = cpuModeDefault
	}
	if c.IsSet("cores") && cpu.Cores == 0 {
		cpu.Cores = -1 // 0 stands for all
	}
	return cpu
}

func cpuCommand() *cli.Command {
	return &cli.Command{
		Name: "cpu", Usage: "show and set how much CPU time plinth may use",
		Subcommands: []*cli.Command{
			{Name: "show", Usage: "show how much it may use, and uses", Flags: apiFlags(), Action: showCPU},
			{Name: "set", Usage: "change how much it may use, until it ends", Flags: append(cpuFlags(""), apiFlags()...), Action: setCPU},
		},
	}
}

func showCPU(c *cli.Context) error {
	if _, err := arguments(c); err != nil {
		return err
	}
	return call(c, func(client *api.Client) error {
		s, err := client.CPU(c.Context)
		if err != nil {
			return err
		}
		return printCPU(c, s)
	})
}

func setCPU(c *cli.Context) error {
	if _, err := arguments(c); err != nil {
		return err
	}
	if !c.IsSet("mode") && !c.IsSet("cores") {
		return errors.New("give --mode or --cores")
	}
	return call(c, func(client *api.Client) error {
		s, err := client.SetCPU(c.Context, cpuOf(c))
		if err != nil {
			return err
		}
		return printCPU(c, s)
	})
}

func printCPU(c *cli.Context, s *host.CPUStatus) error {
	if c.Bool("json") {
		return printJSON(s)
	}
	return printLines([][2]string{{"cpu", formatCPU(s)}})
}

// formatCPU says it in a line.
func formatCPU(s *host.CPUStatus) string {
	mode := ""
	if s.Mode != "" {
		mode = s.Mode + ": "
	}
	return fmt.Sprintf("%s%.4g of %.4g cores at most, %.2f in use, %.2f wanted", mode, s.Cores, s.MachineCores, s.Used, s.Wanted)
}
