package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"

	"plinth/nbd"
)

// tlsFlags say who may use disks.
func tlsFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "nbd-tls", Usage: "directory of server-cert.pem, server-key.pem and, to demand certificates of clients, ca-cert.pem"},
		&cli.BoolFlag{Name: "nbd-tls-required", Usage: "refuse clients over TCP that do not start TLS"},
		&cli.StringSliceFlag{Name: "nbd-grant", Usage: "NAME=PATTERN: a client whose certificate has this name may use the disks that match; all others over TCP none (repeatable)"},
	}
}

// tlsOptions reads the flags, and the certificates that they name, into o.
func tlsOptions(c *cli.Context, o *nbd.Options) error {
	dir := c.String("nbd-tls")
	if o.TLSRequired = c.Bool("nbd-tls-required"); o.TLSRequired && dir == "" {
		return errors.New("--nbd-tls-required needs certificates: --nbd-tls")
	}
	if dir != "" {
		var err error
		if o.TLS, err = nbd.WatchTLS(dir, o.Logger); err != nil {
			return fmt.Errorf("--nbd-tls: %w", err)
		}
	}
	grants := nbd.Grants{}
	for _, g := range c.StringSlice("nbd-grant") {
		name, pattern, ok := strings.Cut(g, "=")
		if !ok || name == "" || pattern == "" {
			return fmt.Errorf("--nbd-grant %q is not of the form NAME=PATTERN", g)
		}
		grants[name] = append(grants[name], pattern)
	}
	if len(grants) == 0 {
		return nil
	}
	if o.TLS == nil || o.TLS.ClientCAs == nil {
		return errors.New("--nbd-grant needs certificates of clients: --nbd-tls with a ca-cert.pem")
	}
	if err := grants.Validate(); err != nil {
		return fmt.Errorf("--nbd-grant: %w", err)
	}
	o.Allow = grants.Allow
	return nil
}
