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
			&cli.DurationFlag{Name: "delay", Usage: "answer from other goroutines after so long, or up to twice that"},
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
		c, err := newClock(delay)
		if err != nil {
			return err
		}
		device = delayed{device, c}
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

// clock makes all that wait do so for delay at least, and twice that at most: who
// comes while others wait goes after them. It reads a timerfd, as if the device
// were behind a network: the timers of the runtime are too coarse when it is idle,
// and a goroutine that sleeps in the kernel holds up others.
type clock struct {
	delay time.Duration
	timer *os.File

	mu      sync.Mutex
	next    chan struct{} // closed when those who came last may go; nil: nobody did
	running bool
}

func newClock(delay time.Duration) (*clock, error) {
	fd, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("timerfd_create", err)
	}
	return &clock{delay: delay, timer: os.NewFile(uintptr(fd), "timerfd")}, nil
}

func (c *clock) wait() {
	if c == nil {
		return
	}
	c.mu.Lock()
	if c.next == nil {
		c.next = make(chan struct{})
	}
	tick := c.next
	if !c.running {
		c.running = true
		go c.run()
	}
	c.mu.Unlock()
	<-tick
}

// run lets go who waits, until nobody does.
func (c *clock) run() {
	for {
		c.mu.Lock()
		tick := c.next
		c.next = nil
		c.running = tick != nil
		c.mu.Unlock()
		if tick == nil {
			return
		}
		if err := c.sleep(); err != nil {
			panic(err) // a timerfd of our own neither fails nor ends
		}
		close(tick)
	}
}

func (c *clock) sleep() error {
	raw, err := c.timer.SyscallConn()
	if err != nil {
		return err
	}
	spec := unix.ItimerSpec{Value: unix.NsecToTimespec(c.delay.Nanoseconds())}
	var failed error
	if err := raw.Control(func(fd uintptr) { failed = unix.TimerfdSettime(int(fd), 0, &spec, nil) }); err != nil {
		return err
	}
	if failed != nil {
		return failed
	}
	var expirations [8]byte
	_, err = c.timer.Read(expirations[:])
	return err
}
