package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sync/errgroup"

	"plinth/datanode/shelf"
	"plinth/internal/api"
	"plinth/internal/host"
	"plinth/internal/standalone"
	"plinth/internal/stripe"
	"plinth/nbd"
)

const (
	nbdDefault       = "127.0.0.1:10809"
	nbdSocketName    = "nbd.sock"
	firstDisk        = "vm1"
	firstDiskBytes   = 10 << 30
	shutdownTimeMax  = 30 * time.Second
	passphraseMax    = 4096
	clientsDrainTime = 5 * time.Second
)

// siteFlags say what pool it is, for up and recover.
func siteFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "data", Value: dataDefault, Usage: "directory that holds everything"},
		&cli.StringFlag{Name: "root-key", Usage: "file of the root key", DefaultText: "DATA/root.key"},
		&cli.StringFlag{Name: "passphrase-file", Usage: "file whose first line is the passphrase, in place of a root key"},
		&cli.IntFlag{Name: "spindles", Usage: "spindles of a new data node", DefaultText: fmt.Sprint(shelf.SpindlesDefault)},
		&cli.StringFlag{Name: "ec", Usage: "data+parity fragments of a new pool's stripes", DefaultText: "8+2 over 10 spindles or more"},
		&cli.GenericFlag{Name: "log-size", Value: new(sizeFlag), Usage: "size of a new data node's log", DefaultText: "4G, or a tenth of the free space"},
		&cli.GenericFlag{Name: "spindle-size", Value: new(sizeFlag), Usage: "size of each spindle of a new data node", DefaultText: "64G, or its share of seven tenths of the free space"},
		&cli.GenericFlag{Name: "buffer-size", Value: new(sizeFlag), Usage: "bound on what is acknowledged and not destaged", DefaultText: "1G, or half the log"},
		&cli.DurationFlag{Name: "destage-interval", Usage: "longest time, about, until a write is destaged", DefaultText: "2s"},
		&cli.Int64Flag{Name: "checkpoint-updates", Usage: "map updates after which a checkpoint is made", DefaultText: "1048576"},
		&cli.DurationFlag{Name: "idle-time", Usage: "quiet time after which a disk is checkpointed and scanned", DefaultText: "10s"},
		&cli.BoolFlag{Name: "verbose", Aliases: []string{"v"}, Usage: "log more"},
	}
}

func siteOptions(c *cli.Context) (standalone.Options, error) {
	level := slog.LevelInfo
	if c.Bool("verbose") {
		level = slog.LevelDebug
	}
	o := standalone.Options{
		Dir: c.String("data"), RootKey: c.String("root-key"),
		Node: shelf.Options{
			Spindles: c.Int("spindles"), LogBytes: size(c, "log-size"), SpindleBytes: size(c, "spindle-size"),
		},
		Host: host.Options{
			BufferBytesMax: size(c, "buffer-size"), DestageInterval: c.Duration("destage-interval"),
			CheckpointUpdates: c.Int64("checkpoint-updates"), IdleTime: c.Duration("idle-time"),
		},
		Logger: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level})),
	}
	if c.Duration("destage-interval") < 0 || c.Duration("idle-time") < 0 || c.Int64("checkpoint-updates") < 0 {
		return o, errors.New("destage-interval, idle-time and checkpoint-updates are not negative")
	}
	if text := c.String("ec"); text != "" {
		g, err := stripe.ParseGeometry(text)
		if err != nil {
			return o, err
		}
		o.Geometry = g
	}
	if path := c.String("passphrase-file"); path != "" {
		pass, err := readPassphrase(path)
		if err != nil {
			return o, err
		}
		o.Passphrase = pass
	}
	return o, nil
}

func size(c *cli.Context, name string) int64 { return int64(*c.Generic(name).(*sizeFlag)) }

// readPassphrase returns the first line of a file that only its owner may read.
func readPassphrase(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("passphrase: %w", err)
	}
	if mode := info.Mode().Perm(); info.Mode().IsRegular() && mode&0o077 != 0 {
		return nil, fmt.Errorf("passphrase file %s has mode %04o and is open to others; run: chmod 600 %s", path, mode, path)
	}
	if info.Size() > passphraseMax {
		return nil, fmt.Errorf("passphrase file %s has %d bytes: a passphrase has at most %d", path, info.Size(), passphraseMax)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("passphrase: %w", err)
	}
	line, _, _ := bytes.Cut(b, []byte("\n"))
	if line = bytes.TrimSuffix(line, []byte("\r")); len(line) == 0 {
		return nil, fmt.Errorf("passphrase file %s begins with an empty line", path)
	}
	return line, nil
}

func upCommand() *cli.Command {
	return &cli.Command{
		Name:  "up",
		Usage: "run everything on this machine: a data node, an agent and a first disk",
		Flags: append(siteFlags(),
			&cli.StringFlag{Name: "nbd", Value: nbdDefault, Usage: "address to serve NBD on; empty for none"},
			&cli.StringFlag{Name: "nbd-socket", Usage: "unix socket to serve NBD on", DefaultText: "DATA/nbd.sock"},
			&cli.StringFlag{Name: "api", EnvVars: []string{"PLINTH_API"}, Usage: "where to serve the API: unix:PATH or HOST:PORT", DefaultText: "unix:DATA/api.sock"},
			&cli.StringFlag{Name: "api-cert", Usage: "certificate for an API over TLS"},
			&cli.StringFlag{Name: "api-key", Usage: "its key"},
		),
		Action: up,
	}
}

