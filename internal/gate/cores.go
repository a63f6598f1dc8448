package gate

import (
	"errors"
	"fmt"
	"runtime"
)

// ErrInvalid is returned for a setting that means nothing; its text says why.
var ErrInvalid = errors.New("not a valid setting")

// CPU says how many of a machine's cores a process may use: by a mode, or by
// number. The zero value is all of them.
type CPU struct {
	// Mode is "fast" or "insane"; empty: Cores.
	Mode string `json:"mode,omitempty"`
	// Cores may have a fraction; 0: all.
	Cores float64 `json:"cores,omitempty"`
}

// modes are the shares of cores, of which there are modeCoresMin at least.
var modes = map[string]float64{"fast": 0.2, "insane": 0.4}

const (
	modeCoresMin = 2
	// coresMin is as little as makes progress that a guest does not take for an
	// outage.
	coresMin = 0.1
	coresMax = 4096
)

// machineCores is how many cores there are for this process: a control group may have
// fewer than the machine. A server has the runtime take more, later.
var machineCores = float64(min(runtime.NumCPU(), runtime.GOMAXPROCS(0)))

// Number returns the number of cores on this machine.
func (c CPU) Number() (float64, error) { return c.of(machineCores) }

func (c CPU) of(machine float64) (float64, error) {
	share, known := modes[c.Mode]
	switch {
	case c.Mode != "" && c.Cores != 0:
		return 0, fmt.Errorf("%w: give a mode or cores, not both", ErrInvalid)
	case c.Mode != "" && !known:
		return 0, fmt.Errorf("%w: mode %q is neither fast nor insane", ErrInvalid, c.Mode)
	case known:
		return min(max(share*machine, modeCoresMin), machine), nil
	case c.Cores == 0:
		return machine, nil
	case !(c.Cores >= coresMin && c.Cores <= coresMax):
		return 0, fmt.Errorf("%w: %v cores: use %v to %v", ErrInvalid, c.Cores, coresMin, coresMax)
	}
	return min(c.Cores, machine), nil
}
