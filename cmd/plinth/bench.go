package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"plinth/bench"
	"plinth/internal/chunk"
	"plinth/internal/host"
	"plinth/internal/standalone"
	"plinth/internal/stripe"
	"plinth/nbd/client"
	"plinth/nbd/vsock"
)

const (
	nbdPort = "10809"
	// benchBytesDefault is the size of an in-process disk.
	benchBytesDefault = 1 << 30
	benchDisk         = "bench"
)

func benchCommand() *cli.Command {
	var names []string
	for _, w := range bench.Workloads {
		names = append(names, string(w))
	}
	return &cli.Command{
		Name: "bench", Usage: "measure an NBD export, or plinth itself in a temporary pool",
		ArgsUsage: "[URI]",
		Description: "URI is nbd+unix:///NAME?socket=PATH, nbd://HOST[:PORT]/NAME or nbd+vsock://CID[:PORT]/NAME.\n" +
			"Workloads that write destroy what is there. Flags are named as fio's. Sizes are read like 4K, 10G.",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "in-process", Usage: "measure a disk of a temporary pool, without NBD, in place of a URI"},
			&cli.StringFlag{Name: "dir", Usage: "where the temporary pool lies while it is measured", DefaultText: "the system's directory for temporary files"},
			&cli.StringFlag{Name: "ec", Usage: "data+parity fragments of the temporary pool", DefaultText: "8+2"},
			&cli.StringFlag{Name: "cipher", Value: chunk.AES256GCM.String(), Usage: "of the temporary disk: aes-256-gcm or aes-256-xts"},
			&cli.StringFlag{Name: "rw", Aliases: []string{"readwrite"}, Value: string(bench.RandRead), Usage: strings.Join(names, ", ")},
			&cli.GenericFlag{Name: "bs", Value: sizeOf(4096), Usage: "bytes of an operation"},
			&cli.IntFlag{Name: "iodepth", Value: 1, Usage: "operations that a job has in flight"},
			&cli.IntFlag{Name: "numjobs", Value: 1, Usage: "jobs; each has a connection and a share of --size"},
			&cli.DurationFlag{Name: "runtime", Value: 10 * time.Second, Usage: "how long; 0 means once over --size"},
			&cli.GenericFlag{Name: "size", Value: new(sizeFlag), Usage: "bytes of the disk that are used", DefaultText: "all; 1G in process"},
			&cli.IntFlag{Name: "rwmixread", Value: 50, Usage: "percentage of reads in rw and randrw, 1 to 99"},
			&cli.IntFlag{Name: "compressible", Usage: "percentage of each 4 KiB written that compresses away"},
			&cli.IntFlag{Name: "dedupe", Usage: "percentage of 4 KiB pieces written that are duplicates"},
			&cli.BoolFlag{Name: "fua", Usage: "have each write on stable media before its answer"},
			&cli.IntFlag{Name: "fsync", Usage: "flush after so many writes of a job; 0 means never"},
			&cli.BoolFlag{Name: "fill", Usage: "write all of --size before; reads of what was never written tell nothing"},
			&cli.BoolFlag{Name: "verify", Usage: "compare what is read with what was written, at the end all of it"},
			&cli.Uint64Flag{Name: "seed", Usage: "of offsets and content; 0 draws one"},
			&cli.BoolFlag{Name: "json", Usage: "print JSON"},
		},
		Subcommands: []*cli.Command{serveNullCommand(), compareCommand()},
		Action:      runBench,
	}
}

func sizeOf(n int64) *sizeFlag { return (*sizeFlag)(&n) }

