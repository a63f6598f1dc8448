package interop

import (
	"bytes"
	"encoding/binary"
	"flag"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"plinth/nbd/client"
)

var (
	fsxOps  = flag.Int("fsx-ops", 20_000, "operations of TestFsx")
	fsxSeed = flag.Uint64("fsx-seed", 0, "its seed; 0 draws one")
)

const (
	fsxBytes     = 24 << 20
	fsxLenMax    = 192 << 10
	fsxKillEach  = 10_000 // operations, about
	fsxSnapEach  = 4_000
	fsxSnapsMost = 4
)

// fsxDisk is a disk and what it must hold.
type fsxDisk struct {
	name  string
	chunk int64
	want  []byte
	conn  *client.Client
	snaps []fsxSnapshot
	made  int
}

type fsxSnapshot struct {
	name string
	want []byte
}

// fsx does operations of any length at any byte, one at a time, as the program fsx
// does with files.
type fsx struct {
	*testing.T
	site  *site
	rng   *rand.Rand
	disks []*fsxDisk
	args  []string
}

// TestFsx compares two disks with memory under random operations at any byte, while
// snapshots come and go and the server is killed between operations.
func TestFsx(t *testing.T) {
	t.Parallel()
	seed := *fsxSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("seed %d", seed)
	f := &fsx{T: t, rng: rand.New(rand.NewPCG(seed, 1)), args: []string{
		"--nbd", "127.0.0.1:0", "--spindles", "4", "--spindle-size", "512M", "--log-size", "32M", "--destage-interval", "200ms", "--idle-time", "1s",
		"--ram-cache", "16M",
	}}
	dir := tempDir(t)
	f.site = start(t, dir, f.args...)
	for _, d := range []*fsxDisk{{name: "a", chunk: 4 << 10}, {name: "b", chunk: 64 << 10}} {
		d.want = make([]byte, fsxBytes)
		args := []string{"disk", "create", d.name, fmt.Sprint(fsxBytes), "--chunk", fmt.Sprint(d.chunk)}
		if d.name == "b" {
			args = append(args, "--cipher", "aes-256-xts")
		}
		f.site.command(t, args...)
		f.disks = append(f.disks, d)
	}
	f.connect()
	began, kills := time.Now(), 0
	for n := range *fsxOps {
		d := f.disks[f.rng.IntN(2)]
		if err := f.step(d); err != nil {
			t.Fatalf("operation %d, disk %s: %v", n, d.name, err)
		}
		switch {
		case f.rng.IntN(fsxSnapEach) == 0:
			f.snapshot(d)
		case f.rng.IntN(fsxKillEach) == 0 || n == *fsxOps/2:
			kills++
			f.site.kill()
			f.site = start(t, dir, f.args...)
			f.connect()
			f.compareAll()
		}
		if t.Failed() {
			t.Fatalf("operation %d", n)
		}
	}
	f.compareAll()
	for _, d := range f.disks {
		_ = d.conn.Close()
	}
	f.site.command(t, "verify")
	f.site.stop(t)
	t.Logf("%d operations, %d kills, %d snapshots in %.0f s", *fsxOps, kills, f.disks[0].made+f.disks[1].made, time.Since(began).Seconds())
}

func (f *fsx) dial(export string) *client.Client {
	f.Helper()
	c, err := client.Dial(f.Context(), "unix", f.site.socket, export, client.Options{})
	if err != nil {
		f.Fatal(err)
	}
	return c
}

func (f *fsx) connect() {
	f.Helper()
	for _, d := range f.disks {
		if d.conn != nil {
			_ = d.conn.Close()
		}
		d.conn = f.dial(d.name)
	}
}

// step does one operation.
func (f *fsx) step(d *fsxDisk) error {
	off := f.rng.Int64N(fsxBytes)
	n := 1 + f.rng.Int64N(min(fsxLenMax>>f.rng.IntN(8), fsxBytes-off))
	switch f.rng.IntN(4) { // alignments that clients have
	case 0:
		off, n = off&^4095, (n+4095)&^4095
	case 1:
		off, n = off&^511, (n+511)&^511
	}
	n = min(n, fsxBytes-off)
	at := d.want[off : off+n]
	ctx, fua := f.Context(), f.rng.IntN(32) == 0
	switch k := f.rng.IntN(100); {
	case k < 40:
		return f.compare(d.conn, at, off)
	case k < 80:
		f.fill(at)
		return d.conn.WriteAt(ctx, at, off, fua)
	case k < 88:
		clear(at)
		return d.conn.Zero(ctx, off, n, f.rng.IntN(2) == 0, fua)
	case k < 97: // whole chunks are zeros, and those that are not whole stay
		first, end := (off+d.chunk-1)/d.chunk*d.chunk, off+n
		if end < fsxBytes {
			end = end / d.chunk * d.chunk
		}
		if first < end {
			clear(d.want[first:end])
		}
		return d.conn.Trim(ctx, off, n, fua)
	}
	return d.conn.Flush(ctx)
}

// fill makes content: noise, what compresses, zeros, or what another place holds.
func (f *fsx) fill(p []byte) {
	switch f.rng.IntN(6) {
	case 0:
		clear(p)
	case 1:
		from := f.disks[f.rng.IntN(2)].want
		copy(p, from[f.rng.IntN(fsxBytes-len(p)+1)&^4095:])
	case 2:
		for i := range p {
			p[i] = byte(i >> 8)
		}
	default:
		var word [8]byte
		for i := 0; i < len(p); i += 8 {
			binary.LittleEndian.PutUint64(word[:], f.rng.Uint64())
			copy(p[i:], word[:])
		}
	}
}

func (f *fsx) compare(c *client.Client, want []byte, off int64) error {
	got := make([]byte, len(want))
	if err := c.ReadAt(f.Context(), got, off); err != nil {
		return err
	}
	for i := range got {
		if got[i] != want[i] {
			return fmt.Errorf("byte %d is %#x, not %#x; read %d at %d", off+int64(i), got[i], want[i], len(got), off)
		}
	}
	return nil
}

func (f *fsx) compareAll() {
	f.Helper()
	const piece = 1 << 20
	for _, d := range f.disks {
		for off := int64(0); off < fsxBytes; off += piece {
			if err := f.compare(d.conn, d.want[off:off+piece], off); err != nil {
				f.Fatalf("disk %s: %v", d.name, err)
			}
		}
	}
}

// snapshot makes one, or reads the oldest and removes it.
func (f *fsx) snapshot(d *fsxDisk) {
	f.Helper()
	if len(d.snaps) < fsxSnapsMost {
		d.made++
		name := fmt.Sprint("s", d.made)
		f.site.command(f.T, "snapshot", "create", d.name, name)
		d.snaps = append(d.snaps, fsxSnapshot{name, bytes.Clone(d.want)})
		return
	}
	s := d.snaps[0]
	d.snaps = d.snaps[1:]
	c := f.dial(d.name + "@" + s.name)
	if err := f.compare(c, s.want, 0); err != nil {
		f.Fatalf("snapshot %s of disk %s: %v", s.name, d.name, err)
	}
	_ = c.Close()
	f.site.command(f.T, "snapshot", "rm", "--wait", d.name+"@"+s.name) // the server may not have seen yet that its client has left
}
