// Command plinth serves disks and manages them. "plinth up" runs everything on
// this machine, "plinth host" and "plinth datanode" on two; the other commands talk to
// a host over its API.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"
)

// secondSignalTime is from when on a second signal counts.
const secondSignalTime = time.Second

// errReported ends a command with status 1 when everything has been said.
var errReported = errors.New("reported")

func main() {
	// To the very end signals are taken: one that came between a stop of this and the
	// end would end the program as if it had been killed.
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	// A second signal ends the program where a stop takes too long: as a crash
	// would, which costs a replay. One that comes at once is the first again:
	// timeout(1) and others pass on what the whole process group got.
	context.AfterFunc(ctx, func() { time.AfterFunc(secondSignalTime, stop) })
	app := newApp()
	if err := app.RunContext(ctx, flagsFirst(app.Commands, os.Args)); err != nil {
		if text := complaint(ctx, err); text != "" {
			fmt.Fprintln(os.Stderr, "plinth:", text)
		}
		os.Exit(1)
	}
}

// complaint is one line about an error, empty if everything has been said.
func complaint(ctx context.Context, err error) string {
	switch {
	case errors.Is(err, errReported):
		return ""
	case ctx.Err() != nil && errors.Is(err, context.Canceled):
		return "interrupted"
	}
	return strings.Join(strings.FieldsFunc(err.Error(), func(r rune) bool { return r == '\n' }), "; ")
}

func newApp() *cli.App {
	cli.VersionFlag = &cli.BoolFlag{Name: "version", Usage: "print the version"}
	app := &cli.App{
		Name:                 "plinth",
		Usage:                "block storage for virtual machines",
		Version:              version(),
		EnableBashCompletion: true,
		Suggest:              true,
		HideHelpCommand:      true,
		Commands: []*cli.Command{
			upCommand(), hostCommand(), dataNodeCommand(), recoverCommand(), diskCommand(), snapshotCommand(), cloneCommand(), diffCommand(),
			statusCommand(), eventsCommand(), nodeCommand(), cpuCommand(), verifyCommand(), reclaimCommand(), rebalanceCommand(), spindleCommand(), attachCommand(), detachCommand(), qemuCommand(), clusterCommand(), benchCommand(), completionCommand(),
		},
		// Errors are printed once, by main.
		ExitErrHandler: func(*cli.Context, error) {},
		OnUsageError:   usageError,
		CommandNotFound: func(c *cli.Context, name string) {
			fmt.Fprintf(os.Stderr, "plinth: no command %q; see plinth --help\n", name)
			os.Exit(1)
		},
	}
	uniform(app.Commands)
	return app
}

// uniform gives all commands what the library does not hand down. Without its
// command "help", a disk may have that name.
func uniform(commands []*cli.Command) {
	for _, c := range commands {
		c.OnUsageError, c.HideHelpCommand = usageError, true
		uniform(c.Subcommands)
	}
}

// usageError says what is wrong and where help is, in one line.
func usageError(c *cli.Context, err error, _ bool) error {
	name := "plinth"
	if c.Command != nil && c.Command.Name != "" && c.Command.Name != "plinth" {
		name = c.Command.HelpName
	}
	return fmt.Errorf("%w; see %s --help", err, name)
}
