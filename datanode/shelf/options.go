package shelf

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/cockroachdb/pebble/v2/vfs"

	"plinth/datanode"
	"plinth/internal/id"
)

const (
	// SpindlesDefault is as many as 8+2 wants, with two to rebuild on.
	SpindlesDefault = 12
	// LogBytesMin is the least that keeps marks apart from data in whole files,
	// and takes a portion of a write beside what is being trimmed.
	LogBytesMin = 8 << 20
	// LogBytesDefault and SpindleBytesDefault are what a node takes where the
	// file system has room for them; less where it has not.
	LogBytesDefault     = 4 << 30
	SpindleBytesDefault = 64 << 30
	// SpindleBytesMin is the least that holds some fragments beside the reserve.
	SpindleBytesMin = 16 << 20
)

// Options says what a node is and where it lies. PoolID is needed; the rest of
// the zero value is right.
type Options struct {
	// PoolID is the pool's. A node of another pool is refused.
	PoolID [16]byte
	// Spindles is their number, 1 to 1024: SpindlesDefault if 0. LogBytes and
	// SpindleBytes are the sizes of the log and of each spindle; 0 means the
	// default, or where that is less a tenth of the file system's free space for
	// the log and seven for the spindles. Open takes all three from the node; if a size is given
	// and differs, or more spindles than the node has, that is an error.
	Spindles     int
	LogBytes     int64
	SpindleBytes int64
	// Width is the least number of fragments (k+m) that the pool's stripes have;
	// what hosts may reserve follows from it. 0 means what this many spindles get:
	// 10 (8+2), 6 (4+2) from six on, 3 (2+1) from three on, else their number.
	Width int
	// WidthOf reads the width of a pool's stripes in its layouts, which the registry has
	// under datanode.LayoutsKey once the pool is made: it takes the place of Width. nil:
	// Width stays.
	WidthOf func(layouts []byte) (int, error)
	// IndexCacheBytes is the index's block cache; 0 is the index's default.
	IndexCacheBytes int64
	// AcceptLostLog lets Recover make a new, empty log where the log is missing.
	// Acknowledged writes that were not destaged are then lost.
	AcceptLostLog bool
	// Rejoin has Create make a node that a pool of several has lost: its index is not
	// complete, as what it lacks is not what the pool lacks.
	Rejoin bool
	// Keeps tells which segments this node's index has, in a pool of several nodes, if one's
	// fragment of that index lies on that spindle of the node; nil:
	// all. Others that lie on its spindles are not adopted.
	Keeps func(s id.Segment, index uint8, on id.Spindle) bool
	// Share reads in the node's registry what its part in a pool of several nodes is,
	// where that says that it has one (datanode.MemberKey): when the node is opened, and
	// when that changes. It takes the place of Keeps and Width. nil: such a node is not
	// opened.
	Share func(context.Context, datanode.RegistryNode) (Share, error)
	// Logger gets what an operator should know; slog.Default if nil.
	Logger *slog.Logger
	// FS is the file system; vfs.Default if nil.
	FS vfs.FS
}

// Validate returns an error for options out of bounds.
func (o Options) Validate() error {
	switch {
	case o.PoolID == [16]byte{}:
		return errors.New("a data node needs its pool's id")
	case o.Spindles < 0 || o.Spindles > spindlesMax:
		return fmt.Errorf("%d spindles: a data node has 1 to %d", o.Spindles, spindlesMax)
	case o.LogBytes != 0 && o.LogBytes < LogBytesMin:
		return fmt.Errorf("a log of %d bytes: the least is %d", o.LogBytes, LogBytesMin)
	case o.SpindleBytes != 0 && o.SpindleBytes < SpindleBytesMin:
		return fmt.Errorf("spindles of %d bytes: the least is %d", o.SpindleBytes, SpindleBytesMin)
	case o.Width < 0 || o.Width > datanode.WidthMax:
		return fmt.Errorf("stripes of %d fragments: at most %d", o.Width, datanode.WidthMax)
	case o.IndexCacheBytes < 0:
		return fmt.Errorf("an index cache of %d bytes", o.IndexCacheBytes)
	}
	return nil
}

func (o Options) logger() *slog.Logger {
	if o.Logger != nil {
		return o.Logger
	}
	return slog.Default()
}

func (o Options) fs() vfs.FS {
	if o.FS != nil {
		return o.FS
	}
	return vfs.Default
}

// sized returns what a new node on these drives is made as. ErrTooLarge if one
// has too little room.
func (o Options) sized(drives []drive) (superblock, error) {
	s := superblock{poolID: o.PoolID, spindles: o.spindles(), logBytes: o.LogBytes, spindleBytes: o.SpindleBytes}
	if s.logBytes == 0 {
		s.logBytes = max(LogBytesMin, min(LogBytesDefault, wholeMiB(drives[0].available/10)))
	}
	if s.spindleBytes == 0 {
		s.spindleBytes = SpindleBytesDefault
		for _, d := range drives {
			if d.spindles > 0 {
				s.spindleBytes = min(s.spindleBytes, wholeMiB(d.available/10*7/int64(d.spindles)))
			}
		}
		s.spindleBytes = max(s.spindleBytes, SpindleBytesMin)
	}
	for n, d := range drives {
		what, room := fmt.Sprintf("%d spindles of %d bytes", d.spindles, s.spindleBytes), d.available
		if n == 0 {
			what = fmt.Sprintf("a log of %d bytes and %s", s.logBytes, what)
			room -= s.logBytes
		}
		if room < 0 || d.spindles > 0 && room/int64(d.spindles) < s.spindleBytes {
			return superblock{}, fmt.Errorf("%w: %s do not fit in the %d bytes that are free on the file system of %s: choose smaller sizes or a larger file system",
				ErrTooLarge, what, d.available, d.path)
		}
	}
	return s, nil
}

func (o Options) spindles() int {
	if o.Spindles == 0 {
		return SpindlesDefault
	}
	return o.Spindles
}

func wholeMiB(bytes int64) int64 { return bytes &^ (1<<20 - 1) }

// agree returns an error where the options ask for another node than the
// superblock describes.
func (o Options) agree(s superblock) error {
	if o.PoolID != s.poolID {
		return fmt.Errorf("%w: it is of pool %x, not of pool %x", ErrForeign, s.poolID, o.PoolID)
	}
	if o.Spindles > s.spindles {
		return fmt.Errorf("the data node has %d spindles, not %d: leave the setting out; plinth spindle add adds one", s.spindles, o.Spindles)
	}
	for _, f := range []struct {
		name      string
		want, has int64
	}{
		{"bytes of log", o.LogBytes, s.logBytes},
		{"bytes per spindle", o.SpindleBytes, s.spindleBytes},
	} {
		if f.want != 0 && f.want != f.has {
			return fmt.Errorf("the data node was made with %d %s, not %d: it does not change its size; leave the setting out", f.has, f.name, f.want)
		}
	}
	return nil
}

func (o Options) keeps(s id.Segment, index uint8, on id.Spindle) bool {
	return o.Keeps == nil || o.Keeps(s, index, on)
}

// width returns the width of stripes over that many spindles.
func (o Options) width(spindles int) int {
	if o.Width != 0 {
		return o.Width
	}
	for _, w := range []int{10, 6, 3} {
		if spindles >= w {
			return w
		}
	}
	return spindles
}
