package main

import "runtime"

// spareProcessor gives the Go runtime one processor more than there are. It looks at
// sockets when a processor of its own has nothing to run, or after 10 ms: so a request
// waited that long, behind another's, while all of them had work, or seemed to, as one
// does from which the kernel has taken the real processor.
func spareProcessor() { runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) + 1) }
