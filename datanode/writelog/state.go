package writelog

import (
	"cmp"
	"slices"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2/vfs"

	"plinth/datanode"
	"plinth/internal/id"
)

// file is a slot and its present use. The fields after f change only while the
// slot is free, or as they say.
type file struct {
	slot int
	name string
	f    vfs.File

	seq, salt uint64 // 0: never used
	end       uint32 // where the next frame goes
	live      int    // live records
	// listed: the head's snapshot names it, so that it must not be used again
	// (W3).
	listed bool
	// stable bytes are on stable media.
	stable atomic.Uint32
	// told is the largest stable that a frame of the file tells.
	told uint32
}

// place is where a frame lies in its file.
type place struct{ off, size uint32 }

// run is a stream's live records in one file, consecutive from start on.
type run struct {
	file  *file
	start id.Pos
	at    []place
}

// end returns the position after the run's last.
func (r *run) end() id.Pos { return r.start + id.Pos(len(r.at)) }

// stream holds positions first to end-1; its runs follow each other without
// gaps.
type stream struct {
	first, end id.Pos
	runs       []run
	bytes      int64 // of live frames
}

// birth is where a disk's first fence lies: an older record of the same disk
// belongs to a log that was dropped.
type birth struct {
	seq uint64
	off uint32
}

func (b birth) compare(c birth) int {
	return cmp.Or(cmp.Compare(b.seq, c.seq), cmp.Compare(b.off, c.off))
}

type disk struct {
	epoch   id.Epoch
	born    birth
	turn    uint64 // of the newest JoinLog, 0 for none since the log was opened
	streams [datanode.Streams]stream
}

// state is what the frames of the log amount to. Its methods are the only ones
// that change it, at run time as after a crash.
type state struct {
	disks  map[id.Disk]*disk
	pinned int // files with live records
}

func newState() *state { return &state{disks: map[id.Disk]*disk{}} }

// fence sets a disk's epoch and raises its ends to floor. Records below a floor
// that is above the end were superseded where the log was lost: they are given
// up, since a stream has no gaps.
func (s *state) fence(number id.Disk, epoch id.Epoch, floor [datanode.Streams]id.Pos, at birth) *disk {
	d := s.disks[number]
	if d == nil {
		d = &disk{born: at}
		for i := range d.streams {
			d.streams[i].first, d.streams[i].end = 1, 1
		}
		s.disks[number] = d
	}
	d.epoch = epoch
	for i := range d.streams {
		if t := &d.streams[i]; floor[i] > t.end {
			s.trim(t, t.end-1)
			t.first, t.end = floor[i], floor[i]
		}
	}
	return d
}

// record adds the record at the stream's end.
func (s *state) record(t *stream, f *file, at place) {
	s.place(t, t.end, f, at)
	t.end++
}

// place says where the record at pos, which follows the last of the runs, lies.
func (s *state) place(t *stream, pos id.Pos, f *file, at place) {
	if n := len(t.runs); n == 0 || t.runs[n-1].file != f {
		t.runs = append(t.runs, run{file: f, start: pos})
	}
	last := &t.runs[len(t.runs)-1]
	last.at = append(last.at, at)
	t.bytes += int64(at.size)
	if f.live++; f.live == 1 {
		s.pinned++
	}
}

// trim gives up the records through a position below the end.
func (s *state) trim(t *stream, through id.Pos) {
	if through < t.first {
		return
	}
	t.first = through + 1
	for len(t.runs) > 0 && t.runs[0].start <= through {
		r := &t.runs[0]
		n := min(int(through-r.start)+1, len(r.at))
		for _, at := range r.at[:n] {
			t.bytes -= int64(at.size)
		}
		r.file.live -= n
		if r.file.live == 0 {
			s.pinned--
		}
		if n == len(r.at) {
			t.runs = slices.Delete(t.runs, 0, 1)
			continue
		}
		r.start += id.Pos(n)
		r.at = r.at[n:]
	}
}

func (s *state) drop(number id.Disk) {
	d := s.disks[number]
	for i := range d.streams {
		s.trim(&d.streams[i], d.streams[i].end-1)
	}
	delete(s.disks, number)
}

// whole reports whether the runs hold exactly first to end-1, and if not, the
// first position that is missing.
func (t *stream) whole() (missing id.Pos, ok bool) {
	next := t.first
	for _, r := range t.runs {
		if r.start != next {
			return next, false
		}
		next += id.Pos(len(r.at))
	}
	return next, next == t.end
}

// find returns the index of the run that holds a live position.
func (t *stream) find(pos id.Pos) int {
	i, exact := slices.BinarySearchFunc(t.runs, pos, func(r run, p id.Pos) int { return cmp.Compare(r.start, p) })
	if exact {
		return i
	}
	return i - 1
}

// resets reports whether the streams can go on at these positions. Lower ones move
// the birth, which both streams share, so that no older record is taken for one of
// theirs.
func (d *disk) resets(next [datanode.Streams]id.Pos) bool {
	if next == [datanode.Streams]id.Pos{} {
		return false
	}
	if !slices.Contains(next[:], 0) {
		return true
	}
	for i := range next {
		if next[i] != 0 && next[i] <= d.streams[i].end {
			return false
		}
	}
	return true
}

// reset empties streams and says where they go on. The turn is over then: a copy of
// the call that comes later is refused.
func (s *state) reset(number id.Disk, next [datanode.Streams]id.Pos, at birth) {
	epoch := s.disks[number].epoch
	if !slices.Contains(next[:], 0) {
		s.drop(number)
	}
	s.fence(number, epoch, next, at).turn = 0
}

// status describes every stream, by disk. oldest is the lowest sequence of a
// pinned file.
func (s *state) status(oldest uint64) []datanode.LogStreamStatus {
	all := make([]datanode.LogStreamStatus, 0, len(s.disks)*datanode.Streams)
	for number, d := range s.disks {
		for i := range d.streams {
			t := &d.streams[i]
			all = append(all, datanode.LogStreamStatus{
				Disk: number, Stream: datanode.Stream(i), Epoch: d.epoch, First: t.first, End: t.end, Bytes: t.bytes,
				Pins: len(t.runs) > 0 && t.runs[0].file.seq == oldest,
			})
		}
	}
	slices.SortFunc(all, func(a, b datanode.LogStreamStatus) int {
		return cmp.Or(cmp.Compare(a.Disk, b.Disk), cmp.Compare(a.Stream, b.Stream))
	})
	return all
}
