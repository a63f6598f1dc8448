package standalone

import (
	"bytes"
	"flag"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"

	"plinth/datanode"
	"plinth/internal/disk"
	"plinth/internal/host"
	"plinth/nbd"
)

var damages = flag.Int("damages", 3000, "units that TestSimDamage damages")

// image is content that neither compresses nor repeats.
func image(seed uint64, n int) []byte {
	p := make([]byte, n)
	var key [32]byte
	for i := range 8 {
		key[i] = byte(seed >> (8 * i))
	}
	rand.NewChaCha8(key).Read(p)
	return p
}

func write(t testing.TB, d nbd.Device, p []byte, off int64) {
	t.Helper()
	for n := 0; n < len(p); n += 1 << 20 {
		if err := d.WriteAt(t.Context(), p[n:min(n+1<<20, len(p))], off+int64(n), false); err != nil {
			t.Fatalf("write at %d: %v", off+int64(n), err)
		}
	}
}

// same reads what should be at off.
func same(t testing.TB, d nbd.Device, want []byte, off int64) {
	t.Helper()
	got := make([]byte, 1<<20)
	for n := 0; n < len(want); n += len(got) {
		w := want[n:min(n+len(got), len(want))]
		if err := d.ReadAt(t.Context(), got[:len(w)], off+int64(n)); err != nil {
			t.Fatalf("read at %d: %v", off+int64(n), err)
		}
		if !bytes.Equal(got[:len(w)], w) {
			t.Fatalf("1 MiB at %d is not what was written", off+int64(n))
		}
	}
}

// quiet has no work in the background but destaging.
func quiet(t testing.TB, dir string) Options {
	o := small(t, dir)
	o.Host.IdleTime = time.Hour
	return o
}

func status(t testing.TB, s *Site) *host.Status {
	t.Helper()
	st, err := s.Host.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return st
}

// TestSimSpindlesLost deletes 2 of 12 spindles of a running pool, and starts it
// again without them.
func TestSimSpindlesLost(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	opts := quiet(t, t.TempDir())
	s := open(t, opts)
	old := image(seed, 48<<20)
	write(t, create(t, s, "vm1", 256<<20), old, 0)
	quiesce(t, s)
	shut(t, s)

	s = open(t, opts) // nothing is cached now
	d := device(t, s, "vm1")
	lost := rng.Perm(12)[:2]
	t.Logf("spindles %v are lost", lost)
	for _, n := range lost {
		away(t, opts, n)
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		st := status(t, s)
		if absent(st, lost) == 2 && len(st.Warnings) >= 2 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("status does not report the loss after 10 s: %+v", st.Node.Spindles)
		}
	}
	same(t, d, old, 0)
	fresh := image(seed+1, 24<<20)
	write(t, d, fresh, 64<<20)
	quiesce(t, s)
	same(t, d, fresh, 64<<20)
	shut(t, s)

	s = open(t, opts)
	d = device(t, s, "vm1")
	if n := absent(status(t, s), lost); n != 2 {
		t.Errorf("%d of the lost spindles are absent after a restart", n)
	}
	same(t, d, old, 0)
	same(t, d, fresh, 64<<20)
	before := status(t, s).Space.StoredBytes
	more := image(seed+2, 24<<20)
	write(t, d, more, 128<<20)
	quiesce(t, s)
	same(t, d, more, 128<<20)
	if grown := status(t, s).Space.StoredBytes - before; grown < int64(len(more))*10/8 {
		t.Errorf("%d bytes of new data are stored in %d: not on 10 other spindles in full", len(more), grown)
	}
	r, err := s.Host.Verify(t.Context(), host.VerifyOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range r.Findings {
		if f.Kind != "unreachable" {
			t.Errorf("verify: %s: %s: %s", f.Kind, f.Where, f.What)
		}
	}
	if len(r.Findings) != 2 {
		t.Errorf("verify has %d findings, want the two spindles", len(r.Findings))
	}
	shut(t, s)
	statusByCommand(t, opts.Dir, lost)
	for _, n := range lost {
		if _, err := os.Stat(spindleDir(opts.Dir, n)); !os.IsNotExist(err) {
			t.Errorf("spindle %d was made again: %v", n, err)
		}
	}
}

// absent counts those of some spindles that the status calls absent.
func absent(st *host.Status, which []int) (n int) {
	for _, w := range which {
		if st.Node.Spindles[w].State == datanode.SpindleAbsent {
			n++
		}
	}
	return n
}

// TestSimDamage damages what fragments have allocated, in the running pool or while
// it is shut, within the parity's power: all is named, all is mended, and no read has
// a wrong byte.
func TestSimDamage(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 2))
	opts := quiet(t, t.TempDir())
	opts.Logger = slog.New(slog.DiscardHandler) // a line for each block
	opts.Host.RAMCacheBytes = -1
	s := open(t, opts)
	data := image(seed, 80<<20)
	write(t, create(t, s, "vm1", 128<<20), data, 0)
	quiesce(t, s)
	shut(t, s)
	var byInjury [injuries]int
	done := 0
	each := min(max(*damages/4, 1), 1500)
	for round := 0; done < *damages; round++ {
		x := newInjurer(t, rng, walkSlabs(t, opts.Dir))
		count := min(*damages-done, each/2+rng.IntN(each))
		if round%3 == 2 { // what is damaged while nobody runs is mended on the way of whoever needs it
			x.injure(count, flipped, cleared, torn, garbled, misdirected, lost)
			s = open(t, opts)
		} else {
			s = open(t, opts)
			x.injure(count, flipped, cleared, torn, garbled, misdirected)
		}
		d := device(t, s, "vm1")
		if round%3 == 0 {
			r, err := s.Host.Verify(t.Context(), host.VerifyOptions{})
			if err != nil {
				t.Fatal(err)
			}
			wantNamed(t, r, x.done)
		}
		if round%3 < 2 || rng.IntN(2) == 0 {
			same(t, d, data, 0)
			if bad := d.(interface{ Stats() disk.Stats }).Stats().ChunksBad; bad == 0 {
				t.Error("no read met damage")
			}
			if n := status(t, s).Repairs["fragments_rewritten"]; n == 0 {
				t.Error("reads repaired nothing")
			}
		}
		r, err := s.Host.Verify(t.Context(), host.VerifyOptions{Repair: true})
		if err != nil {
			t.Fatal(err)
		}
		if !r.OK() {
			t.Errorf("verify with repair left damage: %+v", r.Findings)
		}
		verify(t, s)
		same(t, d, data, 0)
		shut(t, s)
		done += len(x.done)
		for k, n := range x.byInjury {
			byInjury[k] += n
		}
		if t.Failed() {
			break
		}
	}
	t.Logf("%d damages: flipped, cleared, torn, garbled, misdirected, lost: %v", done, byInjury)
}

