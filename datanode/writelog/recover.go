package writelog

import (
	"errors"
	"fmt"
	"io"
	"slices"

	"plinth/datanode"
	"plinth/internal/vfsx"
)

// recovery reads what a log holds into its state.
type recovery struct {
	*Log
	headers []header  // by slot
	bad     [][]int64 // by slot: where a copy of the header is bad
	content []byte    // of the file being read
}

// damage is the error for bytes that were stable and are not what they were.
func damage(name string, off int, format string, args ...any) error {
	return datanode.Errorf(datanode.ErrCorrupt, "log file %s, offset %d: %s", name, off, fmt.Sprintf(format, args...))
}

// recover fills state, files and head from the slots, and then repairs headers.
// A log without any whole snapshot is empty, and has no head.
func (l *Log) recover() error {
	r := &recovery{Log: l, content: make([]byte, l.fileBytes)}
	if err := r.read(); err != nil {
		return err
	}
	for slot, f := range l.files {
		if len(r.bad[slot]) > 0 {
			l.opts.Logger.Info("log: repairs a header", "file", f.name, "offsets", r.bad[slot])
		}
		if err := repair(f, r.headers[slot], r.bad[slot]); err != nil {
			return err
		}
		// A frame whose last zeros were cut off is whole to recovery, and must be
		// to ReadLog.
		if err := vfsx.Extend(f.f, l.fileBytes); err != nil {
			return fmt.Errorf("extend log file %s: %w", f.name, err)
		}
	}
	return nil
}

func (r *recovery) read() error {
	newest := -1
	for _, f := range r.files {
		h, bad, err := readHeader(f.f)
		switch {
		case errors.Is(err, errNoFrame):
			return damage(f.name, 0, "both copies of the header are bad")
		case err != nil:
			return fmt.Errorf("log file %s, offset 0: %w", f.name, err)
		case h.seq != 0 && (h.pool != r.opts.PoolID || int(h.slot) != f.slot || h.fileSize != uint64(r.fileBytes)):
			return damage(f.name, 0, "header of pool %x, slot %d, %d bytes", h.pool, h.slot, h.fileSize)
		}
		f.seq, f.salt = h.seq, h.salt
		r.headers, r.bad = append(r.headers, h), append(r.bad, bad)
		if h.seq != 0 && (newest < 0 || h.seq > r.headers[newest].seq) {
			newest = f.slot
		}
	}
	// A file whose snapshot is torn, or that began early after one that is, holds
	// nothing that was stable. Else the head before it was stable through prevEnd
	// before the file began (W2).
	need := 0
	for newest >= 0 {
		f := r.files[newest]
		whole, err := r.readHead(f, need)
		if err != nil || whole {
			return err
		}
		r.opts.Logger.Info("log: skips a file that a crash kept from beginning", "file", f.name, "seq", f.seq)
		h := r.headers[newest]
		if h.prevSeq == 0 {
			return nil
		}
		newest, need = r.slotOf(h.prevSeq), int(h.prevEnd)
		if h.early {
			need = 0 // its own frames tell
		}
		if newest < 0 {
			return damage(f.name, 0, "the file before it, number %d, is missing", h.prevSeq)
		}
	}
	return nil
}

func (r *recovery) slotOf(seq uint64) int {
	for slot, h := range r.headers {
		if h.seq == seq {
			return slot
		}
	}
	return -1
}

// readHead reads the newest file and all that its snapshot names. It reports
// whether the snapshot is whole. The file is known to be stable through need.
func (r *recovery) readHead(f *file, need int) (whole bool, err error) {
	if err := r.load(f, int(r.fileBytes)); err != nil {
		return false, err
	}
	head, data, err := parseFrame(r.content[dataStart:], f.salt)
	if err != nil || head.kind != kindSnapshot {
		return false, r.tornAt(f, dataStart, need, err)
	}
	state, refs, err := parseSnapshot(data, r.geometry)
	if err != nil {
		return false, damage(f.name, dataStart, "%v", err)
	}
	if torn, err := r.prevTorn(f, refs); torn || err != nil {
		return false, err
	}
	r.state = state
	for _, ref := range refs {
		if err := r.readPinned(ref); err != nil {
			return false, err
		}
	}
	for number, d := range state.disks {
		for i := range d.streams {
			if pos, ok := d.streams[i].whole(); !ok {
				return false, damage(f.name, dataStart, "disk %d, stream %d: position %d is in no file", number, i, pos)
			}
		}
	}
	if err := r.load(f, int(r.fileBytes)); err != nil {
		return false, err
	}
	r.head = f
	if seq := r.headers[f.slot].prevSeq; seq != 0 {
		if slot := r.slotOf(seq); slot >= 0 {
			r.prev = r.files[slot] // a process that died may have left both unsynced
		}
	}
	f.end = uint32(dataStart + head.size())
	for {
		off := int(f.end)
		rec, data, err := parseFrame(r.content[off:], f.salt)
		if err != nil {
			return true, r.tornAt(f, off, need, err)
		}
		if err := r.replay(f, &rec, data); err != nil {
			return false, damage(f.name, off, "%v", err)
		}
		f.end += uint32(rec.size())
	}
}

