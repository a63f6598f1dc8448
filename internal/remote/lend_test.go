package remote

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"plinth/internal/gate"
	"plinth/internal/host"
	"plinth/internal/id"
	"plinth/internal/peerflash"
	"plinth/nbd"
)

const (
	lentDiskBytes = 2 << 20
	lentChunks    = lentDiskBytes / blockBytes
)

// lends are options of a host with a flash cache, which waits long for that of others, as
// the machine is busy.
func (f *far) lends(t testing.TB, name string, l *link) Options {
	o := f.options(t, name, l)
	o.Host.FlashPath, o.Host.FlashBytes = filepath.Join(f.dir, name+".flash"), 40<<20
	o.Host.FlashAnswer = busyTime
	return o
}

func openAgent(t testing.TB, o Options) *Agent {
	t.Helper()
	a, err := Open(t.Context(), o)
	ok(t, err)
	t.Cleanup(func() { ok(t, a.Close()) })
	if o.Host.FlashPath != "" {
		until(t, "the flash cache takes chunks", func() bool { return !flashOf(t, a).Loading })
	}
	return a
}

func flashOf(t testing.TB, a *Agent) *host.FlashStatus {
	t.Helper()
	st, err := a.Host().Status(t.Context())
	ok(t, err)
	return st.Flash
}

func lendingOf(t testing.TB, a *Agent) host.LendingStatus {
	t.Helper()
	st, err := a.Host().Status(t.Context())
	ok(t, err)
	if st.Lending == nil {
		return host.LendingStatus{}
	}
	return *st.Lending
}

// reads returns where an agent has read the disk's chunks.
func reads(t testing.TB, a *Agent) (stored, flash, peer int64) {
	t.Helper()
	d, err := a.Host().Disk("d")
	ok(t, err)
	return d.Stats.ChunkReads, d.Stats.FlashReads, d.Stats.PeerReads
}

// warm makes a disk at b, which has all of it in its flash then, and moves it to a.
func warm(t testing.TB, a, b *Agent, size int) (content []byte, d nbd.Device) {
	t.Helper()
	content = make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{7}).Read(content)
	_, err := b.Host().CreateDisk(t.Context(), host.DiskSpec{Name: "d", Bytes: int64(size)})
	ok(t, err)
	at := openExport(t, b, "d")
	ok(t, at.WriteAt(t.Context(), content, 0, false))
	ok(t, b.Host().Quiesce(t.Context()))
	until(t, "b has all in its flash", func() bool { // which may drop some
		before, _, _ := reads(t, b)
		ok(t, at.ReadAt(t.Context(), make([]byte, size), 0))
		now, _, _ := reads(t, b)
		return now == before || b.opts.Host.FlashPath == ""
	})
	until(t, "the disk is known", func() bool { _, err := a.Host().Disk("d"); return err == nil })
	ok(t, b.Host().MoveDisk(t.Context(), "d", a.opts.Name))
	return content, openExport(t, a, "d")
}

// readBlock reads one block and compares it.
func readBlock(t testing.TB, d nbd.Device, content []byte, block int) {
	t.Helper()
	got := make([]byte, blockBytes)
	ok(t, d.ReadAt(t.Context(), got, int64(block)*blockBytes))
	if !bytes.Equal(got, content[block*blockBytes:][:blockBytes]) {
		t.Fatalf("block %d is wrong", block)
	}
}