// TestSimDamageBeyondParity damages up to four units of a row, where two can be
// mended: a read has the right bytes, or the error that names the place.
func TestSimDamageBeyondParity(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	opts := quiet(t, t.TempDir())
	opts.Logger = slog.New(slog.DiscardHandler)
	opts.Host.RAMCacheBytes = -1
	s := open(t, opts)
	data := image(seed, 6<<20)
	write(t, create(t, s, "vm1", 64<<20), data, 0)
	quiesce(t, s)
	shut(t, s)
	x := newInjurer(t, rand.New(rand.NewPCG(seed, 2)), walkSlabs(t, opts.Dir))
	x.rowMost = 4

	s = open(t, opts)
	d := device(t, s, "vm1")
	same(t, d, data, 0) // the map, which may be damaged too, is in memory now
	x.injure(560, flipped, cleared, torn, garbled, misdirected)
	right, refused := 0, 0
	for range 2 { // the second time after what reads have mended
		p := make([]byte, 4096)
		for off := 0; off < len(data); off += len(p) {
			err := d.ReadAt(t.Context(), p, int64(off))
			switch {
			case err == nil && bytes.Equal(p, data[off:off+len(p)]):
				right++
			case err == nil:
				t.Fatalf("the read at %d has wrong bytes", off)
			case !strings.Contains(err.Error(), "segment "):
				t.Fatalf("the read at %d does not say where the damage is: %v", off, err)
			default:
				refused++
			}
		}
	}
	if refused == 0 || right < refused {
		t.Errorf("%d reads are right and %d refused", right, refused)
	}
	t.Logf("%d reads right, %d refused", right, refused)
	shut(t, s)
}

// TestSimSpindlesReturn takes 2 spindles away and brings them back when data that
// they hold is gone and other data has been written.
func TestSimSpindlesReturn(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	opts := quiet(t, t.TempDir())
	s := open(t, opts)
	old := image(seed, 32<<20)
	d := create(t, s, "vm1", 128<<20)
	write(t, d, old, 0)
	settle(t, s)
	away := rand.New(rand.NewPCG(seed, 1)).Perm(12)[:2]
	t.Logf("spindles %v are away", away)
	for _, n := range away {
		if err := os.Rename(spindleDir(opts.Dir, n), spindleDir(opts.Dir, n)+".away"); err != nil {
			t.Fatal(err)
		}
	}
	for deadline := time.Now().Add(10 * time.Second); absent(status(t, s), away) < 2; time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("status does not report the loss after 10 s")
		}
	}
	fresh := image(seed+1, 16<<20)
	write(t, d, fresh, 0) // whose old segments go
	write(t, d, fresh, 64<<20)
	settle(t, s)
	shut(t, s)
	for _, n := range away {
		if err := os.Rename(spindleDir(opts.Dir, n)+".away", spindleDir(opts.Dir, n)); err != nil {
			t.Fatal(err)
		}
	}
	s = open(t, opts)
	d = device(t, s, "vm1")
	same(t, d, fresh, 0)
	same(t, d, old[16<<20:], 16<<20)
	same(t, d, fresh, 64<<20)
	settle(t, s)
	verify(t, s)
	measure(t, s, opts.Dir)
	shut(t, s)
}

// wantNamed tests that a report names each damage once, and nothing else.
func wantNamed(t testing.TB, r *host.VerifyReport, planted map[damage]bool) {
	t.Helper()
	named := make(map[damage]int)
	for _, f := range r.Findings {
		var layout, number uint64
		var spindle, index, off int
		_, err := fmt.Sscanf(f.Where, "segment %d.%x", &layout, &number)
		if err == nil {
			_, err = fmt.Sscanf(f.What, "fragment %d on spindle %d, byte %d:", &index, &spindle, &off)
		}
		if err != nil {
			t.Errorf("verify: %s: %s: %s", f.Kind, f.Where, f.What)
			continue
		}
		d := damage{layout<<48 | number, index, off / block}
		if f.Kind == "bad header" {
			d.block = -1
		}
		named[d]++
		if !planted[d] {
			t.Errorf("verify found what was not planted: %s: %s: %s", f.Kind, f.Where, f.What)
		}
	}
	missed, twice := 0, 0
	for d := range planted {
		switch {
		case named[d] == 0:
			missed++
			if missed < 5 {
				t.Errorf("not named: %+v", d)
			}
		case named[d] > 1:
			twice++
		}
	}
	if missed > 0 || twice > 0 || r.More > 0 {
		t.Errorf("of %d damages verify missed %d, named %d more than once, left %d out", len(planted), missed, twice, r.More)
	}
}
