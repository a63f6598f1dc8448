package remote

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"plinth/internal/host"
	"plinth/nbd"
)

const (
	busyTime   = 5 * time.Minute // bounds a load, on the busiest machine
	blockBytes = 4096
)

// busy is a load on a disk by way of several agents.
type busy struct {
	writes  atomic.Int64
	over    atomic.Bool
	writers sync.WaitGroup
}

// load has writers count, each in a block of its own, and compare what they read
// after every write by way of any agent.
func load(t *testing.T, devices ...nbd.Device) *busy {
	t.Helper()
	b := &busy{}
	ctx, cancel := context.WithTimeout(t.Context(), busyTime)
	t.Cleanup(cancel)
	for w := range 2 * len(devices) {
		b.writers.Go(func() {
			off := int64(w) * blockBytes
			p, got := make([]byte, blockBytes), make([]byte, blockBytes)
			for n := uint64(1); !b.over.Load() && !t.Failed(); n++ {
				for i := 0; i < blockBytes; i += 8 {
					binary.LittleEndian.PutUint64(p[i:], n+uint64(w)<<32)
				}
				d := devices[w%len(devices)]
				if n%8 == 0 {
					d = devices[rand.IntN(len(devices))]
				}
				err := d.WriteAt(ctx, p, off, n%16 == 0)
				if err == nil {
					err = devices[rand.IntN(len(devices))].ReadAt(ctx, got, off)
				}
				if err != nil {
					t.Errorf("writer %d, write %d: %v", w, n, err)
					return
				}
				if !bytes.Equal(got, p) {
					t.Errorf("writer %d wrote %d and reads %d", w, n, uint32(binary.LittleEndian.Uint64(got)))
				}
				b.writes.Add(1)
				time.Sleep(rand.N(time.Millisecond))
			}
		})
	}
	return b
}

// await returns when some more was written.
func (b *busy) await(t *testing.T, more int64) {
	t.Helper()
	deadline := time.Now().Add(busyTime)
	for until := b.writes.Load() + more; b.writes.Load() < until; time.Sleep(time.Millisecond) {
		if t.Failed() || time.Now().After(deadline) {
			t.Fatal("the load does not go on")
		}
	}
}

func (b *busy) end() {
	b.over.Store(true)
	b.writers.Wait()
}

// owner returns which agent has a disk.
func owner(t *testing.T, all []*Agent, disk string) int {
	t.Helper()
	for deadline := time.Now().Add(busyTime); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		for i, a := range all {
			if d, err := a.Host().Disk(disk); err == nil && d.State == "ok" {
				return i
			}
		}
	}
	t.Fatal("no host has the disk")
	return 0
}

