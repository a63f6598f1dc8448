package writelog

import (
	"fmt"
	"log/slog"

	"plinth/datanode"
)

const (
	// sizeBytesDefault is the log's size without SizeBytes.
	sizeBytesDefault = 4 << 30
	// spareSlots are never pinned (W4): one is for the next head, one for the
	// head after it while the first becomes free.
	spareSlots = 2
	slotsMin   = spareSlots + 2 // one file for data, one for marks
	slotsMax   = 1024           // each is an open file
	// fileBytesMin leaves room for headers, a snapshot and small records.
	fileBytesMin = 32 << 10
	fileBytesMax = 1 << 30
	// fileBytesWhole is the least that takes a record of RecordBytesMax.
	fileBytesWhole = 3 << 19
	// dataPercent of the capacity may be pinned by ClassData.
	dataPercent = 95
	// unsyncedBytesMax starts a sync without anybody asking, so that those which a
	// new file starts are short: appends wait if they last until that is full.
	unsyncedBytesMax = 2 << 20
)

// Options of a Log. SizeBytes and FileBytes count when the log is created; an
// existing log keeps what it was created with.
type Options struct {
	// Dir is the log's directory. It is made if it does not exist.
	Dir string
	// SizeBytes is what the log takes from the file system, at creation.
	// Default 4 GiB.
	SizeBytes int64
	// FileBytes is the size of one file: at least four fit in SizeBytes.
	// Default: a 64th of SizeBytes but 4 MiB to 64 MiB, and for a log below
	// 64 MiB a 16th but at least 1.5 MiB. Below 1.5 MiB (for tests) the largest
	// record is smaller than RecordBytesMax.
	FileBytes int64
	// PoolID must be that of the log's creation.
	PoolID [16]byte
	// BootID is recorded in each file.
	BootID [16]byte
	// Logger is told of cut tails and of the device's death. Default:
	// slog.Default().
	Logger *slog.Logger
}

// withDefaults fills in what is zero.
func (o Options) withDefaults() Options {
	if o.SizeBytes == 0 {
		o.SizeBytes = sizeBytesDefault
	}
	if o.FileBytes == 0 && o.SizeBytes < 64<<20 {
		o.FileBytes = max(o.SizeBytes/16, fileBytesWhole)
	} else if o.FileBytes == 0 {
		o.FileBytes = min(max(o.SizeBytes/64, 4<<20), 64<<20)
	}
	o.FileBytes &^= pageBytes - 1
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	return o
}

// Validate reports options out of their bounds.
func (o Options) Validate() error {
	o = o.withDefaults()
	if o.Dir == "" {
		return fmt.Errorf("log: no directory")
	}
	return o.geometry().validate()
}

func (o Options) geometry() geometry {
	return geometry{slots: int(min(o.SizeBytes/o.FileBytes, slotsMax)), fileBytes: o.FileBytes}
}

// geometry is the shape that a log is created with.
type geometry struct {
	slots     int
	fileBytes int64
}

func (g geometry) validate() error {
	if g.fileBytes < fileBytesMin || g.fileBytes > fileBytesMax || g.fileBytes%pageBytes != 0 {
		return fmt.Errorf("log: files of %d bytes: want %d to %d", g.fileBytes, fileBytesMin, fileBytesMax)
	}
	if g.slots < slotsMin || g.slots > slotsMax {
		return fmt.Errorf("log: %d files: want %d to %d", g.slots, slotsMin, slotsMax)
	}
	if g.disksMax() < 1 {
		return fmt.Errorf("log: %d files of %d bytes: too small to list the files", g.slots, g.fileBytes)
	}
	return nil
}

// capacity returns how many files may be pinned.
func (g geometry) capacity() int { return g.slots - spareSlots }

// pinnedMax returns how many files an append of the class may leave pinned. The
// last one is for results (W6).
func (g geometry) pinnedMax(s datanode.Stream, c datanode.Class) int {
	switch {
	case c == datanode.ClassData:
		return max(min(g.capacity()*dataPercent/100, g.capacity()-1), 1)
	case s == datanode.Ops:
		return g.capacity() - 1
	}
	return g.capacity()
}

// snapshotBytesMax bounds the frame of a snapshot.
func (g geometry) snapshotBytesMax() int64 { return g.fileBytes / 4 }

// disksMax returns how many disks' logs a snapshot can describe.
func (g geometry) disksMax() int {
	room := g.snapshotBytesMax() - frameBytes - snapshotHeadBytes - int64(g.slots)*snapshotFileBytes
	return int(room / snapshotDiskBytes)
}

// room returns how many bytes of frames any new file takes.
func (g geometry) room() int64 { return g.fileBytes - dataStart - g.snapshotBytesMax() }

// recordMax returns the largest data of a record, in bytes.
func (g geometry) recordMax() int {
	return int(min(datanode.RecordBytesMax, g.room()-2*frameBytes-frameAlign))
}