// A disk moves: the new host has its chunks from the flash of the host before, and then
// from its own. In another session it still knows whom to ask.
func TestFlashOfFormerHost(t *testing.T) {
	f := newFar(t)
	var b *Agent
	var lent atomic.Pointer[id.Fingerprint]
	opts := f.lends(t, "b", &link{})
	opts.lend = func(fp id.Fingerprint, dst []byte) ([]byte, bool) {
		lent.Store(&fp)
		return b.Host().Lend(fp, dst)
	}
	b = openAgent(t, opts)
	l := &link{}
	a := openAgent(t, f.lends(t, "a", l))
	content, d := warm(t, a, b, lentDiskBytes)
	first := 0
	until(t, "a chunk comes from b", func() bool {
		if first == lentChunks/4 {
			t.Fatal("b is not asked")
		}
		readBlock(t, d, content, first)
		first++
		_, _, peer := reads(t, a)
		return peer > 0
	})
	stored, _, peer := reads(t, a)
	got := make([]byte, lentDiskBytes-lentDiskBytes/2)
	ok(t, d.ReadAt(t.Context(), got, lentDiskBytes/2)) // in several requests
	if !bytes.Equal(got, content[lentDiskBytes/2:]) {
		t.Error("what came from b is wrong")
	}
	for block := first; block < first+32; block++ {
		readBlock(t, d, content, block)
	}
	nowStored, flash, nowPeer := reads(t, a)
	if want := int64(lentChunks/2 + 32); nowStored != stored || nowPeer != peer+want {
		t.Errorf("%d chunks came from the spindles and %d from b, want 0 and %d", nowStored-stored, nowPeer-peer, want)
	}
	ok(t, d.ReadAt(t.Context(), got, lentDiskBytes/2))
	if _, nowFlash, again := reads(t, a); again != nowPeer || nowFlash != flash+lentChunks/2 {
		t.Errorf("what came from b once: %d chunks from flash and %d from b again", nowFlash-flash, again-nowPeer)
	}
	has, gives := lendingOf(t, a), lendingOf(t, b)
	if has.Here != nowPeer || has.Asked != has.Here || has.Bytes < has.Here*blockBytes || has.Bad+has.Failures != 0 ||
		gives.LentChunks != has.Here || gives.LentBytes != has.Bytes || gives.Asked+gives.Refused != 0 {
		t.Errorf("a has %+v, b has given %+v", has, gives)
	}

	// Where CPU time is short, b does not lend, and does not wait.
	ok(t, b.Host().SetCPU(gate.CPU{Cores: 0.1}))
	until(t, "b refuses to lend", func() bool {
		for range 1000 {
			b.Host().Lend(*lent.Load(), nil)
		}
		return lendingOf(t, b).Refused > 0
	})
	ok(t, b.Host().SetCPU(gate.CPU{}))

	first += 32
	s := a.now.Load()
	l.setCut(true)
	until(t, "the session has ended", s.broken)
	l.setCut(false)
	until(t, "the next one has chunks from b", func() bool {
		if first == lentChunks/2 {
			t.Fatal("the next session does not ask b")
		}
		readBlock(t, d, content, first)
		first++
		return a.now.Load() != s && lendingOf(t, a).Here > 0
	})
}

// What was hot at the host before is read from its flash as the disk comes, before any
// client asks.
func TestWarmListFromFormerHost(t *testing.T) {
	const size = 8 << 20
	f := newFar(t)
	ob, oa := f.lends(t, "b", &link{}), f.lends(t, "a", &link{})
	ob.Host.RAMCacheBytes, oa.Host.RAMCacheBytes = 64<<20, 64<<20
	b, a := openAgent(t, ob), openAgent(t, oa)
	_, err := b.Host().CreateDisk(t.Context(), host.DiskSpec{Name: "d", Bytes: size})
	ok(t, err)
	at := openExport(t, b, "d")
	p := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{8}).Read(p)
	for off := int64(0); off < size; off += 1 << 20 { // for flash not to drop any
		ok(t, at.WriteAt(t.Context(), p[off:off+1<<20], off, false))
		ok(t, b.Host().Quiesce(t.Context()))
		ok(t, at.ReadAt(t.Context(), make([]byte, 1<<20), off))
	}
	ok(t, at.WriteAt(t.Context(), p[:blockBytes], 0, false)) // so that there is a checkpoint, with the list
	ok(t, b.Host().Quiesce(t.Context()))
	until(t, "the disk is known", func() bool { _, err := a.Host().Disk("d"); return err == nil })
	ok(t, b.Host().MoveDisk(t.Context(), "d", "a"))
	until(t, "what was hot comes from b", func() bool {
		_, _, peer := reads(t, a)
		return peer >= size/blockBytes/2
	})
}