func up(c *cli.Context) error {
	if _, err := arguments(c); err != nil {
		return err
	}
	opts, err := siteOptions(c)
	if err != nil {
		return err
	}
	s := &server{data: opts.Dir, nbdAddr: c.String("nbd"), nbdSocket: c.String("nbd-socket"), log: opts.Logger}
	if s.nbdSocket == "" {
		s.nbdSocket = filepath.Join(opts.Dir, nbdSocketName)
	}
	if s.nbdSocket, err = filepath.Abs(s.nbdSocket); err != nil {
		return err
	}
	text := c.String("api")
	if text == "" {
		text = "unix:" + filepath.Join(opts.Dir, apiSocketName)
	}
	if s.apiAddr, err = api.ParseAddress(text); err != nil {
		return err
	}
	s.apiOpts = api.ListenOptions{CertFile: c.String("api-cert"), KeyFile: c.String("api-key")}
	site, err := standalone.Open(c.Context, opts)
	if err != nil {
		return err
	}
	err = s.run(c.Context, site)
	return errors.Join(err, site.Close())
}

// server is the listeners of one up.
type server struct {
	data      string
	nbdAddr   string
	nbdSocket string
	apiAddr   api.Address
	apiOpts   api.ListenOptions
	log       *slog.Logger
}

// run serves the site until ctx ends, then stops in order: clients, buffers.
func (s *server) run(ctx context.Context, site *standalone.Site) error {
	if site.Created {
		if _, err := site.Host.CreateDisk(ctx, host.DiskSpec{Name: firstDisk, Bytes: firstDiskBytes}); err != nil {
			return err
		}
	}
	listeners, err := s.listenNBD()
	if err != nil {
		return err
	}
	apiServer := api.NewServer(site.Host, api.Metrics(site.Host), s.log)
	if s.apiAddr.TCP != "" {
		token, err := api.LoadToken(filepath.Join(s.data, apiTokenName))
		if err != nil {
			return errors.Join(err, closeAll(listeners))
		}
		apiServer.RequireToken(token)
	}
	apiListener, err := api.Listen(s.apiAddr, s.apiOpts)
	if err != nil {
		return errors.Join(err, closeAll(listeners))
	}
	nbdServer := nbd.NewServer(host.Exports{Host: site.Host}, nbd.Options{Logger: s.log, Errno: host.Errno})
	group, gctx := errgroup.WithContext(ctx)
	for _, l := range listeners {
		group.Go(func() error { return nbdServer.Serve(gctx, l) })
	}
	group.Go(func() error { return apiServer.Serve(apiListener) })
	group.Go(func() error {
		<-gctx.Done()
		s.log.Info("stopping")
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), clientsDrainTime)
		defer cancel()
		_ = nbdServer.Shutdown(stop) // clients that stay are cut off
		_ = apiServer.Shutdown(stop)
		return nil
	})
	s.announce(site)
	err = group.Wait()
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeMax)
	defer cancel()
	if qerr := site.Host.Quiesce(stop); qerr != nil {
		s.log.Warn("not everything was destaged: the next start replays it from the log", "err", qerr)
	}
	return err
}

func (s *server) listenNBD() ([]net.Listener, error) {
	var out []net.Listener
	if s.nbdAddr != "" {
		l, err := net.Listen("tcp", s.nbdAddr)
		if err != nil {
			return nil, fmt.Errorf("serve NBD: %w: choose another address with --nbd", err)
		}
		out = append(out, l)
		s.nbdAddr = l.Addr().String()
	}
	l, err := api.ListenUnix(s.nbdSocket)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("serve NBD: %w: choose another path with --nbd-socket", err), closeAll(out))
	}
	return append(out, l), nil
}

func closeAll(listeners []net.Listener) error {
	var errs []error
	for _, l := range listeners {
		errs = append(errs, l.Close())
	}
	return errors.Join(errs...)
}

// announce prints how to use what is served.
func (s *server) announce(site *standalone.Site) {
	name := firstDisk
	disks := site.Host.Disks()
	if len(disks) > 0 {
		name = disks[0].Name
	}
	fmt.Printf("plinth serves %s over NBD.\n", plural(len(disks), "disk"))
	if site.NewRootKey != "" {
		fmt.Printf("\nThe root key is %s. Without it nothing can be read: back it up, and move it\naway from the data (--root-key says where it is).\n", site.NewRootKey)
	}
	fmt.Printf("\nqemu:\n  qemu-system-x86_64 -drive file=nbd+unix:///%s?socket=%s,format=raw,if=virtio,discard=unmap\n", name, s.nbdSocket)
	if h, p, err := net.SplitHostPort(s.nbdAddr); err == nil {
		fmt.Printf("nbd-client:\n  nbd-client %s %s /dev/nbd0 -N %s -b 4096\n", h, p, name)
	} else {
		fmt.Printf("nbd-client:\n  nbd-client -unix %s /dev/nbd0 -N %s -b 4096\n", s.nbdSocket, name)
	}
	fmt.Printf("more disks:\n  plinth --help; export PLINTH_API=%s\n\nCtrl-C stops it.\n", s.apiAddr)
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
