package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"

	"plinth/internal/api"
	"plinth/internal/gate"
	"plinth/internal/host"
)

// limitsFlags are the limits of a disk.
func limitsFlags() []cli.Flag {
	return []cli.Flag{
		&cli.Int64Flag{Name: "iops", Usage: "reads and writes per second at most; 0, as with all of these: no limit"},
		&cli.Int64Flag{Name: "read-iops", Usage: "reads per second"},
		&cli.Int64Flag{Name: "write-iops", Usage: "writes per second"},
		&cli.GenericFlag{Name: "bps", Value: new(sizeFlag), Usage: "bytes read and written per second"},
		&cli.GenericFlag{Name: "read-bps", Value: new(sizeFlag), Usage: "bytes read per second"},
		&cli.GenericFlag{Name: "write-bps", Value: new(sizeFlag), Usage: "bytes written per second"},
		&cli.DurationFlag{Name: "burst", Usage: "how long a disk may save up what it does not use; 0: 100ms"},
	}
}

func setDisk(c *cli.Context) error {
	args, err := arguments(c, "NAME")
	if err != nil {
		return err
	}
	var change host.LimitsChange
	for name, to := range map[string]**int64{"iops": &change.IOPS, "read-iops": &change.ReadIOPS, "write-iops": &change.WriteIOPS} {
		if c.IsSet(name) {
			n := c.Int64(name)
			*to = &n
		}
	}
	for name, to := range map[string]**int64{"bps": &change.BPS, "read-bps": &change.ReadBPS, "write-bps": &change.WriteBPS} {
		if c.IsSet(name) {
			n := size(c, name)
			*to = &n
		}
	}
	if c.IsSet("burst") {
		s := c.Duration("burst").Seconds()
		change.BurstSeconds = &s
	}
	if change == (host.LimitsChange{}) {
		return errors.New("nothing to set; see plinth disk set --help")
	}
	return call(c, func(client *api.Client) error {
		info, err := client.ChangeLimits(c.Context, args[0], change)
		if err != nil {
			return err
		}
		return printDisk(c, info)
	})
}

// formatLimits says them in a line.
func formatLimits(l *gate.Limits) string {
	var out []string
	for _, v := range []struct {
		n     int64
		bytes bool
		what  string
	}{
		{l.IOPS, false, "IOPS"}, {l.ReadIOPS, false, "read IOPS"}, {l.WriteIOPS, false, "write IOPS"},
		{l.BPS, true, "B/s"}, {l.ReadBPS, true, "B/s read"}, {l.WriteBPS, true, "B/s written"},
	} {
		switch {
		case v.n == 0:
		case v.bytes:
			out = append(out, formatSize(v.n)+v.what)
		default:
			out = append(out, fmt.Sprint(v.n, " ", v.what))
		}
	}
	if len(out) == 0 {
		return "none"
	}
	if l.BurstSeconds > 0 {
		out = append(out, fmt.Sprintf("bursts of %g s", l.BurstSeconds))
	}
	return strings.Join(out, ", ")
}