func runBench(c *cli.Context) error {
	cfg := bench.Config{
		Workload: bench.Workload(c.String("rw")), BlockBytes: int(size(c, "bs")), Depth: c.Int("iodepth"), Jobs: c.Int("numjobs"),
		Runtime: c.Duration("runtime"), Once: c.Duration("runtime") == 0, Bytes: size(c, "size"), ReadPercent: c.Int("rwmixread"),
		Compressible: c.Int("compressible"), Dedupe: c.Int("dedupe"), FlushEvery: c.Int("fsync"), FUA: c.Bool("fua"),
		Fill: c.Bool("fill"), Verify: c.Bool("verify"), Seed: c.Uint64("seed"),
	}
	var res *bench.Result
	var err error
	whose := "this process, the client; the server's is not in it"
	if c.Bool("in-process") {
		if _, err := arguments(c); err != nil {
			return err
		}
		whose = "this process, which does everything"
		res, err = benchInProcess(c, cfg)
	} else {
		args, aerr := arguments(c, "URI")
		if aerr != nil {
			return fmt.Errorf("%w, or --in-process", aerr)
		}
		res, err = benchURI(c.Context, args[0], cfg)
	}
	if err != nil {
		return err
	}
	if c.Bool("json") {
		return printJSON(res)
	}
	return res.WriteText(os.Stdout, whose)
}

// benchURI measures an export by one connection for each job.
func benchURI(ctx context.Context, uri string, cfg bench.Config) (*bench.Result, error) {
	network, addr, name, err := parseNBD(uri)
	if err != nil {
		return nil, err
	}
	var targets []bench.Target
	for range max(cfg.Jobs, 1) {
		conn, err := client.Dial(ctx, network, addr, name, client.Options{InFlightMax: cfg.Depth})
		if err != nil {
			return nil, err
		}
		defer conn.Close()
		targets = append(targets, conn)
	}
	return bench.Run(ctx, cfg, targets...)
}

// parseNBD reads an NBD URI as the NetworkBlockDevice project's uri.md has it,
// without TLS.
func parseNBD(uri string) (network, addr, export string, err error) {
	u, err := url.Parse(uri)
	if err != nil {
		return "", "", "", err
	}
	export = strings.TrimPrefix(u.Path, "/")
	port := u.Port()
	if port == "" {
		port = nbdPort
	}
	switch {
	case u.Scheme == "nbd+unix" && u.Host == "" && u.Query().Get("socket") != "":
		return "unix", u.Query().Get("socket"), export, nil
	case u.Scheme == "nbd" && u.Hostname() != "":
		return "tcp", net.JoinHostPort(u.Hostname(), port), export, nil
	case u.Scheme == "nbd+vsock" && vsock.Check(u.Hostname()+":"+port) == nil:
		return vsock.Network, u.Hostname() + ":" + port, export, nil
	}
	return "", "", "", fmt.Errorf("%q: write nbd+unix:///NAME?socket=PATH, nbd://HOST[:PORT]/NAME or nbd+vsock://CID[:PORT]/NAME", uri)
}

// benchInProcess measures a disk of a pool that it makes and removes.
func benchInProcess(c *cli.Context, cfg bench.Config) (res *bench.Result, err error) {
	if cfg.Bytes == 0 {
		cfg.Bytes = benchBytesDefault
	}
	dir, err := os.MkdirTemp(c.String("dir"), "plinth-bench-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	opts := standalone.Options{
		Dir: dir, Logger: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
	}
	if text := c.String("ec"); text != "" {
		if opts.Geometry, err = stripe.ParseGeometry(text); err != nil {
			return nil, err
		}
	}
	site, err := standalone.Open(c.Context, opts)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, site.Close()) }()
	if _, err := site.Host.CreateDisk(c.Context, host.DiskSpec{Name: benchDisk, Bytes: cfg.Bytes, Cipher: c.String("cipher")}); err != nil {
		return nil, err
	}
	export, release, err := host.Exports{Host: site.Host}.Open(c.Context, benchDisk)
	if err != nil {
		return nil, err
	}
	defer release()
	cfg.Settle = site.Host.Quiesce
	return bench.Run(c.Context, cfg, export.Device)
}
