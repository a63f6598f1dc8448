package host

import (
	"plinth/internal/disk"
	"plinth/internal/gate"
	"plinth/internal/id"
)

// Tails returns what the closed agent knew of the ends of its disks' logs, and of
// disks that it has not opened what Options.Resume has: for the next agent of this
// process, with the same clients.
func (h *Host) Tails() map[id.Disk]*disk.Tail {
	tails := make(map[id.Disk]*disk.Tail)
	h.mu.Lock()
	for d, tail := range h.opts.Resume {
		if !h.taken[d] {
			tails[d] = tail
		}
	}
	h.mu.Unlock()
	for _, e := range h.exports() {
		if e.disk != nil {
			tails[e.rec.ID] = e.disk.Tail()
		}
	}
	return tails
}

// resumeOf returns what Options.Resume has of a disk, until it was opened once.
func (h *Host) resumeOf(d id.Disk) *disk.Tail {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.taken[d] {
		return nil
	}
	return h.opts.Resume[d]
}

// resumed notes that a disk was opened.
func (h *Host) resumed(d *disk.Disk) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.taken[d.ID()] = true
}

// CPUWanted returns what CPU time the agent was given, by SetCPU or its options.
func (h *Host) CPUWanted() gate.CPU {
	c := h.CPU()
	if c.Mode != "" {
		return gate.CPU{Mode: c.Mode}
	}
	return gate.CPU{Cores: c.Cores}
}
