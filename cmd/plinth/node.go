package main

import (
	"fmt"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"

	"plinth/datanode"
	"plinth/internal/api"
	"plinth/internal/host"
)

func nodeCommand() *cli.Command {
	return &cli.Command{
		Name: "node", Usage: "show the pool's data nodes",
		Subcommands: []*cli.Command{
			{Name: "ls", Usage: "list the data nodes", Flags: apiFlags(), Action: listNodes},
		},
	}
}

func listNodes(c *cli.Context) error {
	if _, err := arguments(c); err != nil {
		return err
	}
	return call(c, func(client *api.Client) error {
		all, err := client.Nodes(c.Context)
		if err != nil {
			return err
		}
		if c.Bool("json") {
			return printJSON(api.NodeList{Nodes: all})
		}
		w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
		fmt.Fprintln(w, "NODE\tNAME\tADDRESSES\tSTATE\tANSWERS\tSINCE\tSPINDLES\tUSED\tSIZE\tLOG\tLOGS MISSING")
		for _, n := range all {
			fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%s\t%s\t%d of %d\t%s\t%s\t%s of %s\t%d\n", n.Number, dash(n.Name), dash(strings.Join(n.Addresses, ",")), stateText(&n),
				yesNo(n.Answers), n.Since.Local().Format(time.DateTime), n.SpindlesOK, n.Spindles, formatSize(n.AllocatedBytes), formatSize(n.CapacityBytes),
				formatSize(n.Log.UsedBytes), formatSize(n.Log.CapacityBytes), n.LogsMissingCount)
		}
		return w.Flush()
	})
}

func stateText(n *datanode.NodeInfo) string {
	if n.Registry {
		return n.State + ", registry"
	}
	return n.State
}

func dash(text string) string {
	if text == "" {
		return "-"
	}
	return text
}

// nodesText says how many nodes answer, and which do not.
func nodesText(s *host.Status) string {
	var away []string
	for _, n := range s.Nodes {
		if !n.Answers {
			away = append(away, fmt.Sprintf("%s since %s", n.Name, n.Since.Local().Format(time.TimeOnly)))
		}
	}
	text := fmt.Sprintf("%d of %d answer", len(s.Nodes)-len(away), len(s.Nodes))
	if len(away) > 0 {
		text += "; away: " + strings.Join(away, ", ")
	}
	return text
}
