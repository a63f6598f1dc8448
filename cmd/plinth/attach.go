package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"plinth/internal/api"
	"plinth/internal/attach"
)

// keeperLogFolder holds the log of each keeper in the background, nbdN.log.
const keeperLogFolder = "/run/plinth"

// nbdFlag says where disks are served, for commands that use them.
func nbdFlag() cli.Flag {
	return &cli.StringFlag{Name: "nbd", EnvVars: []string{"PLINTH_NBD"}, Usage: "where disks are served: unix:PATH or HOST:PORT; for QEMU also vsock:[CID:]PORT",
		DefaultText: "unix:" + filepath.Join(dataDefault, nbdSocketName)}
}

// nbdAddress returns what nbdFlag says, ready to dial.
func nbdAddress(c *cli.Context) (network, address string, err error) {
	text := c.String("nbd")
	if text == "" {
		text = "unix:" + filepath.Join(dataDefault, nbdSocketName)
	}
	if path, ok := strings.CutPrefix(text, "unix:"); ok {
		address, err = filepath.Abs(path)
		if err == nil {
			err = api.CheckSocketPath(address)
		}
		return "unix", address, err
	}
	if checkAddress(text) != nil {
		return "", "", fmt.Errorf("--nbd %q is none of unix:PATH, HOST:PORT and vsock:[CID:]PORT", text)
	}
	network, address = splitAddress(text)
	return network, address, nil
}

func attachCommand() *cli.Command {
	return &cli.Command{
		Name: "attach", Usage: "make a disk or snapshot a block device of this machine, or give its device the disk's new size", ArgsUsage: "DISK[@SNAPSHOT] [/dev/nbdN]",
		Flags: append(apiFlags()[:3:3], nbdFlag(), // the API's completes names
			&cli.IntFlag{Name: "connections", Usage: "connections to the server", DefaultText: "4"},
			&cli.IntFlag{Name: "block-size", Usage: "logical block size of the device: 512 or 4096", DefaultText: "512"},
			&cli.DurationFlag{Name: "request-timeout", Usage: "when a request without an answer is sent again", DefaultText: "15s"},
			&cli.DurationFlag{Name: "dead-timeout", Usage: "how long requests wait for a server that is away, before they fail", DefaultText: "10m"},
			&cli.BoolFlag{Name: "foreground", Usage: "stay, and keep the device connected, until it is detached"},
			&cli.BoolFlag{Name: "keeper", Hidden: true},
		),
		Action: attachDisk, BashComplete: completeExports,
	}
}

func attachDisk(c *cli.Context) error {
	o := attach.Options{
		Connections: c.Int("connections"), BlockSize: c.Int("block-size"),
		RequestTimeout: c.Duration("request-timeout"), DeadTimeout: c.Duration("dead-timeout"),
	}
	var device *attach.Device
	switch args := c.Args().Slice(); len(args) {
	case 2:
		d, err := attach.ParseDevice(args[1])
		if err != nil {
			return err
		}
		device = &d
		fallthrough
	case 1:
		o.Disk = args[0]
	default:
		return errors.New("usage: plinth attach [options] DISK [/dev/nbdN]")
	}
	var err error
	if o.Network, o.Address, err = nbdAddress(c); err != nil {
		return err
	}
	if err := o.Validate(); err != nil {
		return err
	}
	if !c.Bool("foreground") && !c.Bool("keeper") {
		return startKeeper(c.Context)
	}
	a, err := attach.Attach(c.Context, o, device)
	if err != nil {
		return err
	}
	err = a.Keep(c.Context, slog.Default(), func() {
		fmt.Println(a.Device)
		if c.Bool("keeper") {
			leaveTerminal(a.Device)
		}
	})
	switch {
	case errors.Is(err, attach.ErrKept): // it has its size now
		fmt.Println(a.Device)
		return nil
	case c.Context.Err() != nil:
		slog.Warn("the device stays attached, and nobody reconnects it", "device", a.Device.String())
		return nil
	}
	return err
}

// startKeeper runs this command again as a process of its own, and returns when
// that has attached the disk, or failed and said why.
func startKeeper(ctx context.Context) error {
	program, err := os.Executable()
	if err != nil {
		return err
	}
	keeper := exec.Command(program, append([]string{os.Args[1], "--keeper"}, os.Args[2:]...)...)
	keeper.Stderr = os.Stderr
	keeper.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	out, err := keeper.StdoutPipe()
	if err != nil {
		return err
	}
	if err := keeper.Start(); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = keeper.Process.Kill() }) // fails for one that has ended
	device, err := bufio.NewReader(out).ReadString('\n')
	if !stop() || err != nil {
		_ = keeper.Wait() // what it says is on stderr
		return errors.Join(errReported, ctx.Err())
	}
	fmt.Print(device)
	return keeper.Process.Release()
}

// leaveTerminal sends what a keeper still says to its log.
func leaveTerminal(device attach.Device) {
	path := filepath.Join(keeperLogFolder, filepath.Base(device.String())+".log")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC|os.O_APPEND, 0o600)
	if err != nil {
		if f, err = os.OpenFile(os.DevNull, os.O_WRONLY, 0); err != nil {
			return
		}
	}
	defer f.Close()
	for _, fd := range []int{1, 2} {
		_ = unix.Dup3(int(f.Fd()), fd, 0) // cannot fail for two open descriptors
	}
}

func detachCommand() *cli.Command {
	return &cli.Command{
		Name: "detach", Usage: "end what attach made; the disk must not be mounted", ArgsUsage: "DISK|/dev/nbdN",
		Flags:  []cli.Flag{&cli.BoolFlag{Name: "force", Usage: "also while it is in use: what is under way fails"}},
		Action: detachDisk,
	}
}

func detachDisk(c *cli.Context) error {
	args, err := arguments(c, "DISK|/dev/nbdN")
	if err != nil {
		return err
	}
	var device attach.Device
	if strings.HasPrefix(args[0], "/dev/") {
		device, err = attach.ParseDevice(args[0])
	} else {
		var ok bool
		if device, ok, err = attach.Find(args[0]); err == nil && !ok {
			err = fmt.Errorf("no device is attached to disk %q", args[0])
		}
	}
	if err != nil {
		return err
	}
	return attach.Detach(device, c.Bool("force"))
}
