package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"plinth/internal/api"
	"plinth/nbd"
	"plinth/nbd/memory"
)

const (
	nullBytesDefault = 1 << 30
	nullExport       = "null"
)

// serveNullCommand serves memory, to measure what the NBD server itself costs.
func serveNullCommand() *cli.Command {
	return &cli.Command{
		Name: "serve-null", Usage: "serve memory over NBD, to measure the server alone; what is written is lost at the end",
		Flags: append(tlsFlags(),
			&cli.StringFlag{Name: "nbd", Usage: "address to serve on: HOST:PORT or vsock:[CID:]PORT"},
			&cli.StringFlag{Name: "nbd-socket", Usage: "unix socket to serve on"},
			&cli.GenericFlag{Name: "size", Value: sizeOf(nullBytesDefault), Usage: "bytes of the export"},
			&cli.BoolFlag{Name: "workers", Usage: "answer from other goroutines, as a device that may wait does"},
			&cli.DurationFlag{Name: "delay", Usage: "answer from other goroutines after so long"},
		),
		Action: serveNull,
	}
}

func serveNull(c *cli.Context) error {
	if _, err := arguments(c); err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	opts := nbd.Options{Logger: log}
	if err := tlsOptions(c, &opts); err != nil {
		return err
	}
	if size(c, "size") == 0 || c.Duration("delay") < 0 {
		return errors.New("--size must be more than 0, and --delay not less")
	}
	var device nbd.Device = memory.New(size(c, "size"))
	switch delay := c.Duration("delay"); {
	case delay > 0:
		device = delayed{device, &clock{delay: delay}}
	case c.Bool("workers"):
		device = delayed{Device: device}
	}
	l, err := nullListener(c.String("nbd"), c.String("nbd-socket"))
	if err != nil {
		return err
	}
	server := nbd.NewServer(nbd.Single{Export: nbd.Export{Name: nullExport, Device: device, MultiConn: true}}, opts)
	defer server.Close()
	return server.Serve(c.Context, l)
}

func nullListener(addr, socket string) (net.Listener, error) {
	switch {
	case (addr == "") == (socket == ""):
		return nil, errors.New("say where, by --nbd or --nbd-socket")
	case socket != "":
		return api.ListenUnix(socket)
	}
	return listenAddress(addr)
}

// delayed is a device that has no answer at once.
type delayed struct {
	nbd.Device
	clock *clock // nil: no delay
}

func (d delayed) ReadAt(ctx context.Context, p []byte, off int64) error {
	d.clock.wait()
	return d.Device.ReadAt(ctx, p, off)
}

func (d delayed) WriteAt(ctx context.Context, p []byte, off int64, fua bool) error {
	d.clock.wait()
	return d.Device.WriteAt(ctx, p, off, fua)
}

// clock wakes all that wait, some time after the first of them came. It sleeps
// in the kernel: the timers of the runtime are too coarse when it is idle.
type clock struct {
	delay time.Duration

	mu   sync.Mutex
	tick chan struct{} // closed when those who wait may go; nil: nobody waits
}

func (c *clock) wait() {
	if c == nil {
		return
	}
	c.mu.Lock()
	tick := c.tick
	if tick == nil {
		tick = make(chan struct{})
		c.tick = tick
		go c.sleep(tick)
	}
	c.mu.Unlock()
	<-tick
}

func (c *clock) sleep(tick chan struct{}) {
	pause := unix.NsecToTimespec(c.delay.Nanoseconds())
	_ = unix.Nanosleep(&pause, nil)
	c.mu.Lock()
	c.tick = nil
	c.mu.Unlock()
	close(tick)
}
