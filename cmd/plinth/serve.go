package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sync/errgroup"

	"plinth/internal/api"
	"plinth/internal/handover"
	"plinth/internal/host"
	"plinth/nbd"
)

const (
	nbdDefault       = "127.0.0.1:10809"
	nbdSocketName    = "nbd.sock"
	firstDisk        = "vm1"
	firstDiskBytes   = 10 << 30
	shutdownTimeMax  = 30 * time.Second
	clientsDrainTime = 5 * time.Second
)

// serveFlags say how an agent serves, for up and host. data is what its directory
// is called in texts.
func serveFlags(data string) []cli.Flag {
	return slices.Concat(tlsFlags(), cpuFlags(", the default is "+cpuModeDefault), []cli.Flag{
		&cli.StringFlag{Name: "cache", Usage: "file or raw device of this machine's own flash to cache chunks on", DefaultText: "none"},
		&cli.GenericFlag{Name: "cache-size", Value: new(sizeFlag), Usage: "size of the cache; a new file needs one", DefaultText: "all of a device; what a file has"},
		&cli.StringFlag{Name: "nbd", Value: nbdDefault, Usage: "addresses to serve NBD on, HOST:PORT or vsock:[CID:]PORT, with commas between; empty for none"},
		&cli.StringFlag{Name: "nbd-socket", Usage: "unix socket to serve NBD on", DefaultText: data + "/nbd.sock"},
		&cli.StringFlag{Name: "api", Usage: "where to serve the API: unix:PATH or HOST:PORT", DefaultText: "unix:" + data + "/api.sock"},
		&cli.StringFlag{Name: "api-cert", Usage: "certificate for an API over TLS"},
		&cli.StringFlag{Name: "api-key", Usage: "its key"},
		&cli.BoolFlag{Name: "take-over", Usage: "if another process serves the directory, end it and go on with its NBD sockets: clients see a pause"},
	})
}

// flashOptions reads what serveFlags say of an agent's tunables.
func flashOptions(c *cli.Context, o *host.Options) error {
	o.FlashPath, o.FlashBytes = c.String("cache"), size(c, "cache-size")
	if o.FlashBytes != 0 && o.FlashPath == "" {
		return errors.New("--cache-size needs --cache")
	}
	o.CPU = cpuOf(c)
	return nil
}

// agent is what a server serves: disks of a data node in this process, or of one
// far away.
type agent struct {
	host    func() *host.Host // that serves now
	exports nbd.Exports
	rootKey string // its file, if it was made just now
	// wait returns when the context ends, or why nothing can be served any more.
	wait  func(context.Context) error
	close func() error
}

// serve opens an agent and serves it until the process is told to end, or a
// successor takes over.
func (s *server) serve(c *cli.Context, open func(context.Context) (*agent, error)) error {
	if c.Bool("take-over") {
		if err := s.takeOver(c.Context); err != nil {
			return err
		}
	}
	a, err := open(c.Context)
	if err != nil {
		return errors.Join(err, s.closeSockets())
	}
	successor, err := s.run(c.Context, a)
	err = errors.Join(err, a.close())
	if successor == nil {
		return err
	}
	if perr := successor.Pass(s.sockets); perr != nil {
		return errors.Join(err, perr)
	}
	s.log.Info("handed over")
	return err
}

// server is the listeners of one process.
type server struct {
	data      string
	rootKey   string // its file; empty where there is a passphrase
	nbdAddr   string // or several, with commas between
	nbdSocket string
	nbdOpts   nbd.Options
	apiAddr   api.Address
	apiOpts   api.ListenOptions
	log       *slog.Logger
	sockets   []*handover.Socket // of NBD
}

// newServer checks where to listen before anything is made.
func newServer(c *cli.Context, data string, keys host.RootSource, log *slog.Logger) (*server, error) {
	dir, err := filepath.Abs(data) // what is printed works from any folder
	if err != nil {
		return nil, err
	}
	s := &server{
		data: dir, rootKey: keys.File, nbdAddr: c.String("nbd"), nbdSocket: c.String("nbd-socket"), log: log,
		nbdOpts: nbd.Options{Logger: log, Errno: host.Errno},
		apiOpts: api.ListenOptions{CertFile: c.String("api-cert"), KeyFile: c.String("api-key")},
	}
	if s.rootKey == "" {
		s.rootKey = filepath.Join(dir, rootKeyName)
	}
	if len(keys.Passphrase) > 0 {
		s.rootKey = ""
	}
	for addr := range s.addresses() {
		if err := checkAddress(addr); err != nil {
			return nil, fmt.Errorf("--nbd: %w", err)
		}
	}
	if err := tlsOptions(c, &s.nbdOpts); err != nil {
		return nil, err
	}
	if s.nbdSocket == "" {
		s.nbdSocket = filepath.Join(dir, nbdSocketName)
	}
	if s.nbdSocket, err = filepath.Abs(s.nbdSocket); err != nil {
		return nil, err
	}
	if err := api.CheckSocketPath(s.nbdSocket); err != nil {
		return nil, fmt.Errorf("%w with --nbd-socket", err)
	}
	text := c.String("api")
	if text == "" {
		text = "unix:" + filepath.Join(dir, apiSocketName)
	}
	if s.apiAddr, err = api.ParseAddress(text); err != nil {
		return nil, err
	}
	if s.apiAddr.Unix != "" {
		if s.apiAddr.Unix, err = filepath.Abs(s.apiAddr.Unix); err != nil {
			return nil, err
		}
	}
	if err := s.apiOpts.Validate(s.apiAddr); err != nil {
		return nil, fmt.Errorf("%w (--api, --api-cert, --api-key)", err)
	}
	return s, nil
}