// newPair opens two agents, a disk and its export at each.
func newPair(t *testing.T) (f *far, all []*Agent, links []*link, devices []nbd.Device) {
	t.Helper()
	f = newFar(t)
	for _, name := range []string{"a", "b"} {
		a, l := f.open(t, name)
		all, links = append(all, a), append(links, l)
	}
	_, err := all[0].Host().CreateDisk(t.Context(), host.DiskSpec{Name: "d", Bytes: 1 << 20})
	ok(t, err)
	for deadline := time.Now().Add(busyTime); ; time.Sleep(time.Millisecond) {
		if _, err := all[1].Host().Disk("d"); err == nil {
			break
		} else if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	for _, a := range all {
		devices = append(devices, openExport(t, a, "d"))
	}
	return f, all, links, devices
}

// TestMoves moves a disk between two hosts under clients at both: they see pauses.
func TestMoves(t *testing.T) {
	_, all, _, devices := newPair(t)
	b := load(t, devices...)
	for range 12 {
		b.await(t, 1+rand.Int64N(50))
		i := owner(t, all, "d")
		err := all[rand.IntN(2)].Host().MoveDisk(t.Context(), "d", all[1-i].opts.Name)
		if err != nil && !errors.Is(err, host.ErrBusy) { // a client has asked for it meanwhile
			t.Fatal(err)
		}
	}
	b.await(t, 50)
	b.end()
}

// TestWriterGetsTheDisk has a client write at a host that has not the disk: the disk
// comes. A second client that writes where it was does not take it back.
func TestWriterGetsTheDisk(t *testing.T) {
	_, all, _, devices := newPair(t)
	ok(t, devices[0].WriteAt(t.Context(), []byte("here"), 0, false))
	got := make([]byte, 4)
	ok(t, devices[1].ReadAt(t.Context(), got, 0))
	if string(got) != "here" || owner(t, all, "d") != 0 {
		t.Fatalf("read %q", got)
	}
	ok(t, devices[1].WriteAt(t.Context(), []byte("there"), 0, false))
	for deadline := time.Now().Add(busyTime); ; time.Sleep(5 * time.Millisecond) {
		if d, err := all[1].Host().Disk("d"); err == nil && d.State == "ok" {
			break
		} else if time.Now().After(deadline) {
			t.Fatal("the disk does not come to who writes")
		}
	}
	got = make([]byte, 5)
	ok(t, devices[0].ReadAt(t.Context(), got, 0))
	if string(got) != "there" {
		t.Errorf("read %q", got)
	}
}

// TestTakeovers cuts the host that has the disk off from the data node, for longer
// than its lease: the other one claims the disk, because a client asks, and clients of
// both go on when the network is back.
func TestTakeovers(t *testing.T) {
	_, all, links, devices := newPair(t)
	b := load(t, devices...)
	for range 2 {
		b.await(t, 50)
		i := owner(t, all, "d")
		links[i].setCut(true)
		for deadline := time.Now().Add(busyTime); ; time.Sleep(5 * time.Millisecond) {
			if d, err := all[1-i].Host().Disk("d"); err == nil && d.State == "ok" {
				break
			} else if time.Now().After(deadline) {
				t.Fatal("the disk is not taken over")
			}
		}
		links[i].setCut(false)
		b.await(t, 50)
	}
	b.end()
}

// TestRemovedUnderClients removes a disk whose client is at another host.
func TestRemovedUnderClients(t *testing.T) {
	_, all, _, devices := newPair(t)
	ok(t, devices[1].WriteAt(t.Context(), []byte("abc"), 0, false))
	ok(t, all[0].Host().MoveDisk(t.Context(), "d", "b"))
	if err := all[1].Host().RemoveDisk(t.Context(), "d"); !errors.Is(err, host.ErrInUse) {
		t.Fatalf("a disk that has clients is removed: %v", err)
	}
}

func TestPeerAddress(t *testing.T) {
	for _, c := range []struct {
		listener string
		nodes    []string
		want     string
	}{
		{"10.0.0.1:7", nil, "10.0.0.1:7"},
		{"[::1]:7", []string{"127.0.0.1:1"}, "[::1]:7"},
		{"[::]:7", []string{"unix:/s", "127.0.0.1:1"}, "127.0.0.1:7"},
		{"[::]:7", []string{"unix:/s"}, "127.0.0.1:7"},
	} {
		if got := reachedAt(c.listener, c.nodes); got != c.want {
			t.Errorf("a listener on %s, data node at %v: others are told %s, want %s", c.listener, c.nodes, got, c.want)
		}
	}
}

func TestPeerNames(t *testing.T) {
	for _, suffix := range []string{"", "@s", "@s,since=r"} {
		if d, s, err := parsePeerName(peerName(0x1234, suffix)); err != nil || d != 0x1234 || s != suffix {
			t.Errorf("%q: disk %d, suffix %q, %v", suffix, d, s, err)
		}
	}
	for _, name := range []string{"", "vm1", "-1", "@s", "8000000000000000", "1 "} {
		if _, _, err := parsePeerName(name); !errors.Is(err, nbd.ErrUnknownExport) {
			t.Errorf("%q: %v", name, err)
		}
	}
}
