// Command plinth serves disks and manages them. "plinth up" runs everything on
// this machine; the other commands talk to it over its API.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/urfave/cli/v2"
)

// errReported ends a command with status 1 when everything has been said.
var errReported = errors.New("reported")

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := newApp().RunContext(ctx, os.Args); err != nil {
		if !errors.Is(err, errReported) {
			fmt.Fprintln(os.Stderr, "plinth:", err)
		}
		os.Exit(1)
	}
}

func newApp() *cli.App {
	cli.VersionFlag = &cli.BoolFlag{Name: "version", Usage: "print the version"}
	return &cli.App{
		Name:                 "plinth",
		Usage:                "block storage for virtual machines",
		Version:              version(),
		EnableBashCompletion: true,
		Suggest:              true,
		HideHelpCommand:      true,
		Commands: []*cli.Command{
			upCommand(), recoverCommand(), diskCommand(), statusCommand(), verifyCommand(), benchCommand(), completionCommand(),
		},
		// Errors are printed once, by main.
		ExitErrHandler: func(*cli.Context, error) {},
		OnUsageError: func(c *cli.Context, err error, _ bool) error {
			return usageError(c, err)
		},
		CommandNotFound: func(c *cli.Context, name string) {
			fmt.Fprintf(os.Stderr, "plinth: no command %q; see plinth --help\n", name)
			os.Exit(1)
		},
	}
}

// usageError says what is wrong and where help is, in one line.
func usageError(c *cli.Context, err error) error {
	name := "plinth"
	if c.Command != nil && c.Command.Name != "" && c.Command.Name != "plinth" {
		name = c.Command.HelpName
	}
	return fmt.Errorf("%w; see %s --help", err, name)
}

// arguments returns exactly as many arguments as there are names.
func arguments(c *cli.Context, names ...string) ([]string, error) {
	if c.NArg() != len(names) {
		want := ""
		for _, n := range names {
			want += " " + n
		}
		return nil, fmt.Errorf("usage: %s [options]%s", c.Command.HelpName, want)
	}
	return c.Args().Slice(), nil
}
