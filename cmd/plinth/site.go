package main

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"time"

	"github.com/urfave/cli/v2"

	"plinth/datanode/shelf"
	"plinth/internal/events"
	"plinth/internal/host"
	"plinth/internal/standalone"
	"plinth/internal/stripe"
)

const (
	passphraseMax  = 4096
	bufferBytesMin = 1 << 20
	intervalMin    = time.Millisecond

	scrubIntervalMin = time.Minute
)

// siteFlags say what pool it is, for up and recover.
func siteFlags() []cli.Flag {
	return slices.Concat([]cli.Flag{
		&cli.StringFlag{Name: "data", Value: dataDefault, Usage: "directory that holds everything"},
	}, poolFlags("DATA/root.key"), nodeFlags(), agentFlags(), verboseFlags())
}

// poolFlags say what a pool is opened with, or made with.
func poolFlags(rootKey string) []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "root-key", Usage: "file of the root key", DefaultText: rootKey},
		&cli.StringFlag{Name: "passphrase-file", Usage: "file whose first line is the passphrase, in place of a root key"},
		&cli.StringFlag{Name: "ec", Usage: "data+parity fragments of a new pool's stripes", DefaultText: "8+2 over 10 spindles or more"},
	}
}

// nodeFlags say how a new data node is made.
func nodeFlags() []cli.Flag {
	return []cli.Flag{
		&cli.IntFlag{Name: "spindles", Usage: "spindles of a new data node", DefaultText: fmt.Sprint(shelf.SpindlesDefault)},
		&cli.GenericFlag{Name: "log-size", Value: new(sizeFlag), Usage: "size of a new data node's log", DefaultText: "4G, or a tenth of the free space"},
		&cli.GenericFlag{Name: "spindle-size", Value: new(sizeFlag), Usage: "size of each spindle of a new data node", DefaultText: "64G, or its share of seven tenths of the free space"},
	}
}

// agentFlags are an agent's tunables.
func agentFlags() []cli.Flag {
	return []cli.Flag{
		&cli.GenericFlag{Name: "buffer-size", Value: new(sizeFlag), Usage: "bound on what is acknowledged and not destaged", DefaultText: "1G, or half the log"},
		&cli.GenericFlag{Name: "ram-cache", Value: new(sizeFlag), Usage: "memory for chunks ready to be read; 0 for none", DefaultText: "an eighth of the memory, at most 8G"},
		&cli.DurationFlag{Name: "destage-interval", Usage: "longest time, about, until a write is destaged", DefaultText: "2s"},
		&cli.Int64Flag{Name: "checkpoint-updates", Usage: "map updates after which a checkpoint is made", DefaultText: "1048576"},
		&cli.DurationFlag{Name: "scrub-interval", Usage: "time in which the checksums of all fragments are tested once; 0 for never", DefaultText: "336h"},
		&cli.GenericFlag{Name: "rebuild-rate", Value: new(sizeFlag), Usage: "bytes per second that a rebuild reads from, or writes to, one spindle, by all hosts together; 0 for no bound", DefaultText: "100M"},
		&cli.DurationFlag{Name: "idle-time", Usage: "quiet time after which a disk is checkpointed and scanned", DefaultText: "10s"},
	}
}

func verboseFlags() []cli.Flag {
	return []cli.Flag{&cli.BoolFlag{Name: "verbose", Aliases: []string{"v"}, Usage: "log more"}}
}

// newLogger logs to standard error as verboseFlags say, and remembers for the API.
func newLogger(c *cli.Context) *slog.Logger {
	level := slog.LevelInfo
	if c.Bool("verbose") {
		level = slog.LevelDebug
	}
	return slog.New(events.NewHandler(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level})))
}

// siteOptions reads siteFlags.
func siteOptions(c *cli.Context) (standalone.Options, error) {
	o := standalone.Options{Dir: c.String("data"), Logger: newLogger(c)}
	var err error
	if o.Node, err = nodeOptions(c); err != nil {
		return o, err
	}
	if o.Host, err = agentOptions(c); err != nil {
		return o, err
	}
	if info, err := os.Stat(o.Dir); err == nil && !info.IsDir() {
		return o, fmt.Errorf("%s is not a directory: choose another with --data", o.Dir)
	}
	o.Keys, o.Geometry, err = poolOptions(c)
	return o, err
}

// nodeOptions reads nodeFlags.
func nodeOptions(c *cli.Context) (shelf.Options, error) {
	o := shelf.Options{Spindles: c.Int("spindles"), LogBytes: size(c, "log-size"), SpindleBytes: size(c, "spindle-size")}
	return o, atLeast(c,
		least{"spindles", int64(o.Spindles), 1, "1"},
		least{"log-size", o.LogBytes, shelf.LogBytesMin, formatSize(shelf.LogBytesMin)},
		least{"spindle-size", o.SpindleBytes, shelf.SpindleBytesMin, formatSize(shelf.SpindleBytesMin)},
	)
}

// agentOptions reads agentFlags.
func agentOptions(c *cli.Context) (host.Options, error) {
	o := host.Options{
		BufferBytesMax: size(c, "buffer-size"), DestageInterval: c.Duration("destage-interval"),
		CheckpointUpdates: c.Int64("checkpoint-updates"), IdleTime: c.Duration("idle-time"),
		RAMCacheBytes: size(c, "ram-cache"), ScrubInterval: c.Duration("scrub-interval"),
		RebuildRate: size(c, "rebuild-rate"),
	}
	if c.IsSet("rebuild-rate") && o.RebuildRate == 0 {
		o.RebuildRate = -1
	}
	if c.IsSet("scrub-interval") && o.ScrubInterval == 0 {
		o.ScrubInterval = -1
	} else if c.IsSet("scrub-interval") && o.ScrubInterval < scrubIntervalMin {
		return o, fmt.Errorf("--scrub-interval is 0, or at least %v", scrubIntervalMin)
	}
	if err := atLeast(c,
		least{"buffer-size", o.BufferBytesMax, bufferBytesMin, formatSize(bufferBytesMin)},
		least{"destage-interval", int64(o.DestageInterval), int64(intervalMin), intervalMin.String()},
		least{"checkpoint-updates", o.CheckpointUpdates, 1, "1"},
		least{"idle-time", int64(o.IdleTime), int64(intervalMin), intervalMin.String()},
	); err != nil {
		return o, err
	}
	if c.IsSet("ram-cache") && o.RAMCacheBytes == 0 {
		o.RAMCacheBytes = -1
	} else if c.IsSet("ram-cache") && o.RAMCacheBytes < host.RAMCacheBytesMin {
		return o, fmt.Errorf("--ram-cache is 0, or at least %s", formatSize(host.RAMCacheBytesMin))
	}
	return o, nil
}

// poolOptions reads poolFlags.
func poolOptions(c *cli.Context) (keys host.RootSource, g stripe.Geometry, err error) {
	keys.File = c.String("root-key")
	if text := c.String("ec"); text != "" {
		if g, err = stripe.ParseGeometry(text); err != nil {
			return keys, g, err
		}
	}
	if path := c.String("passphrase-file"); path != "" {
		keys.Passphrase, err = readPassphrase(path)
	}
	return keys, g, err
}

// least is a flag's value and the least that it may be, with its text.
type least struct {
	name         string
	value, least int64
	text         string
}

// atLeast returns an error for a flag that was given and is too small.
func atLeast(c *cli.Context, flags ...least) error {
	for _, f := range flags {
		if c.IsSet(f.name) && f.value < f.least {
			return fmt.Errorf("--%s is at least %s", f.name, f.text)
		}
	}
	return nil
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
