package host

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"plinth/datanode"
	"plinth/internal/registry"
)

// cuttable is a registry that a host may be cut off from.
type cuttable struct {
	datanode.RegistryNode
	cut atomic.Bool
}

func (c *cuttable) gone() error {
	if c.cut.Load() {
		return datanode.Errorf(datanode.ErrUnreachable, "cut off")
	}
	return nil
}

func (c *cuttable) RegistryKeepAlive(ctx context.Context, r *datanode.RegistryKeepAliveRequest) error {
	if err := c.gone(); err != nil {
		return err
	}
	return c.RegistryNode.RegistryKeepAlive(ctx, r)
}

func (c *cuttable) RegistryGrant(ctx context.Context, r *datanode.RegistryGrantRequest) (*datanode.RegistryGrantReply, error) {
	if err := c.gone(); err != nil {
		return nil, err
	}
	return c.RegistryNode.RegistryGrant(ctx, r)
}

func (c *cuttable) RegistryRevoke(ctx context.Context, r *datanode.RegistryRevokeRequest) error {
	if err := c.gone(); err != nil {
		return err
	}
	return c.RegistryNode.RegistryRevoke(ctx, r)
}

// space is a data node that only counts reservations, but for those of passes.
type space struct {
	datanode.Node
	given atomic.Int64
}

func (s *space) Reserve(_ context.Context, r *datanode.ReserveRequest) error {
	if r.Bytes == 0 && !strings.HasSuffix(r.Host, drainReservation) {
		s.given.Add(1)
	}
	return nil
}

// sessions runs a test in a bubble, with a registry and a clock of its time.
func sessions(t *testing.T, f func(t *testing.T, r *cuttable, open func(name string, fs vfs.FS, sole bool) (*owning, error))) {
	synctest.Test(t, func(t *testing.T) {
		p, err := registry.Open(vfs.NewMem(), "r", registry.Options{Create: true})
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		began := time.Now()
		r := &cuttable{RegistryNode: p}
		f(t, r, func(name string, fs vfs.FS, sole bool) (*owning, error) {
			opts := Options{Name: name, FS: fs, Dir: "host", Sole: sole, Logger: slog.New(slog.DiscardHandler)}
			opts.clock = func() time.Duration { return time.Since(began) }
			h := &Host{node: &space{}, catalog: catalog{r}, opts: opts.withDefaults(0), life: t.Context()}
			return openOwning(t.Context(), h)
		})
	})
}

// end stops a session and gives it up.
func (o *owning) end() error {
	o.stop()
	return o.giveUp()
}

func (o *owning) replies() bool {
	t := o.term.Load()
	return t != nil && t.valid()
}

// TestSessionEnds: a host that cannot keep its lease alive stops replying by
// its own clock, before another one may have the name, and gets a new lease when
// it can.
func TestSessionEnds(t *testing.T) {
	sessions(t, func(t *testing.T, r *cuttable, open func(string, vfs.FS, bool) (*owning, error)) {
		fs := vfs.NewMem()
		o, err := open("a", fs, false)
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := o.end(); err != nil {
				t.Error(err)
			}
		}()
		for range 10 {
			time.Sleep(leaseTTLDefault)
			if !o.replies() {
				t.Fatal("it may not reply while it is kept alive")
			}
		}
		first := o.term.Load()
		r.cut.Store(true)
		time.Sleep(leaseTTLDefault) // the last keep-alive was sent before
		if o.replies() {
			t.Fatal("it may reply after the lease")
		}
		if has, err := (catalog{r}).hostRecord(t.Context(), "a"); err != nil || has == nil {
			t.Fatalf("the registry has ended the lease before its holder: %+v, %v", has, err)
		}
		r.cut.Store(false)
		time.Sleep(2 * leaseTTLDefault)
		if !o.replies() {
			t.Fatal("it may not reply after the cut")
		}
		if first.valid() || o.term.Load() == first {
			t.Error("what was opened under the lease that was lost may reply again")
		}
	})
}

