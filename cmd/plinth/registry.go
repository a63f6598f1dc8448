package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"

	"github.com/urfave/cli/v2"

	"plinth/datanode"
	"plinth/internal/api"
	"plinth/internal/registry/etcd"
	"plinth/internal/remote"
)

const etcdScheme = "etcd://"

// registryFlags say where a registry is that stands beside the data nodes.
func registryFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "registry", Usage: "etcd://HOST:PORT,… of a pool of several data nodes", DefaultText: "at the first data node"},
		&cli.StringFlag{Name: "registry-ca", Usage: "certificates of the authorities for etcd; without them etcd must be on this machine"},
		&cli.StringFlag{Name: "registry-cert", Usage: "certificate for etcd"},
		&cli.StringFlag{Name: "registry-key", Usage: "its key"},
		&cli.StringFlag{Name: "registry-user", Usage: "user of etcd"},
		&cli.StringFlag{Name: "registry-password-file", Usage: "file whose first line is the user's password"},
	}
}

// registryOptions reads registryFlags, for the pool of that id; nil without --registry.
func registryOptions(c *cli.Context, pool string, log *slog.Logger) (func(context.Context, bool) (remote.Registry, error), error) {
	text := c.String("registry")
	if text == "" {
		for _, f := range []string{"registry-ca", "registry-cert", "registry-key", "registry-user", "registry-password-file"} {
			if c.String(f) != "" {
				return nil, fmt.Errorf("--%s needs --registry", f)
			}
		}
		return nil, nil
	}
	hosts, is := strings.CutPrefix(text, etcdScheme)
	if !is {
		return nil, fmt.Errorf("--registry: %q is not of the form etcd://HOST:PORT,HOST:PORT", text)
	}
	o := etcd.Options{Pool: pool, User: c.String("registry-user"), Logger: log}
	var err error
	if o.TLS, err = registryTLS(c); err != nil {
		return nil, err
	}
	o.Insecure = o.TLS == nil
	for _, h := range strings.Split(hosts, ",") {
		if err := api.CheckHostPort(h); err != nil {
			return nil, fmt.Errorf("--registry: %w", err)
		}
		scheme := "https://"
		if o.Insecure {
			if host, _, _ := net.SplitHostPort(h); !net.ParseIP(host).IsLoopback() {
				return nil, fmt.Errorf("--registry: etcd at %s, not on this machine, needs TLS: --registry-ca, --registry-cert and --registry-key", h)
			}
			scheme = "http://"
		}
		o.Endpoints = append(o.Endpoints, scheme+h)
	}
	if path := c.String("registry-password-file"); path != "" {
		line, err := readPassphrase(path)
		if err != nil {
			return nil, fmt.Errorf("--registry-password-file: %w", err)
		}
		o.Password = string(line)
	}
	return func(ctx context.Context, create bool) (remote.Registry, error) {
		opts := o
		opts.Create = create
		r, err := etcd.Open(ctx, opts)
		if errors.Is(err, datanode.ErrNotFound) {
			return nil, fmt.Errorf("--registry: etcd has no registry of pool %s, whose data nodes are there: name the etcd that has it, or restore it", pool)
		}
		if err != nil {
			return nil, fmt.Errorf("--registry: %w", err)
		}
		return r, nil
	}, nil
}

// registryTLS is nil without --registry-ca.
func registryTLS(c *cli.Context) (*tls.Config, error) {
	ca, cert, key := c.String("registry-ca"), c.String("registry-cert"), c.String("registry-key")
	if ca == "" && cert == "" && key == "" {
		return nil, nil
	}
	if ca == "" || (cert == "") != (key == "") {
		return nil, errors.New("etcd with TLS needs --registry-ca, and --registry-cert and --registry-key together")
	}
	authorities, err := readAuthorities(ca)
	if err != nil {
		return nil, fmt.Errorf("--registry-ca: %w", err)
	}
	config := &tls.Config{RootCAs: authorities, MinVersion: tls.VersionTLS12}
	if cert != "" {
		pair, err := tls.LoadX509KeyPair(cert, key)
		if err != nil {
			return nil, fmt.Errorf("--registry-cert: %w", err)
		}
		config.Certificates = []tls.Certificate{pair}
	}
	return config, nil
}
