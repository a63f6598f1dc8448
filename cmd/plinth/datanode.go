package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/urfave/cli/v2"

	"plinth/datanode/shelf"
	"plinth/datanode/wire"
	"plinth/internal/host"
	"plinth/internal/pki"
)

const dataNodeListenDefault = "127.0.0.1:10811"

func dataNodeCommand() *cli.Command {
	return &cli.Command{
		Name:  "datanode",
		Usage: "serve a data node that was made by plinth up to hosts on other machines",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "dir", Usage: "the data node's directory: DATA/datanode of a plinth up", Required: true},
			&cli.StringFlag{Name: "listen", Value: dataNodeListenDefault, Usage: "HOST:PORT or unix:PATH to serve hosts on"},
			&cli.StringFlag{Name: "identity", Usage: "folder of the identity that plinth cluster join has made"},
			&cli.StringFlag{Name: "cert", Usage: "without an identity: certificate, whose URI is plinth://POOL/datanode/NAME"},
			&cli.StringFlag{Name: "key", Usage: "its key"},
			&cli.StringFlag{Name: "ca", Usage: "certificates of the authorities for hosts"},
			&cli.BoolFlag{Name: "verbose", Aliases: []string{"v"}, Usage: "log more"},
		},
		Action: dataNode,
	}
}

func dataNode(c *cli.Context) (err error) {
	if _, err := arguments(c); err != nil {
		return err
	}
	level := slog.LevelInfo
	if c.Bool("verbose") {
		level = slog.LevelDebug
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
	pool, err := shelf.PoolID(vfs.Default, c.String("dir"))
	if err != nil {
		return err
	}
	opts, member, err := dataNodeOptions(c, hex.EncodeToString(pool[:]), log)
	if err != nil {
		return err
	}
	var keeping sync.WaitGroup
	defer keeping.Wait()
	ctx, cancel := context.WithCancel(c.Context)
	defer cancel()
	if member != nil {
		keeping.Go(func() { member.Keep(ctx, pki.KeepOptions{}) })
	}
	node, err := shelf.Open(c.Context, c.String("dir"), shelf.Options{PoolID: pool, Logger: log})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, node.Close()) }()
	layouts, err := host.LayoutVersion(c.Context, node)
	if err != nil {
		return err
	}
	node.SetLayoutVersion(layouts)
	server, err := wire.NewServer(c.Context, node, opts)
	if err != nil {
		return err
	}
	network, address := wire.SplitPath(c.String("listen"))
	l, err := net.Listen(network, address)
	if err != nil {
		return errors.Join(err, server.Close())
	}
	fmt.Printf("data node %s of pool %s serves on %s\n", opts.Name, opts.Cluster, l.Addr())
	stop := context.AfterFunc(c.Context, func() {
		log.Info("stopping")
		_ = server.Close() // called again below
	})
	defer stop()
	return errors.Join(server.Serve(l), server.Close())
}

// dataNodeOptions says who the data node of a pool is, by its identity, which is
// to be kept, or by files.
func dataNodeOptions(c *cli.Context, pool string, log *slog.Logger) (wire.ServerOptions, *pki.Identity, error) {
	opts := wire.ServerOptions{Logger: log}
	var self wire.Identity
	var member *pki.Identity
	var err error
	if dir := c.String("identity"); dir != "" {
		if member, err = pki.Load(dir, log); err != nil {
			return opts, nil, err
		}
		is := member.Self()
		self = wire.Identity{Cluster: is.Cluster.String(), Role: wire.Role(is.Role), Name: is.Name}
		opts.TLS, opts.Guard = member.ServerConfig(pki.RoleHost, pki.RoleAdmin), member.Guard
	} else if opts.TLS, self, err = memberTLS(c.String("cert"), c.String("key"), c.String("ca")); err != nil {
		return opts, nil, err
	}
	opts.Cluster, opts.Name = self.Cluster, self.Name
	switch {
	case self.Cluster != pool:
		return opts, nil, fmt.Errorf("the certificate is of pool %s, the data node of pool %s", self.Cluster, pool)
	case self.Role != wire.RoleDataNode:
		return opts, nil, fmt.Errorf("the certificate is a %s's", self.Role)
	}
	return opts, member, nil
}

// memberTLS reads a member's certificate, key and authorities from files, and
// says who it is.
func memberTLS(cert, key, ca string) (*tls.Config, wire.Identity, error) {
	if cert == "" || key == "" || ca == "" {
		return nil, wire.Identity{}, errors.New("a data node needs --identity, or --cert, --key and --ca")
	}
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		return nil, wire.Identity{}, err
	}
	self, err := wire.IdentityOf(pair.Leaf)
	if err != nil {
		return nil, self, err
	}
	pem, err := os.ReadFile(ca)
	if err != nil {
		return nil, self, err
	}
	authorities := x509.NewCertPool()
	if !authorities.AppendCertsFromPEM(pem) {
		return nil, self, fmt.Errorf("%s has no certificate", ca)
	}
	return &tls.Config{Certificates: []tls.Certificate{pair}, RootCAs: authorities, ClientCAs: authorities}, self, nil
}
