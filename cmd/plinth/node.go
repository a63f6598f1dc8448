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
		Name: "node", Usage: "show and change the pool's data nodes",
		Subcommands: []*cli.Command{
			{Name: "ls", Usage: "list the data nodes", Flags: apiFlags(), Action: listNodes},
			{Name: "add", ArgsUsage: "NAME [ADDRESS...]", Usage: "have a data node that is empty take part in the pool, or one that is being drained again", Flags: apiFlags(), Action: addNode},
			{Name: "drain", ArgsUsage: "NAME", Usage: "have what a data node has moved to the others; plinth node ls shows how far it is", Flags: apiFlags(), Action: drainNode},
			{Name: "rm", ArgsUsage: "NAME [ADDRESS...]", Usage: "take a data node out that was drained", Flags: apiFlags(), Action: removeNode},
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
	text := n.State
	if n.Registry {
		text += ", registry"
	}
	switch l := n.Leaving; {
	case n.Waits != "" || l == nil:
	case l.Empty():
		text += ", empty"
	default:
		text += fmt.Sprintf(", %s and %d logs left", formatSize(l.Bytes), l.Logs)
	}
	return text
}

// nameAndAddresses are a node's name and where it is.
func nameAndAddresses(c *cli.Context) (string, []string, error) {
	all := c.Args().Slice()
	if len(all) == 0 {
		return "", nil, fmt.Errorf("usage: %s [options] NAME [ADDRESS...]", c.Command.HelpName)
	}
	var addresses []string
	for _, text := range all[1:] {
		paths, err := nodePaths(text)
		if err != nil {
			return "", nil, err
		}
		addresses = append(addresses, paths...)
	}
	return all[0], addresses, nil
}

// addPoll is how often it is asked how far a node is.
const addPoll = 100 * time.Millisecond

// addNode returns when the node takes part.
func addNode(c *cli.Context) error {
	name, addresses, err := nameAndAddresses(c)
	if err != nil {
		return err
	}
	return call(c, func(client *api.Client) error {
		if err := client.AddNode(c.Context, name, addresses); err != nil {
			return err
		}
		return awaitNode(c, client, name, func(n *datanode.NodeInfo) bool {
			if n.State != "in" || n.Waits != "" {
				return false
			}
			fmt.Printf("data node %s takes part, as number %d\n", name, n.Number)
			return true
		})
	})
}

// awaitNode looks at the data node of that name until it is done, and says meanwhile for whom it
// waits.
func awaitNode(c *cli.Context, client *api.Client, name string, done func(*datanode.NodeInfo) bool) error {
	for said := ""; ; {
		all, err := client.Nodes(c.Context)
		if err != nil {
			return err
		}
		for i := range all {
			n := &all[i]
			switch {
			case n.Name != name:
			case done(n):
				return nil
			case n.Waits != "" && n.Waits != said:
				said = n.Waits
				fmt.Fprintf(os.Stderr, "waits for %s\n", said)
			}
		}
		select {
		case <-c.Context.Done():
			return c.Context.Err()
		case <-time.After(addPoll):
		}
	}
}

func drainNode(c *cli.Context) error {
	args, err := arguments(c, "NAME")
	if err != nil {
		return err
	}
	return call(c, func(client *api.Client) error {
		if err := client.DrainNode(c.Context, args[0]); err != nil {
			return err
		}
		fmt.Printf("what data node %s has is moved to the others: plinth node ls shows how far that is, plinth node rm %s takes it out then, and plinth node add %s calls it off\n", args[0], args[0], args[0])
		return nil
	})
}

func removeNode(c *cli.Context) error {
	name, addresses, err := nameAndAddresses(c)
	if err != nil {
		return err
	}
	return call(c, func(client *api.Client) error {
		if err := client.RemoveNode(c.Context, name, addresses); err != nil {
			return err
		}
		fmt.Printf("data node %s is out of the pool\n", name)
		return nil
	})
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