// run serves the agent until ctx ends or a successor wants it, which it returns;
// then it stops in order: clients, buffers.
func (s *server) run(ctx context.Context, a *agent) (successor *handover.Successor, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer func() { err = errors.Join(err, s.closeSockets()) }()
	if isNew, err := a.host().NeverHadDisk(ctx); err != nil {
		return nil, err
	} else if isNew {
		_, err := a.host().CreateDisk(ctx, host.DiskSpec{Name: firstDisk, Bytes: firstDiskBytes})
		if err != nil && !errors.Is(err, host.ErrExists) { // another host may be doing the same
			return nil, err
		}
	}
	if err := s.listenNBD(); err != nil {
		return nil, err
	}
	apiServer, apiListener, err := s.listenAPI(a)
	if err != nil {
		return nil, err
	}
	nbdServer := nbd.NewServer(a.exports, s.nbdOpts)
	group, gctx := errgroup.WithContext(ctx)
	var accepting sync.WaitGroup
	for _, l := range s.sockets {
		accepting.Add(1)
		group.Go(func() error {
			defer accepting.Done()
			return nbdServer.Serve(gctx, l)
		})
	}
	group.Go(func() error { return apiServer.Serve(apiListener) })
	group.Go(func() error { return a.wait(gctx) })
	group.Go(func() error {
		if successor = s.awaitSuccessor(gctx, a); successor != nil {
			cancel()
		}
		return nil
	})
	group.Go(func() error {
		<-gctx.Done()
		s.log.Info("stopping")
		accepting.Wait() // or Shutdown would turn away who is accepted meanwhile
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), clientsDrainTime)
		defer cancel()
		_ = nbdServer.Shutdown(stop) // clients that stay are cut off
		_ = apiServer.Shutdown(stop)
		return nil
	})
	s.log.Info("serving", "nbd", s.nbdAddr, "nbd-socket", s.nbdSocket, "api", s.apiAddr.String())
	s.announce(a)
	if err := notifyReady(); err != nil {
		s.log.Warn("systemd does not learn that disks are served", "err", err)
	}
	err = group.Wait()
	stop, cancelStop := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeMax)
	defer cancelStop()
	if qerr := a.host().Quiesce(stop); qerr != nil {
		s.log.Warn("not everything was destaged: the next start replays it from the log", "err", qerr)
	}
	return successor, err
}

// listenAPI opens the API's socket.
func (s *server) listenAPI(a *agent) (*api.Server, net.Listener, error) {
	server := api.NewServer(a.host, api.Metrics(a.host), s.log)
	if s.apiAddr.TCP != "" {
		token, err := api.LoadToken(filepath.Join(s.data, apiTokenName))
		if err != nil {
			return nil, nil, err
		}
		server.RequireToken(token)
	}
	l, err := api.Listen(s.apiAddr, s.apiOpts)
	if err != nil {
		return nil, nil, fmt.Errorf("serve the API: %w: choose another address with --api", err)
	}
	if s.apiAddr.TCP != "" {
		s.apiAddr.TCP = l.Addr().String() // the port, where any was asked for
	}
	return server, l, nil
}

// announce prints how to use what is served.
func (s *server) announce(a *agent) {
	disks := a.host().Disks()
	fmt.Printf("plinth serves %s over NBD.\n", plural(len(disks), "disk"))
	if a.rootKey != "" || s.rootKeyIsBesideData() {
		fmt.Printf("\nThe root key is %s. Without it nothing can be read: back it up, and move it\naway from the data (--root-key says where it is).\n", s.rootKey)
	}
	if len(disks) > 0 {
		s.announceDisk(disks[0].Name)
	}
	fmt.Printf("more disks:\n  export PLINTH_API=%s\n", s.apiAddr)
	if s.apiAddr.TCP != "" {
		fmt.Printf("  export PLINTH_TOKEN_FILE=%s\n", filepath.Join(s.data, apiTokenName))
		if s.apiOpts.CertFile != "" {
			fmt.Printf("  export PLINTH_CA_FILE=FILE  (who signed %s)\n", s.apiOpts.CertFile)
		}
	}
	fmt.Print("  plinth disk create vm2 100G\n\nCtrl-C stops it.\n")
}

func (s *server) announceDisk(name string) {
	network, address, nbd := "unix", s.nbdSocket, "unix:"+s.nbdSocket
	if s.nbdSocket == "" {
		nbd, _, _ = strings.Cut(s.nbdAddr, ",")
		network, address = splitAddress(nbd)
	}
	fmt.Printf("\nqemu:\n  qemu-system-x86_64 %s\n", qemuArgs(name, qemuBlockdev(name, network, address, reconnectDelayDefault)))
	fmt.Printf("this machine, as root:\n  plinth attach %s --nbd %s\n", name, shellQuote(nbd))
}

// rootKeyIsBesideData reports whether who takes the data has the key as well.
func (s *server) rootKeyIsBesideData() bool {
	if s.rootKey == "" {
		return false
	}
	key, err := filepath.Abs(s.rootKey)
	return err == nil && strings.HasPrefix(key, s.data+string(filepath.Separator))
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
