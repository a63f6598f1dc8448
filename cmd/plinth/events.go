package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"plinth/internal/api"
	"plinth/internal/events"
)

const followInterval = time.Second

func eventsCommand() *cli.Command {
	return &cli.Command{
		Name: "events", Usage: "show what the host has logged of late: damage and repairs, spindles, disks that moved",
		Description: "The newest 4,096 since the host's start, the oldest first; the journal has all.",
		Flags: append(apiFlags(),
			&cli.Uint64Flag{Name: "after", Usage: "only events with a higher number"},
			&cli.BoolFlag{Name: "follow", Aliases: []string{"f"}, Usage: "go on with those that come, until interrupted"},
			&cli.BoolFlag{Name: "problems", Usage: "only warnings and errors"},
		),
		Action: showEvents,
	}
}

func showEvents(c *cli.Context) error {
	if _, err := arguments(c); err != nil {
		return err
	}
	if c.Bool("json") && c.Bool("follow") {
		return errors.New("--follow prints text: leave --json out, or call again with --after")
	}
	return call(c, func(client *api.Client) error {
		after := c.Uint64("after")
		for {
			list, err := client.Events(c.Context, after)
			if err != nil {
				return err
			}
			if list.Last < after { // the host was started anew, and counts from 1
				after = 0
				continue
			}
			after = list.Last
			if c.Bool("problems") {
				list.Events = problems(list.Events)
			}
			if c.Bool("json") {
				return printJSON(list)
			}
			if err := printEvents(list.Events); err != nil || !c.Bool("follow") {
				return err
			}
			select {
			case <-c.Context.Done():
				return nil
			case <-time.After(followInterval):
			}
		}
	})
}

func problems(all []events.Event) []events.Event {
	out := []events.Event{}
	for _, e := range all {
		if e.Level != "INFO" {
			out = append(out, e)
		}
	}
	return out
}

// printEvents prints a line for each event; what came from outside is quoted where it
// could pass for something else.
func printEvents(all []events.Event) error {
	w := bufio.NewWriter(os.Stdout)
	for _, e := range all {
		fmt.Fprintf(w, "%d  %s  %-5s %s", e.Number, e.Time.Local().Format(time.DateTime), e.Level, oneWord(e.Message, ""))
		for _, a := range e.Attributes {
			fmt.Fprintf(w, "  %s=%s", a.Name, oneWord(a.Value, " ="))
		}
		fmt.Fprintln(w)
	}
	return w.Flush()
}

func oneWord(s, special string) string {
	if q := strconv.Quote(s); s == "" || q[1:len(q)-1] != s || strings.ContainsAny(s, special) {
		return q
	}
	return s
}