// A host before that lies, hangs, or dies midway costs time, and no more.
func TestFormerHostFails(t *testing.T) {
	const chunks = 256
	for what, test := range map[string]struct {
		answer time.Duration
		lend   func(b *Agent, n *opaque, calls int64, fp id.Fingerprint, dst []byte) ([]byte, bool)
		failed func(host.LendingStatus) bool
	}{
		"lies": {busyTime, func(b *Agent, _ *opaque, calls int64, fp id.Fingerprint, dst []byte) ([]byte, bool) {
			before := len(dst)
			dst, ok := b.Host().Lend(fp, dst)
			if ok && calls > 20 {
				dst[before+int(calls)%(len(dst)-before)] ^= 0x10
			}
			return dst, ok
		}, func(s host.LendingStatus) bool { return s.Bad > 0 && s.Failures > 0 }},
		"hangs": {20 * time.Millisecond, func(b *Agent, n *opaque, calls int64, fp id.Fingerprint, dst []byte) ([]byte, bool) {
			if calls == 20 {
				n.setMute(true)
			}
			return b.Host().Lend(fp, dst)
		}, func(s host.LendingStatus) bool { return s.Failures > 0 }},
		"dies": {busyTime, func(b *Agent, n *opaque, calls int64, fp id.Fingerprint, dst []byte) ([]byte, bool) {
			if calls == 20 {
				n.hangUp()
			}
			return b.Host().Lend(fp, dst)
		}, func(s host.LendingStatus) bool { return s.Failures > 0 }},
	} {
		t.Run(what, func(t *testing.T) {
			f := newFar(t)
			n := newOpaque(t)
			var calls atomic.Int64
			var b *Agent
			opts := f.lends(t, "b", &link{})
			opts.Peer.Address = n.Addr().String()
			opts.lend = func(fp id.Fingerprint, dst []byte) ([]byte, bool) {
				return test.lend(b, n, calls.Add(1), fp, dst)
			}
			b = openAgent(t, opts)
			n.mu.Lock()
			n.to = b.peer.listener.Addr().String()
			n.mu.Unlock()
			opts = f.lends(t, "a", &link{})
			opts.Host.FlashAnswer = test.answer
			a := openAgent(t, opts)
			content, d := warm(t, a, b, chunks*blockBytes)
			began := time.Now()
			got := make([]byte, 16*blockBytes)
			for i := range chunks / 16 {
				ok(t, d.ReadAt(t.Context(), got, int64(i*len(got))))
				if !bytes.Equal(got, content[i*len(got):][:len(got)]) {
					t.Fatalf("what is read at block %d is wrong", i*16)
				}
				time.Sleep(time.Millisecond)
			}
			took := time.Since(began)
			s := lendingOf(t, a)
			stored, _, peer := reads(t, a)
			if !test.failed(s) || peer != s.Here || stored+peer != chunks || stored == 0 {
				t.Errorf("%d chunks from the spindles, %d from b: %+v", stored, peer, s)
			}
			if took > time.Minute {
				t.Errorf("%d reads took %v", chunks/16, took)
			}
		})
	}
}

// A host before that does not lend, as one of an earlier version, is asked for nothing;
// a program that does not know how says so.
func TestFormerHostDoesNotLend(t *testing.T) {
	f := newFar(t)
	b := openAgent(t, f.options(t, "b", &link{}))
	a := openAgent(t, f.lends(t, "a", &link{}))
	content, d := warm(t, a, b, 64*blockBytes)
	until(t, "b is known not to lend", func() bool { return lendingOf(t, a).Failures > 0 })
	for block := range 64 {
		readBlock(t, d, content, block)
	}
	if stored, _, peer := reads(t, a); stored != 64 || peer != 0 {
		t.Errorf("%d chunks from the spindles, %d from b", stored, peer)
	}
	if s := lendingOf(t, a); s.Failures != 1 || s.Asked != 0 {
		t.Errorf("a has %+v", s)
	}
	if got := lendingOf(t, b); got != (host.LendingStatus{}) {
		t.Errorf("b has %+v", got)
	}

	older := nbd.NewServer(Exports{b}, nbd.Options{TLS: b.tls, TLSRequired: true, Logger: slog.New(slog.DiscardHandler)})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	ok(t, err)
	served := make(chan error, 1)
	go func() { served <- older.Serve(context.Background(), l) }()
	if _, err := peerflash.Dial(t.Context(), l.Addr().String(), a.tls); !errors.Is(err, peerflash.ErrUnable) {
		t.Errorf("a program that does not know: %v", err)
	}
	older.Close()
	ok(t, <-served)
	if _, err := peerflash.Dial(t.Context(), b.peer.address(), nil); err == nil {
		t.Error("who has proved nothing is served")
	}
}
