package host_test

import (
	"context"
	"errors"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"plinth/internal/gate"
	"plinth/internal/host"
	"plinth/nbd"
)

// reads reads an export so often, as NBD does, and returns how long it took.
func (s *site) reads(export string, n int) time.Duration {
	s.Helper()
	began := time.Now()
	s.ok(s.device(export, func(d nbd.Device) error {
		p := make([]byte, 4096)
		for range n {
			if try, ok := d.(nbd.TryReader); ok && try.TryReadAt(p, 0) {
				continue
			}
			if err := d.ReadAt(s.Context(), p, 0); err != nil {
				return err
			}
		}
		return nil
	}))
	return time.Since(began)
}

// TestLimits sets limits of a disk, which hold at once, for its snapshots too, and
// after a restart, through changes of other things; others are not held to them.
func TestLimits(t *testing.T) {
	s := openSite(t, siteOptions(t))
	s.write("vm", noise(1, 1<<20))
	s.write("other", noise(2, 1<<20))
	s.snap("vm", "mon")
	s.ok(s.Host.Quiesce(t.Context()))
	free := func(disk string) {
		t.Helper()
		before := s.info(disk).Waits
		s.reads(disk, 1000)
		if after := s.info(disk).Waits; after != before {
			t.Errorf("disk %s without limits has waited: %+v, then %+v", disk, before, after)
		}
	}
	free("vm")
	set := func(l gate.Limits) *host.DiskInfo {
		t.Helper()
		info, err := s.Host.ChangeLimits(t.Context(), "vm", host.LimitsChange{
			IOPS: &l.IOPS, ReadBPS: &l.ReadBPS, BurstSeconds: &l.BurstSeconds,
		})
		s.ok(err)
		return info
	}
	want := gate.Limits{IOPS: 100, ReadBPS: 1 << 30, BurstSeconds: 0.1}
	if info := set(want); info.Limits != want {
		t.Fatalf("limits are %+v", info.Limits)
	}
	held := func() {
		t.Helper()
		for _, export := range []string{"vm", "vm@mon"} {
			// Ten are the burst's.
			if took := s.reads(export, 40); took < 290*time.Millisecond {
				t.Errorf("40 reads of %s at 100 a second took %v", export, took)
			}
		}
		free("other")
		if w := s.info("vm").Waits; w.Limit == 0 || w.LimitSeconds < 0.1 || w.CPU != 0 {
			t.Errorf("waits: %+v", w)
		}
	}
	held()
	_, err := s.Host.RenameDisk(t.Context(), "vm", "new")
	s.ok(err)
	_, err = s.Host.RenameDisk(t.Context(), "new", "vm")
	s.ok(err)
	s.restart()
	if got := s.info("vm").Limits; got != want {
		t.Errorf("after a restart the limits are %+v", got)
	}
	held()
	if got := s.info("other").Limits; got.Any() {
		t.Errorf("another disk has limits %+v", got)
	}
	none := gate.Limits{}
	if info := set(none); info.Limits != none {
		t.Errorf("limits are %+v", info.Limits)
	}
	free("vm")
	bad := int64(1)
	if _, err := s.Host.ChangeLimits(t.Context(), "vm", host.LimitsChange{IOPS: &bad}); !errors.Is(err, host.ErrInvalid) {
		t.Errorf("limit of 1: %v", err)
	}
	if _, err := s.Host.ChangeLimits(t.Context(), "none", host.LimitsChange{}); !errors.Is(err, host.ErrUnknownDisk) {
		t.Errorf("unknown disk: %v", err)
	}
}

// TestCPUBound holds the whole process to a part of a core while a disk is written
// as fast as it goes, destaging included, and takes the bound away again.
func TestCPUBound(t *testing.T) {
	s := openSite(t, siteOptions(t))
	s.write("vm", noise(1, 1<<20))
	s.ok(s.Host.SetCPU(gate.CPU{Cores: 0.2}))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	written := make(chan error, 1)
	var n atomic.Int64
	go func() {
		written <- s.device("vm", func(d nbd.Device) error {
			p := noise(2, 256<<10)
			for i := 0; ctx.Err() == nil; i++ {
				p[0], p[1] = byte(i), byte(i>>8)
				if err := d.WriteAt(ctx, p, int64(i%4)*int64(len(p)), false); err != nil && ctx.Err() == nil {
					return err
				}
				n.Add(1)
			}
			return nil
		})
	}()
	deadline := time.Now().Add(time.Minute)
	for s.info("vm").Waits.CPU < 20 {
		if time.Now().After(deadline) {
			t.Fatalf("after %d writes nothing has waited: %+v", n.Load(), s.Host.CPU())
		}
		time.Sleep(10 * time.Millisecond)
	}
	if cpu := s.Host.CPU(); cpu.Mode != "" || cpu.Cores != 0.2 || cpu.MachineCores > float64(runtime.NumCPU()) {
		t.Errorf("cpu: %+v", cpu)
	}
	s.ok(s.Host.Quiesce(t.Context())) // goes on meanwhile
	s.ok(s.Host.SetCPU(gate.CPU{}))
	before, waits := n.Load(), s.info("vm").Waits.CPU
	for n.Load() < before+20 {
		if time.Now().After(deadline) {
			t.Fatalf("%d writes without a bound", n.Load()-before)
		}
		time.Sleep(10 * time.Millisecond)
	}
	if after := s.info("vm").Waits.CPU; after > waits {
		t.Errorf("%d waits without a bound", after-waits)
	}
	cancel()
	s.ok(<-written)
	s.ok(s.Host.SetCPU(gate.CPU{Mode: "insane"}))
	if cpu := s.Host.CPU(); cpu.Mode != "insane" || cpu.Cores < 1 {
		t.Errorf("cpu: %+v", cpu)
	}
	for _, bad := range []gate.CPU{{Mode: "slow"}, {Cores: -1}} {
		if err := s.Host.SetCPU(bad); !errors.Is(err, host.ErrInvalid) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
}
