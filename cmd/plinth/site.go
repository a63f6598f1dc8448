package main

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/urfave/cli/v2"

	"plinth/datanode/shelf"
	"plinth/internal/host"
	"plinth/internal/standalone"
	"plinth/internal/stripe"
)

const (
	passphraseMax  = 4096
	bufferBytesMin = 1 << 20
	intervalMin    = time.Millisecond
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
		&cli.GenericFlag{Name: "ram-cache", Value: new(sizeFlag), Usage: "memory for chunks ready to be read; 0 for none", DefaultText: "an eighth of the memory, at most 8G"},
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
			RAMCacheBytes: size(c, "ram-cache"),
		},
		Logger: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level})),
	}
	for _, f := range []struct {
		name  string
		value int64
		least int64
		text  string
	}{
		{"spindles", int64(o.Node.Spindles), 1, "1"},
		{"log-size", o.Node.LogBytes, shelf.LogBytesMin, formatSize(shelf.LogBytesMin)},
		{"spindle-size", o.Node.SpindleBytes, shelf.SpindleBytesMin, formatSize(shelf.SpindleBytesMin)},
		{"buffer-size", o.Host.BufferBytesMax, bufferBytesMin, formatSize(bufferBytesMin)},
		{"destage-interval", int64(o.Host.DestageInterval), int64(intervalMin), intervalMin.String()},
		{"checkpoint-updates", o.Host.CheckpointUpdates, 1, "1"},
		{"idle-time", int64(o.Host.IdleTime), int64(intervalMin), intervalMin.String()},
	} {
		if c.IsSet(f.name) && f.value < f.least {
			return o, fmt.Errorf("--%s is at least %s", f.name, f.text)
		}
	}
	if c.IsSet("ram-cache") && o.Host.RAMCacheBytes == 0 {
		o.Host.RAMCacheBytes = -1
	} else if c.IsSet("ram-cache") && o.Host.RAMCacheBytes < host.RAMCacheBytesMin {
		return o, fmt.Errorf("--ram-cache is 0, or at least %s", formatSize(host.RAMCacheBytesMin))
	}
	if info, err := os.Stat(o.Dir); err == nil && !info.IsDir() {
		return o, fmt.Errorf("%s is not a directory: choose another with --data", o.Dir)
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