// prevTorn reports that the file before f lost its tail, where f began before that
// was stable and no frame of f, which is loaded, tells that it is since.
func (r *recovery) prevTorn(f *file, refs []fileRef) (bool, error) {
	h := r.headers[f.slot]
	i := slices.IndexFunc(refs, func(ref fileRef) bool { return ref.seq == h.prevSeq })
	if !h.early || i < 0 {
		return false, nil
	}
	if _, ok := provenStable(r.content, f.salt, 0); ok {
		return false, nil
	}
	prev, end := r.files[refs[i].slot], int(refs[i].end)
	if prev.seq != refs[i].seq || prev.salt != refs[i].salt {
		return false, nil // which readPinned judges
	}
	if err := r.load(prev, end); err != nil {
		return false, err
	}
	for off := dataStart; off < end; {
		rec, _, err := parseFrame(r.content[off:end], prev.salt)
		if err != nil {
			return errors.Is(err, errNoFrame), nil
		}
		off += rec.size()
	}
	return false, nil
}

// tornAt tells the torn tail, which is nil, from damage and from what a newer
// version wrote.
func (r *recovery) tornAt(f *file, off, need int, cause error) error {
	if errors.Is(cause, errUnsupported) {
		return fmt.Errorf("log file %s, offset %d: %w", f.name, off, cause)
	}
	if need > off {
		return damage(f.name, off, "bad frame; the file after it says that it was stable through %d", need)
	}
	if at, ok := provenStable(r.content, f.salt, off); ok {
		return damage(f.name, off, "bad frame; the one at %d says that it was stable", at)
	}
	if off+frameBytes <= len(r.content) && le.Uint64(r.content[off+8:]) == f.salt {
		r.opts.Logger.Info("log: cuts a torn tail", "file", f.name, "offset", off)
	}
	return nil
}

// readPinned reads the records of a file that the snapshot names, all of them
// stable.
func (r *recovery) readPinned(ref fileRef) error {
	f := r.files[ref.slot]
	if f.seq != ref.seq || f.salt != ref.salt {
		return damage(f.name, 0, "file number %d where number %d is needed", f.seq, ref.seq)
	}
	if err := r.load(f, int(ref.end)); err != nil {
		return err
	}
	f.end, f.listed = ref.end, true
	for off := dataStart; off < int(ref.end); {
		rec, data, err := parseFrame(r.content[off:ref.end], f.salt)
		if err != nil {
			return damage(f.name, off, "%v; the file is valid through %d", err, ref.end)
		}
		if rec.kind.isRecord() {
			if err := r.collect(f, &rec, len(data), off); err != nil {
				return damage(f.name, off, "%v", err)
			}
		}
		off += rec.size()
	}
	return nil
}

// collect takes a record of an older file if it is still live.
func (r *recovery) collect(f *file, rec *frame, bytes, off int) error {
	d := r.state.disks[rec.disk]
	if d == nil || d.born.compare(birth{f.seq, uint32(off)}) > 0 {
		return nil
	}
	t := &d.streams[rec.stream]
	if rec.pos < t.first || rec.pos >= t.end {
		return nil
	}
	next := t.first
	if n := len(t.runs); n > 0 {
		next = t.runs[n-1].end()
	}
	if rec.pos != next {
		return fmt.Errorf("disk %d, stream %d: position %d where %d is needed", rec.disk, rec.stream, rec.pos, next)
	}
	r.state.place(t, rec.pos, f, place{uint32(off), uint32(frameSize(bytes))})
	return nil
}

// replay applies a frame of the newest file.
func (r *recovery) replay(f *file, rec *frame, data []byte) error {
	at := birth{f.seq, f.end}
	if rec.kind == kindMark {
		return nil
	}
	d := r.state.disks[rec.disk]
	if rec.kind == kindFence {
		floor, err := parseFence(data)
		if err != nil {
			return err
		}
		if rec.disk == 0 || rec.epoch == 0 || d != nil && rec.epoch <= d.epoch {
			return fmt.Errorf("fence of disk %d with epoch %d", rec.disk, rec.epoch)
		}
		r.state.fence(rec.disk, rec.epoch, floor, at)
		return nil
	}
	if d == nil || d.epoch != rec.epoch && (rec.kind != kindCopy || rec.epoch > d.epoch) {
		return fmt.Errorf("disk %d has no epoch %d", rec.disk, rec.epoch)
	}
	t := &d.streams[rec.stream]
	switch {
	case rec.kind.isRecord() && rec.pos == t.end:
		r.state.record(t, f, place{f.end, uint32(rec.size())})
	case rec.kind == kindTrim && rec.pos < t.end:
		r.state.trim(t, rec.pos)
	case rec.kind == kindDrop:
		r.state.drop(rec.disk)
	case rec.kind == kindReset:
		next, err := parseFence(data)
		if err != nil {
			return err
		}
		if !d.resets(next) {
			return fmt.Errorf("disk %d goes on at %d", rec.disk, next)
		}
		r.state.reset(rec.disk, next, at)
	default:
		return fmt.Errorf("frame of kind %d, disk %d, stream %d, position %d, end %d", rec.kind, rec.disk, rec.stream, rec.pos, t.end)
	}
	return nil
}

// load reads the first n bytes of a file into content. What a short file lacks
// is zeros, which are no frames.
func (r *recovery) load(f *file, n int) error {
	got, err := io.ReadFull(io.NewSectionReader(f.f, 0, int64(n)), r.content[:n])
	clear(r.content[got:])
	if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
		return datanode.Errorf(datanode.ErrCorrupt, "log file %s, offset %d: %v", f.name, got, err)
	}
	return nil
}
