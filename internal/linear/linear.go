// Package linear records what concurrent clients of one disk do, and checks that each
// sector behaves as one register: that there is an order of all its operations in
// which each takes effect between its call and its return, and every read has what
// was written last. It is for tests.
package linear

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/anishathalye/porcupine"
)

// SectorBytes is the size of a register.
const SectorBytes = 512

// checkTimeMax bounds the search for an order in one sector.
const checkTimeMax = 5 * time.Minute

// History is what happened to a number of sectors that are zeros at first. Its
// methods may be called concurrently. [New] makes one.
type History struct {
	ticks  atomic.Int64 // orders calls and returns
	values atomic.Uint64

	mu  sync.Mutex
	ops [][]porcupine.Operation
	Tally
}

// Tally counts operations.
type Tally struct {
	Reads, Writes int
	Unknown       int // writes that failed, which may have happened all the same
}

// register is one operation on one sector: value is what was written.
type register struct {
	write bool
	value uint64
}

// New returns a history of sectors, which are all zeros.
func New(sectors int) *History { return &History{ops: make([][]porcupine.Operation, sectors)} }

// Write records a write of n sectors from first on. do writes p. Its error is
// returned; then the write may take effect at any time from its call on.
func (h *History) Write(first, n int, do func(p []byte) error) error {
	p := make([]byte, n*SectorBytes)
	value := h.values.Add(1)
	for i := 0; i < len(p); i += 8 {
		binary.LittleEndian.PutUint64(p[i:], value)
	}
	return h.change(first, n, value, func() error { return do(p) })
}

// Zero is Write of zeros.
func (h *History) Zero(first, n int, do func() error) error { return h.change(first, n, 0, do) }

func (h *History) change(first, n int, value uint64, do func() error) error {
	call := h.ticks.Add(1)
	err := do()
	h.mu.Lock()
	defer h.mu.Unlock()
	back := h.ticks.Add(1)
	if err != nil {
		back = endless
		h.Unknown++
	} else {
		h.Writes++
	}
	for i := range n {
		h.add(first+i, porcupine.Operation{Input: register{true, value}, Call: call, Return: back})
	}
	return err
}

const endless = -1 // Return of what has none

// Read records a read of n sectors from first on. do fills p; its error is returned,
// and nothing is recorded. Other errors are of a sector of which a write shows in
// part.
func (h *History) Read(first, n int, do func(p []byte) error) error {
	p := make([]byte, n*SectorBytes)
	call := h.ticks.Add(1)
	if err := do(p); err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	back := h.ticks.Add(1)
	h.Reads++
	for i := range n {
		sector := p[i*SectorBytes:][:SectorBytes]
		if !bytes.Equal(sector, bytes.Repeat(sector[:8], SectorBytes/8)) {
			return &TornError{first + i, sector}
		}
		h.add(first+i, porcupine.Operation{Output: binary.LittleEndian.Uint64(sector), Input: register{}, Call: call, Return: back})
	}
	return nil
}

// TornError says that a sector has parts of several writes.
type TornError struct {
	Sector int
	Bytes  []byte
}

func (e *TornError) Error() string { return fmt.Sprintf("sector %d is torn: %x", e.Sector, e.Bytes) }

func (h *History) add(sector int, op porcupine.Operation) { h.ops[sector] = append(h.ops[sector], op) }

var model = porcupine.Model{
	Init: func() any { return uint64(0) },
	Step: func(state, input, output any) (bool, any) {
		if r := input.(register); r.write {
			return true, r.value
		}
		return output == state, state
	},
}

// Check returns an error for the first sector whose operations have no order.
func (h *History) Check() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	for s, ops := range h.ops {
		if result := porcupine.CheckOperationsTimeout(model, h.ended(ops), checkTimeMax); result != porcupine.Ok {
			return fmt.Errorf("sector %d: its %d operations have no order: %s%s", s, len(ops), result, stale(ops))
		}
	}
	return nil
}

// stale names a read of what had been overwritten before it began, if there is one: a
// write has happened when it returned, or when a read had its value. Each value is
// written once; of zeros nothing is said where somebody wrote them.
func stale(ops []porcupine.Operation) string {
	writes, zeroed := map[uint64]*porcupine.Operation{0: {Call: endless, Return: 0}}, false
	for _, op := range ops {
		if w := op.Input.(register); w.write {
			zeroed = zeroed || w.value == 0
			writes[w.value] = &porcupine.Operation{Call: op.Call, Return: op.Return, Metadata: op.Return}
		}
	}
	for _, read := range ops {
		if read.Input.(register).write {
			continue
		}
		value := read.Output.(uint64)
		if zeroed && value == 0 {
			continue
		}
		w := writes[value]
		if w == nil {
			return fmt.Sprintf(": the read from %d to %d has %d, which nobody wrote", read.Call, read.Return, value)
		}
		if w.Return == endless || read.Return < w.Return {
			w.Return = read.Return
		}
	}
	for _, read := range ops {
		if read.Input.(register).write || zeroed && read.Output.(uint64) == 0 {
			continue
		}
		was := writes[read.Output.(uint64)]
		for later, w := range writes {
			if w.Return != endless && w.Call > was.Return && w.Return < read.Call {
				return fmt.Sprintf(": the read from %d to %d has %d, written from %d and seen at %d, and not %d, written from %d to %v and seen at %d",
					read.Call, read.Return, read.Output, was.Call, was.Return, later, w.Call, w.Metadata, w.Return)
			}
		}
	}
	return ""
}

// ended has those operations without an end do so after all others, and leaves out
// those of them that no read has seen: they are as good as after everything.
func (h *History) ended(ops []porcupine.Operation) []porcupine.Operation {
	seen := map[any]bool{}
	for _, op := range ops {
		if !op.Input.(register).write {
			seen[op.Output] = true
		}
	}
	var out []porcupine.Operation
	for _, op := range ops {
		if op.Return == endless {
			if op.Return = h.ticks.Load() + 1; !seen[op.Input.(register).value] {
				continue
			}
		}
		out = append(out, op)
	}
	return out
}
