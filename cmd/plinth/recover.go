package main

import (
	"errors"
	"fmt"

	"github.com/urfave/cli/v2"

	"plinth/internal/standalone"
)

func recoverCommand() *cli.Command {
	return &cli.Command{
		Name:  "recover",
		Usage: "rebuild a data node's index and registry from its spindles and log; run it while plinth is stopped",
		Flags: append(siteFlags(),
			&cli.BoolFlag{Name: "accept-lost-log", Usage: "go on although the log is gone: acknowledged writes that were not destaged are lost"},
			&cli.BoolFlag{Name: "json", Usage: "print JSON"}),
		Action: recoverPool,
	}
}

func recoverPool(c *cli.Context) error {
	if _, err := arguments(c); err != nil {
		return err
	}
	opts, err := siteOptions(c)
	if err != nil {
		return err
	}
	opts.Node.AcceptLostLog = c.Bool("accept-lost-log")
	site, err := standalone.Recover(c.Context, opts)
	if err != nil {
		return err
	}
	st, err := site.Host.Status(c.Context)
	if err != nil {
		return errors.Join(err, site.Close())
	}
	if c.Bool("json") {
		err = printJSON(st)
	} else {
		err = printStatus(st)
	}
	if err == nil && !st.Node.Index.Complete {
		fmt.Println("\nThe index stays incomplete: disks that do not open have not stated what they need, so nothing is reclaimed.")
		err = errReported
	}
	return errors.Join(err, site.Close())
}
