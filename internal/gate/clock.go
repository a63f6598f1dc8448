package gate

import (
	"time"

	"golang.org/x/sys/unix"
)

// processTime returns the CPU time that this process has used, in user and kernel
// mode, of all its threads.
func processTime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_PROCESS_CPUTIME_ID, &ts); err != nil {
		panic(err) // it has no error on Linux but for a clock that is not there
	}
	return time.Duration(ts.Nano())
}
