package compare

import (
	"errors"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"time"
)

// Config says what to compare. Plinth, Dir and Results are needed; the rest of
// the zero value is right.
type Config struct {
	// Plinth is the program under test.
	Plinth string
	// Dir holds all disks while they are measured; it must not exist.
	Dir string
	// Results is the file of samples. What it has is not measured again.
	Results string
	// Servers and Rows to measure, by name. nil: all.
	Servers, Rows []string
	// Rounds of every cell. 0: 3.
	Rounds int
	// Runtime of a cell. 0: 2 s. SustainedRuntime of one in which the log is to be
	// written more than once. 0: 12 s.
	Runtime, SustainedRuntime time.Duration
	// DiskBytes is the size of each disk. 0: 1 GiB.
	DiskBytes int64
	// LogBytes is the size of plinth's log. 0: 512 MiB, which takes less time to write
	// over than the default of plinth up.
	LogBytes int64
	// Budget ends a run before the next cell. 0: none.
	Budget time.Duration
	// Progress gets a line for each cell. nil: nobody does.
	Progress io.Writer
}

const (
	roundsDefault           = 3
	runtimeDefault          = 2 * time.Second
	sustainedRuntimeDefault = 12 * time.Second
	diskBytesDefault        = 1 << 30
	logBytesDefault         = 512 << 20
	// spindleBytes of each of 12 make room for all that the rows write, should
	// nothing be reclaimed meanwhile. The files are sparse.
	spindleBytes = 2 << 30
)

func (c Config) withDefaults() (Config, error) {
	if c.Rounds == 0 {
		c.Rounds = roundsDefault
	}
	if c.Runtime == 0 {
		c.Runtime = runtimeDefault
	}
	if c.SustainedRuntime == 0 {
		c.SustainedRuntime = sustainedRuntimeDefault
	}
	if c.DiskBytes == 0 {
		c.DiskBytes = diskBytesDefault
	}
	if c.LogBytes == 0 {
		c.LogBytes = logBytesDefault
	}
	if c.Progress == nil {
		c.Progress = io.Discard
	}
	return c, c.validate()
}

func (c *Config) validate() error {
	switch {
	case c.Plinth == "" || c.Dir == "" || c.Results == "":
		return errors.New("name the program, a directory and a file of results")
	case c.Rounds < 0 || c.Runtime < 0 || c.SustainedRuntime < 0 || c.Budget < 0:
		return errors.New("rounds and times are not negative")
	case c.DiskBytes < 1<<20 || c.DiskBytes%(1<<20) != 0:
		return fmt.Errorf("disks of %d bytes: want a multiple of 1 MiB", c.DiskBytes)
	}
	for _, name := range c.Servers {
		if !slices.Contains(serverNames(), name) {
			return fmt.Errorf("no server %q; there are: %v", name, serverNames())
		}
	}
	for _, name := range c.Rows {
		if !slices.Contains(rowNames(), name) {
			return fmt.Errorf("no row %q; there are: %v", name, rowNames())
		}
	}
	for _, program := range []string{"fio", "qemu-img", "qemu-nbd", "nbdkit"} {
		if _, err := exec.LookPath(program); err != nil {
			return fmt.Errorf("%w; scripts/compare installs it", err)
		}
	}
	return nil
}

// chosen reports whether a name is among those asked for.
func chosen(asked []string, name string) bool { return asked == nil || slices.Contains(asked, name) }
