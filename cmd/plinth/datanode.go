package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/urfave/cli/v2"

	"plinth/datanode"
	"plinth/datanode/shelf"
	"plinth/datanode/wire"
	"plinth/internal/api"
	"plinth/internal/host"
	"plinth/internal/pki"
	"plinth/internal/rack"
	"plinth/internal/stripe"
	"plinth/internal/vfsx"
)

const dataNodeListenDefault = "127.0.0.1:10811"

func dataNodeCommand() *cli.Command {
	return &cli.Command{
		Name:  "datanode",
		Usage: "serve a data node to hosts on other machines; one is made where there is none",
		Flags: slices.Concat([]cli.Flag{
			&cli.StringFlag{Name: "dir", Usage: "the data node's directory, with drives mounted on spindle-NN in it; that of a plinth up is DATA/datanode", Required: true},
		}, nodeFlags(), []cli.Flag{
			&cli.BoolFlag{Name: "rejoin", Usage: "make the node anew on empty drives, as one that a pool of several nodes has lost: hosts restore what it had"},
			&cli.StringFlag{Name: "listen", Value: dataNodeListenDefault, Usage: "HOST:PORT or unix:PATH to serve hosts on"},
		}, memberFlags("datanode", "hosts"), verboseFlags()),
		Action: dataNode,
	}
}

// memberFlags say who this process is to those of the cluster that it talks to.
func memberFlags(role, peers string) []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "identity", Usage: "folder of the identity that plinth cluster join has made"},
		&cli.StringFlag{Name: "cert", Usage: "without an identity: certificate, whose URI is plinth://POOL/" + role + "/NAME"},
		&cli.StringFlag{Name: "key", Usage: "its key"},
		&cli.StringFlag{Name: "ca", Usage: "certificates of the authorities for " + peers},
	}
}

func dataNode(c *cli.Context) (err error) {
	if _, err := arguments(c); err != nil {
		return err
	}
	log := newLogger(c)
	node, err := nodeOptions(c)
	if err != nil {
		return err
	}
	node.Logger = log
	network, address := wire.SplitPath(c.String("listen"))
	if network == "tcp" {
		if err := api.CheckHostPort(address); err != nil {
			return fmt.Errorf("--listen: %w", err)
		}
	}
	m, err := memberOf(c, wire.RoleDataNode, log)
	if err != nil {
		return err
	}
	defer m.keep(c.Context)()
	s, err := openShelf(c, m, node)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	opts := wire.ServerOptions{Logger: log, Cluster: m.Cluster, Name: m.Name, TLS: m.config}
	if m.member != nil {
		opts.TLS, opts.Guard = m.member.ServerConfig(pki.RoleHost, pki.RoleAdmin), m.member.Guard
	}
	server, err := wire.NewServer(c.Context, s, opts)
	if err != nil {
		return err
	}
	l, err := listenDataNode(network, address)
	if err != nil {
		return errors.Join(fmt.Errorf("serve hosts: %w: choose another address with --listen", err), server.Close())
	}
	fmt.Printf("data node %s of pool %s serves on %s\n", m.Name, m.Cluster, l.Addr())
	if err := notifyReady(); err != nil {
		log.Warn("systemd does not learn that hosts are served", "err", err)
	}
	stop := context.AfterFunc(c.Context, func() {
		log.Info("stopping")
		_ = server.Close() // called again below
	})
	defer stop()
	return errors.Join(server.Serve(l), server.Close())
}

// openShelf opens the data node in --dir, or makes one for the cluster's pool.
func openShelf(c *cli.Context, m *member, opts shelf.Options) (*shelf.Shelf, error) {
	dir := c.String("dir")
	opts.WidthOf = stripe.WidthOf
	opts.Share = func(ctx context.Context, own datanode.RegistryNode) (shelf.Share, error) {
		part, err := rack.ReadPart(ctx, own)
		if err != nil {
			return shelf.Share{}, err
		}
		if part.Name != m.Name {
			return shelf.Share{}, fmt.Errorf("%s is data node %s of its pool, and the certificate is of %s: give the directory and the certificate that belong together", dir, part.Name, m.Name)
		}
		return shelf.Share{Keeps: part.Keeps, Width: part.Layouts.Geometry.Width(), LayoutVersion: part.Layouts.Version}, nil
	}
	has, err := shelf.PoolID(vfs.Default, dir)
	switch {
	case err == nil && c.Bool("rejoin"):
		return nil, fmt.Errorf("there is a data node in %s already: leave --rejoin out, or name an empty directory", dir)
	case errors.Is(err, shelf.ErrNoNode):
		opts.PoolID, opts.Rejoin = m.pool, c.Bool("rejoin")
		if err := opts.Validate(); err != nil {
			return nil, err
		}
		if err := vfsx.MakeDir(vfs.Default, dir, 0o700); err != nil {
			return nil, err
		}
		if err := shelf.Create(dir, opts); err != nil {
			return nil, err
		}
		opts.Logger.Info("made a data node", "dir", dir, "pool", m.Cluster)
	case err != nil:
		return nil, err
	case has != m.pool:
		return nil, fmt.Errorf("the certificate is of pool %s, the data node of pool %x", m.Cluster, has)
	default:
		opts.PoolID = has
	}
	s, err := shelf.Open(c.Context, dir, opts)
	if err != nil {
		return nil, err
	}
	layouts, err := host.LayoutVersion(c.Context, s)
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	s.SetLayoutVersion(layouts)
	return s, nil
}

// listenDataNode listens; a socket that a dead process left is replaced.
func listenDataNode(network, address string) (net.Listener, error) {
	if network == "unix" {
		return api.ListenUnix(address)
	}
	return net.Listen(network, address)
}
