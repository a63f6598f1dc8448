package guest

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Host is this machine's loopback, seen from a guest.
const Host = "10.0.2.2"

const (
	timeoutDefault    = time.Minute
	memoryDefault     = 512
	processorsDefault = 1 // others make every instruction of an emulated kernel dearer
	// consoleBytesMax bounds what is kept of a console; the rest is dropped.
	consoleBytesMax = 4 << 20
)

// baseModules make a processor, a network card and virtual disks work.
var baseModules = []string{"virtio_pci", "virtio_net", "virtio_blk", "crc32c_generic"}

//go:embed init.sh
var initScript []byte

// Options say what a guest is. The zero value boots and powers off.
type Options struct {
	// Script is run by busybox sh -e; its status is the guest's. It finds all of
	// busybox's commands, /proc, /sys, /dev and the network. If it leaves a file
	// system at /mnt with /sbin/init, that becomes the root, and /sbin/init the
	// first process, which says "guest: status N" and powers off.
	Script string
	// Programs of this machine, by name or path, with their libraries.
	Programs []string
	// Files of this machine by their path inside.
	Files map[string]string
	// Modules to load, with those they need, beside the usual.
	Modules []string
	// Args are further arguments of QEMU.
	Args []string
	// Reboots lets the guest reboot; otherwise a reboot, and a panic, end it.
	Reboots bool
	// Processors are the guest's; its kernel uses one connection of an NBD device for
	// each. Default: 1.
	Processors int
	// MemoryMiB is the guest's memory. Default: 512.
	MemoryMiB int
	// Timeout is the longest life of the guest. Default: one minute.
	Timeout time.Duration
}

// Guest is a running virtual machine.
type Guest struct {
	cancel context.CancelFunc
	done   chan struct{}
	err    error // of QEMU, once done is closed

	mu      sync.Mutex
	console bytes.Buffer
	changed chan struct{} // closed and replaced with each change of console
}

// Start boots a guest. dir holds its initramfs and must outlive it.
func Start(ctx context.Context, k *Kernel, dir string, o Options) (*Guest, error) {
	initramfs, err := o.initramfs(ctx, k)
	if err != nil {
		return nil, fmt.Errorf("initramfs: %w", err)
	}
	path := filepath.Join(dir, "initramfs")
	if err := os.WriteFile(path, initramfs, 0o600); err != nil {
		return nil, err
	}
	args := []string{
		"-nodefaults", "-no-user-config", "-display", "none", "-accel", "tcg,thread=multi",
		"-smp", strconv.Itoa(orDefault(o.Processors, processorsDefault)), "-m", strconv.Itoa(orDefault(o.MemoryMiB, memoryDefault)),
		"-kernel", k.Image, "-initrd", path, "-append", "console=ttyS0 quiet panic=-1 mitigations=off",
		"-serial", "stdio", "-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile=",
	}
	if !o.Reboots {
		args = append(args, "-no-reboot")
	}
	ctx, cancel := context.WithTimeout(ctx, orDefault(o.Timeout, timeoutDefault))
	g := &Guest{cancel: cancel, done: make(chan struct{}), changed: make(chan struct{})}
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", append(args, o.Args...)...)
	cmd.Stdout, cmd.Stderr = g, g
	if err := cmd.Start(); err != nil {
		cancel()
		return nil, err
	}
	go func() {
		defer cancel()
		g.err = cmd.Wait()
		if ctx.Err() != nil {
			g.err = fmt.Errorf("%w: %w", ctx.Err(), g.err)
		}
		close(g.done)
	}()
	return g, nil
}

func orDefault[T int | time.Duration](v, or T) T {
	if v == 0 {
		return or
	}
	return v
}

func (o *Options) initramfs(ctx context.Context, k *Kernel) ([]byte, error) {
	var a archive
	a.add("/init", initScript)
	a.add("/script", []byte(o.Script))
	modules, err := k.order(append(baseModules, o.Modules...))
	if err != nil {
		return nil, err
	}
	a.add("/modules/order", []byte(strings.Join(modules, "\n")))
	for _, m := range modules {
		if err := a.addFile("/modules/"+m+".ko", k.modules[m]); err != nil {
			return nil, err
		}
	}
	busybox, err := lookPath("busybox")
	if err != nil {
		return nil, err
	}
	if err := a.addFile("/bin/busybox", busybox); err != nil {
		return nil, err
	}
	for _, p := range o.Programs {
		if err := a.addProgram(ctx, p); err != nil {
			return nil, err
		}
	}
	for path, from := range o.Files {
		if err := a.addFile(path, from); err != nil {
			return nil, err
		}
	}
	return a.bytes(), nil
}

// Write takes the console's output: for QEMU only.
func (g *Guest) Write(p []byte) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.console.Len() < consoleBytesMax {
		g.console.Write(p)
	}
	close(g.changed)
	g.changed = make(chan struct{})
	return len(p), nil
}

// Console returns what the guest has written so far.
func (g *Guest) Console() string {
	text, _ := g.look()
	return text
}

func (g *Guest) look() (string, <-chan struct{}) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.console.String(), g.changed
}

// Await blocks until text is on the console. It is an error if the guest ends, or
// ctx, without it.
func (g *Guest) Await(ctx context.Context, text string) error {
	for {
		console, changed := g.look()
		if strings.Contains(console, text) {
			return nil
		}
		select {
		case <-changed:
		case <-g.done:
			if strings.Contains(g.Console(), text) {
				return nil
			}
			return errors.Join(fmt.Errorf("guest ended without %q", text), g.err)
		case <-ctx.Done():
			return fmt.Errorf("guest says no %q: %w", text, ctx.Err())
		}
	}
}

var verdict = regexp.MustCompile(`(?m)^guest: status (\d+)\r?$`)

// Wait blocks until the guest has ended and returns the status of its script. A
// guest that did not end by itself is an error.
func (g *Guest) Wait() (status int, err error) {
	<-g.done
	if g.err != nil {
		return 0, fmt.Errorf("guest: %w", g.err)
	}
	m := verdict.FindStringSubmatch(g.Console())
	if m == nil {
		return 0, errors.New("guest ended without a status")
	}
	return strconv.Atoi(m[1])
}

// Kill ends the guest as a power loss would, and waits.
func (g *Guest) Kill() {
	g.cancel()
	<-g.done
}
