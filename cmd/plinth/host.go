package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"plinth/datanode"
	"plinth/datanode/wire"
	"plinth/internal/api"
	"plinth/internal/host"
	"plinth/internal/pki"
	"plinth/internal/remote"
)

func hostCommand() *cli.Command {
	return &cli.Command{
		Name:  "host",
		Usage: "serve disks of data nodes on other machines",
		Flags: slices.Concat([]cli.Flag{
			&cli.GenericFlag{Name: "node", Value: new(nodesFlag), Required: true,
				Usage: "HOST:PORT or unix:PATH of a data node, its addresses over several networks with commas between; for a new pool once for each node, later for one or more of them"},
			&cli.StringFlag{Name: "dir", Usage: "directory for this host's own files, which may be lost", Required: true},
			&cli.StringFlag{Name: "peer-listen", Value: ":10810", Usage: "address to serve the pool's other hosts on, HOST:PORT; empty for none"},
			&cli.StringFlag{Name: "peer-address", Usage: "HOST:PORT under which they reach it", DefaultText: "this machine's on the way to the data node"},
			&cli.DurationFlag{Name: "lease-ttl", Usage: "how long other hosts wait, about, to take the disks of this one when it dies", DefaultText: "10s"},
		}, memberFlags("host", "data nodes"), registryFlags(), poolFlags("DIR/root.key"), agentFlags(), serveFlags("DIR"), verboseFlags()),
		Action: runHost,
	}
}

// leaseTTLMin is three times the registry's: a keep-alive may be late.
const leaseTTLMin = 3 * datanode.LeaseTTLMin

// peerOptions reads the flags for other hosts.
func peerOptions(c *cli.Context) (o remote.PeerOptions, err error) {
	o.Listen, o.Address = c.String("peer-listen"), c.String("peer-address")
	if o.Listen != "" {
		if err := api.CheckHostPort(o.Listen); err != nil {
			return o, fmt.Errorf("--peer-listen: %w", err)
		}
	}
	if o.Address != "" {
		if o.Listen == "" {
			return o, errors.New("--peer-address needs --peer-listen")
		}
		if err := api.CheckHostPort(o.Address); err != nil {
			return o, fmt.Errorf("--peer-address: %w", err)
		}
	}
	return o, nil
}

func runHost(c *cli.Context) error {
	if _, err := arguments(c); err != nil {
		return err
	}
	o := remote.Options{Dir: c.String("dir"), Logger: newLogger(c)}
	var err error
	if o.Host, err = agentOptions(c); err != nil {
		return err
	}
	if err := flashOptions(c, &o.Host); err != nil {
		return err
	}
	if info, err := os.Stat(o.Dir); err == nil && !info.IsDir() {
		return fmt.Errorf("%s is not a directory: choose another with --dir", o.Dir)
	}
	if o.Keys, o.Geometry, err = poolOptions(c); err != nil {
		return err
	}
	for _, text := range *c.Generic("node").(*nodesFlag) {
		paths, err := nodePaths(text)
		if err != nil {
			return err
		}
		o.Paths = append(o.Paths, paths)
	}
	if o.Peer, err = peerOptions(c); err != nil {
		return err
	}
	o.Host.LeaseTTL = c.Duration("lease-ttl")
	if c.IsSet("lease-ttl") && (o.Host.LeaseTTL < leaseTTLMin || o.Host.LeaseTTL > datanode.LeaseTTLMax) {
		return fmt.Errorf("--lease-ttl is %v to %v", leaseTTLMin, datanode.LeaseTTLMax)
	}
	m, err := memberOf(c, wire.RoleHost, o.Logger)
	if err != nil {
		return err
	}
	defer m.keep(c.Context)()
	o.Name, o.Node.Cluster, o.Node.Pool, o.Node.TLS = m.Name, m.Cluster, m.pool, m.config
	if m.member != nil {
		o.Node.TLS, o.Node.Guard = m.member.ClientConfig(pki.RoleDataNode, ""), m.member.Guard
	}
	if o.OpenRegistry, err = registryOptions(c, m.Cluster, o.Logger); err != nil {
		return err
	}
	if err := o.Validate(); err != nil {
		return fmt.Errorf("--node: %w", err)
	}
	spareProcessor()
	s, err := newServer(c, o.Dir, o.Keys, o.Logger)
	if err != nil {
		return err
	}
	return s.serve(c, func(ctx context.Context) (*agent, error) {
		a, err := remote.Open(ctx, o)
		if err != nil {
			return nil, err
		}
		return &agent{host: func() *host.Host { return a.Host() }, exports: remote.Exports{Agent: a}, rootKey: a.NewRootKey(), wait: a.Wait, close: a.Close}, nil
	})
}

// nodesFlag is a flag that may be given several times; commas stay in each value.
type nodesFlag []string

// Set implements flag.Value.
func (f *nodesFlag) Set(text string) error { *f = append(*f, text); return nil }

func (f *nodesFlag) String() string { return strings.Join(*f, " ") }

// nodePaths checks the addresses of a data node.
func nodePaths(text string) ([]string, error) {
	paths := strings.Split(text, ",")
	for _, p := range paths {
		switch network, address := wire.SplitPath(p); {
		case address == "":
			return nil, errors.New("--node: an address is empty")
		case network == "tcp":
			if err := api.CheckHostPort(address); err != nil {
				return nil, fmt.Errorf("--node: %w", err)
			}
		}
	}
	return paths, nil
}
