package main

import (
	"fmt"

	"github.com/urfave/cli/v2"

	"plinth/internal/api"
)

func rebalanceCommand() *cli.Command {
	return &cli.Command{
		Name: "rebalance", Usage: "spread what was written before spindles or data nodes came over all of them; plinth status shows how far it is",
		Flags:  append(apiFlags(), &cli.BoolFlag{Name: "stop", Usage: "call it off: what was moved stays where it is now"}),
		Action: rebalance,
	}
}

func rebalance(c *cli.Context) error {
	if _, err := arguments(c); err != nil {
		return err
	}
	done := "what lies where new segments do not go is moved: plinth status says how far that is, and plinth rebalance --stop calls it off"
	if c.Bool("stop") {
		done = "the rebalance is called off: what was moved stays where it is now"
	}
	return call(c, func(client *api.Client) error {
		err := client.Rebalance(c.Context, !c.Bool("stop"))
		if err == nil {
			fmt.Println(done)
		}
		return err
	})
}
