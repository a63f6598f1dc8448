// Package failpoint ends the process at a named point, so that a test of the
// real program can make the crash that it needs.
//
// The environment variable PLINTH_CRASH_AT=POINT[:N] arms one point: the N-th
// time that it is reached (the first without N) the process kills itself with
// SIGKILL, as an out-of-memory killer would. It is read once, at start. Without
// it a point costs one comparison; whoever can set a process's environment can
// kill it anyway.
//
// [Reach] may be called concurrently. A value that names no point, or no number,
// stops the process at its start: a crash that silently does not come would make
// a test pass for nothing.
package failpoint

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
)

// Variable is the name of the environment variable.
const Variable = "PLINTH_CRASH_AT"

// Point is a place in the order of things that a crash must respect (I7, and
// "tables, manifest, record, trim" of a checkpoint).
type Point string

// The points, in the order in which a destage and then a checkpoint come by.
const (
	// Fragments: a round's segments are stable, and unknown to the index.
	Fragments Point = "fragments"
	// Published: they are known, and no result names them.
	Published Point = "published"
	// Result: a result is stable, its operations are still in the log.
	Result Point = "result"
	// Tables: a checkpoint's tables are stored, its manifest is not.
	Tables Point = "tables"
	// Manifest: the manifest is stored, and nothing names it.
	Manifest Point = "manifest"
	// Record: the registry names the checkpoint, its results are still in the
	// log.
	Record Point = "record"
)

// Points lists those.
var Points = []Point{Fragments, Published, Result, Tables, Manifest, Record}

// The points of snapshots and of reclaim, in the order in which a segment's
// chunks move.
const (
	// Mark: marks of snapshots are stable in the log, the registry names none.
	Mark Point = "mark"
	// Condemned: nobody finds the chunks of a segment any more, none has moved.
	Condemned Point = "condemned"
	// Copied: they are in a new segment that the index knows, no forward names it.
	Copied Point = "copied"
	// Forwarded: the forwards are stable, no owner has followed them.
	Forwarded Point = "forwarded"
	// Patched: an owner's map has followed, no checkpoint has that.
	Patched Point = "patched"
	// Cleared: an owner has given up the old places, nothing was reclaimed.
	Cleared Point = "cleared"
)

// SnapshotPoints lists those.
var SnapshotPoints = []Point{Mark, Condemned, Copied, Forwarded, Patched, Cleared}

// The points of a file of the cluster's identities that is replaced.
const (
	// FileWritten: the new file is stable, under a name that nobody reads.
	FileWritten Point = "file-written"
	// FileNamed: it has its name, which need not be stable.
	FileNamed Point = "file-named"
)

// FilePoints lists those.
var FilePoints = []Point{FileWritten, FileNamed}

var (
	armed Point // set before main
	left  atomic.Int64
)

func init() {
	text := os.Getenv(Variable)
	if text == "" {
		return
	}
	point, n, err := parse(text)
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s=%s: %v\n", Variable, text, err)
		os.Exit(2)
	}
	left.Store(n)
	armed = point
}

// parse reads POINT[:N].
func parse(text string) (Point, int64, error) {
	name, count, counted := strings.Cut(text, ":")
	if all := slices.Concat(Points, SnapshotPoints, FilePoints); !slices.Contains(all, Point(name)) {
		return "", 0, fmt.Errorf("no such point; there are %v", all)
	}
	n := int64(1)
	if counted {
		var err error
		if n, err = strconv.ParseInt(count, 10, 64); err != nil || n < 1 {
			return "", 0, errors.New("after the colon comes a number from 1 on")
		}
	}
	return Point(name), n, nil
}

// Reach does not return if p is armed and this is its N-th time.
func Reach(p Point) {
	if armed != p || left.Add(-1) != 0 {
		return
	}
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {} // the signal comes at once, but need not come before Kill returns
}