// TestSessionOfALifeThatIsOver: who opens with the directory of a host that
// died gets its name at once, others when the lease has ended, and while it lives
// nobody does.
func TestSessionOfALifeThatIsOver(t *testing.T) {
	sessions(t, func(t *testing.T, r *cuttable, open func(string, vfs.FS, bool) (*owning, error)) {
		fs := vfs.NewMem()
		die := func(o *owning) {
			r.cut.Store(true) // its lease stays
			if err := o.end(); err != nil {
				t.Fatal(err)
			}
			r.cut.Store(false)
		}
		for _, c := range []struct {
			what string
			fs   vfs.FS
			sole bool
			wait time.Duration
		}{
			{"the first", fs, false, 0},
			{"in the same directory", fs, false, 0},
			{"in another", vfs.NewMem(), false, leaseTTLDefault},
			{"with the data node, where others had none", vfs.NewMem(), true, leaseTTLDefault},
			{"with the data node", vfs.NewMem(), true, 0},
			{"without", fs, false, datanode.LeaseTTLMax},
		} {
			began := time.Now()
			o, err := open("a", c.fs, c.sole)
			if err != nil {
				t.Fatalf("%s: %v", c.what, err)
			}
			if took := time.Since(began); took < c.wait || c.wait == 0 && took > 0 {
				t.Errorf("%s: the session began after %v, want %v", c.what, took, c.wait)
			}
			if gone := o.node.(*space).given.Load(); gone > 1 || c.what != "the first" && gone != 1 {
				t.Errorf("%s: %d reservations of earlier lives were given back", c.what, gone)
			}
			die(o)
		}
	})
}

func TestSessionOfAHostThatLives(t *testing.T) {
	sessions(t, func(t *testing.T, r *cuttable, open func(string, vfs.FS, bool) (*owning, error)) {
		fs := vfs.NewMem()
		o, err := open("a", fs, false)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := open("a", fs, false); !errors.Is(err, ErrInUse) {
			t.Errorf("a second one in the same directory: %v", err)
		}
		if _, err := open("a", vfs.NewMem(), false); !errors.Is(err, ErrInUse) {
			t.Errorf("a second one in another directory: %v", err)
		}
		if !o.replies() {
			t.Error("the first one may not reply any more")
		}
		if err := o.end(); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		o, err = open("a", vfs.NewMem(), false)
		if err != nil || time.Since(began) > 0 {
			t.Fatalf("after the first one gave up, %v later: %v", time.Since(began), err)
		}
		if err := o.end(); err != nil {
			t.Fatal(err)
		}
	})
}

// TestTermEnds: a lease ends by what valid concludes without asking the clock that counts,
// also where nobody has noticed yet that it was lost.
func TestTermEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked, began := 0, time.Now()
		tm := &term{clock: func() time.Duration { asked++; return time.Since(began) }}
		tm.until.Store(int64(time.Hour))
		for _, c := range []struct {
			at   time.Duration
			want bool
		}{{0, true}, {time.Minute, true}, {time.Hour - 2*clockSlack, true}, {time.Hour, false}, {2 * time.Hour, false}} {
			time.Sleep(c.at - time.Since(began))
			if got := tm.valid(); got != c.want {
				t.Errorf("after %v a lease of an hour is valid: %v", c.at, got)
			}
		}
		if asked != 1 {
			t.Errorf("the clock that counts was asked %d times: the test shows nothing", asked)
		}
	})
}

// TestTermOfAClockThatJumps: what valid concludes without asking the clock that
// counts is right when that has gone on alone, and when the wall clock was set.
func TestTermOfAClockThatJumps(t *testing.T) {
	var clock, asked atomic.Int64
	began := time.Now()
	tm := &term{clock: func() time.Duration {
		asked.Add(1)
		return time.Duration(clock.Load()) + time.Since(began)
	}}
	tm.until.Store(int64(time.Hour))
	for range 2 { // the second time by what the first has read
		if !tm.valid() {
			t.Fatal("a lease of an hour has ended")
		}
	}
	// A suspension: the wall clock and the clock of leases went on by two hours.
	r := *tm.last.Load()
	r.wall -= int64(2 * time.Hour)
	tm.last.Store(&r)
	clock.Store(int64(2 * time.Hour))
	if tm.valid() {
		t.Error("a lease of an hour is valid after a suspension of two")
	}
	// A wall clock that was set back by two hours.
	r = *tm.last.Load()
	r.wall += int64(2 * time.Hour)
	tm.last.Store(&r)
	clock.Store(0)
	before := asked.Load()
	if !tm.valid() {
		t.Error("setting the wall clock ends a lease")
	}
	if asked.Load() == before {
		t.Error("the clock that counts was not asked")
	}
	tm.lost.Store(true)
	if tm.valid() {
		t.Error("a lease that was lost is valid")
	}
}

func BenchmarkMayReply(b *testing.B) {
	for _, sole := range []bool{true, false} {
		name := map[bool]string{true: "sole", false: "lease"}[sole]
		b.Run(name, func(b *testing.B) {
			t := &term{clock: BootTime}
			t.until.Store(int64(BootTime() + time.Hour))
			if sole {
				t.until.Store(1<<63 - 1)
			}
			for b.Loop() {
				if !t.valid() {
					b.Fatal("the lease has ended")
				}
			}
		})
	}
}
