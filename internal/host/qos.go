package host

import (
	"context"
	"errors"
	"fmt"
	"time"

	"plinth/datanode"
	"plinth/internal/gate"
)

const (
	// destageShare gives destaging half of the CPU time where that is short: about
	// what it costs beside the writes that it follows. What it does not need goes to
	// clients, and where it needs more they wait for room in the buffer.
	destageShare = 1
	// sweepShare is that of passes, reclaim and verify together.
	sweepShare = 0.25
)

// openBudget starts the bound of CPU time.
func (h *Host) openBudget(cores float64) {
	h.cpuMode = h.opts.CPU.Mode
	h.budget = gate.Open(cores)
	h.destages, h.sweeps = h.budget.Background(destageShare), h.budget.Background(sweepShare)
}

// reliefLate is how long writes wait for room before what makes some no longer
// waits for CPU time: a sixth of the time after which they fail.
const reliefLate = 5 * time.Second

// late reports whether writes have waited for room in the log or on the spindles
// for long.
func (h *Host) late() bool {
	since := h.reliefFor.Load()
	return since != 0 && time.Since(time.Unix(0, since)) > reliefLate
}

// paceRound returns what rounds of destaging wait for between their steps: not
// where that would have writes fail for lack of room.
func (h *Host) paceRound() func(context.Context) error { return h.destages.Pace(h.late) }

// paceSweep does so for passes and moves.
func (h *Host) paceSweep() func(context.Context) error { return h.sweeps.Pace(h.late) }

// CPUStatus says how much of the machine the process may use, and uses.
type CPUStatus struct {
	// Mode is "fast" or "insane", empty for a number of cores.
	Mode string `json:"mode,omitempty"`
	gate.Figures
}

// CPU returns how much of the machine the process may use, and uses.
func (h *Host) CPU() CPUStatus {
	h.mu.Lock()
	mode := h.cpuMode
	h.mu.Unlock()
	return CPUStatus{mode, h.budget.Figures()}
}

// SetCPU changes how much of the machine the process may use, until it ends.
// Errors: ErrInvalid.
func (h *Host) SetCPU(cpu gate.CPU) error {
	cores, err := cpu.Number()
	if err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.cpuMode = cpu.Mode
	h.budget.SetCores(cores)
	h.log.Info("CPU time is bounded anew", "mode", cpu.Mode, "cores", cores)
	return nil
}

// LimitsChange changes some limits of a disk; those that are nil stay as they are.
type LimitsChange struct {
	IOPS         *int64   `json:"iops,omitempty"`
	ReadIOPS     *int64   `json:"read_iops,omitempty"`
	WriteIOPS    *int64   `json:"write_iops,omitempty"`
	BPS          *int64   `json:"bps,omitempty"`
	ReadBPS      *int64   `json:"read_bps,omitempty"`
	WriteBPS     *int64   `json:"write_bps,omitempty"`
	BurstSeconds *float64 `json:"burst_seconds,omitempty"`
}

func (c *LimitsChange) apply(l gate.Limits) gate.Limits {
	for _, f := range []struct {
		to   *int64
		from *int64
	}{
		{&l.IOPS, c.IOPS}, {&l.ReadIOPS, c.ReadIOPS}, {&l.WriteIOPS, c.WriteIOPS},
		{&l.BPS, c.BPS}, {&l.ReadBPS, c.ReadBPS}, {&l.WriteBPS, c.WriteBPS},
	} {
		if f.from != nil {
			*f.to = *f.from
		}
	}
	if c.BurstSeconds != nil {
		l.BurstSeconds = *c.BurstSeconds
	}
	return l
}

// ChangeLimits changes what a disk's clients may do, durably and at once. Errors:
// ErrUnknownDisk, ErrInvalid.
func (h *Host) ChangeLimits(ctx context.Context, name string, change LimitsChange) (*DiskInfo, error) {
	if err := h.beginChange(ctx); err != nil {
		return nil, err
	}
	defer h.endChange()
	ctx = context.WithoutCancel(ctx)
	e := h.named(name)
	if e == nil {
		return nil, fmt.Errorf("disk %q: %w", name, ErrUnknownDisk)
	}
	if errors.Is(e.err, ErrElsewhere) {
		return nil, e.err
	}
	h.recordMu.Lock()
	defer h.recordMu.Unlock()
	rec := h.record(e)
	limits := change.apply(rec.limits())
	if err := limits.Validate(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	rec.Limits = &limits
	if limits == (gate.Limits{}) {
		rec.Limits = nil
	}
	if err := h.catalog.changeDisk(ctx, &rec, &datanode.RegistryTxn{Guards: e.guards()}); err != nil {
		return nil, fmt.Errorf("change the limits of disk %q: %w", name, err)
	}
	e.door.SetLimits(limits)
	h.mu.Lock()
	e.now = rec
	h.mu.Unlock()
	return h.info(e), nil
}
