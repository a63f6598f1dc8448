package writelog

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"sync"

	"plinth/datanode"
	"plinth/internal/id"
)

// pooledBytesMax bounds the buffers that are kept for the next append: the
// largest append fits.
const pooledBytesMax = datanode.AppendBytesMax + datanode.RecordsMax*(frameBytes+frameAlign)

// buffers holds *[]byte for frames on their way to a file.
var buffers = sync.Pool{New: func() any { return new([]byte) }}

func release(b *[]byte) {
	if cap(*b) <= pooledBytesMax {
		*b = (*b)[:0]
		buffers.Put(b)
	}
}

// Append implements datanode.LogNode. A crash in the middle of an append may
// leave a prefix of its records.
func (l *Log) Append(ctx context.Context, r *datanode.AppendRequest) (*datanode.AppendReply, error) {
	if err := l.checkAppend(r); err != nil {
		return nil, err
	}
	if err := l.enter(ctx); err != nil {
		return nil, err
	}
	defer l.life.RUnlock()
	return l.frames(r, kindRecord)
}

// frames makes frames of the records and appends them.
func (l *Log) frames(r *datanode.AppendRequest, k kind) (*datanode.AppendReply, error) {
	// Copying and summing need no lock; the header's checksum, which needs the
	// file, is cheap.
	buf := buffers.Get().(*[]byte)
	defer release(buf)
	total := 0
	for i := range r.Records {
		total += frameSize(len(r.Records[i].Data))
	}
	b := slices.Grow(*buf, total)
	for i := range r.Records {
		rec := &r.Records[i]
		epoch := r.Epoch
		if k == kindCopy {
			epoch = rec.Epoch
		}
		b = appendFrame(b, &frame{
			kind: k, stream: r.Stream, typ: rec.Type, disk: r.Disk, epoch: epoch, pos: rec.Pos, mac: rec.MAC,
		}, rec.Data)
	}
	*buf = b
	return l.append(r, b)
}

func (l *Log) checkAppend(r *datanode.AppendRequest) error {
	if r.Stream >= datanode.Streams || r.Class > datanode.ClassMark {
		return datanode.Errorf(datanode.ErrInvalid, "append to stream %d, class %d", r.Stream, r.Class)
	}
	if len(r.Records) == 0 || len(r.Records) > datanode.RecordsMax {
		return datanode.Errorf(datanode.ErrInvalid, "append of %d records: want 1 to %d", len(r.Records), datanode.RecordsMax)
	}
	total := 0
	for i := range r.Records {
		rec := &r.Records[i]
		if rec.Pos != r.Records[0].Pos+id.Pos(i) {
			return datanode.Errorf(datanode.ErrInvalid, "append: position %d after %d", rec.Pos, r.Records[i-1].Pos)
		}
		if len(rec.Data) > l.recordMax() {
			return datanode.Errorf(datanode.ErrInvalid, "append: record of %d bytes, most are %d", len(rec.Data), l.recordMax())
		}
		total += len(rec.Data)
	}
	if total > datanode.AppendBytesMax {
		return datanode.Errorf(datanode.ErrInvalid, "append of %d bytes, most are %d", total, datanode.AppendBytesMax)
	}
	return nil
}

// append writes the frames b of the request's records.
func (l *Log) append(r *datanode.AppendRequest, b []byte) (*datanode.AppendReply, error) {
	l.writing.Lock()
	defer l.writing.Unlock()
	if err := l.alive(); err != nil {
		return nil, err
	}
	d, err := l.disk(r.Disk, r.Epoch)
	if err != nil {
		return nil, err
	}
	t := &d.streams[r.Stream]
	if first := r.Records[0].Pos; first != t.end {
		return nil, datanode.Errorf(datanode.ErrPosition, "disk %d, stream %d, position %d, end %d", r.Disk, r.Stream, first, t.end)
	}
	if pinned, most := l.pinnedAfter(b), l.pinnedMax(r.Stream, r.Class); pinned > most {
		u := l.usage()
		return nil, datanode.Errorf(datanode.ErrLogFull, "%d of %d bytes used", u.UsedBytes, u.CapacityBytes)
	}
	for len(b) > 0 {
		n := prefix(b, l.fileBytes-int64(l.head.end))
		if n == 0 {
			if err := l.roll(); err != nil {
				return nil, err
			}
			continue
		}
		off, err := l.put(b[:n])
		if err != nil {
			return nil, err
		}
		l.mu.Lock()
		for part := b[:n]; len(part) > 0; {
			size := sealedSize(part)
			l.state.record(t, l.head, place{off, uint32(size)})
			off += uint32(size)
			part = part[size:]
		}
		l.mu.Unlock()
		b = b[n:]
	}
	return &datanode.AppendReply{Log: l.usage()}, nil
}

// prefix returns how many bytes of whole frames of b fit in room.
func prefix(b []byte, room int64) int {
	if int64(len(b)) <= room {
		return len(b)
	}
	n := 0
	for n < len(b) {
		size := sealedSize(b[n:])
		if int64(n+size) > room {
			break
		}
		n += size
	}
	return n
}

// pinnedAfter returns how many files would be pinned after records of these
// frames.
func (l *Log) pinnedAfter(b []byte) int {
	pinned := l.state.pinned
	n := prefix(b, l.fileBytes-int64(l.head.end))
	if n > 0 && l.head.live == 0 {
		pinned++
	}
	for b = b[n:]; len(b) > 0; b = b[n:] {
		n = prefix(b, l.room())
		pinned++
	}
	return pinned
}

// control writes one control frame and then lets apply change the state. The
// caller holds writing.
func (l *Log) control(f *frame, data []byte, apply func(at birth)) error {
	if err := l.alive(); err != nil {
		return err
	}
	if int64(frameSize(len(data))) > l.fileBytes-int64(l.head.end) {
		if err := l.roll(); err != nil {
			return err
		}
	}
	off, err := l.put(appendFrame(nil, f, data))
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	apply(birth{l.head.seq, off})
	return nil
}

// put writes frames to the head, where they fit, and returns where they begin.
// The caller holds writing.
func (l *Log) put(b []byte) (off uint32, err error) {
	if err := l.write(b); err != nil {
		return 0, err
	}
	l.mu.Lock()
	off = l.head.end
	l.head.end += uint32(len(b))
	written := l.written.Add(uint64(len(b)))
	l.mu.Unlock()
	if written-l.synced.Load() > unsyncedBytesMax {
		l.flusher.nudge()
	}
	return off, nil
}

func (l *Log) write(b []byte) error {
	stable := l.head.stable.Load()
	seal(b, l.head.salt, stable)
	if _, err := l.head.f.WriteAt(b, int64(l.head.end)); err != nil {
		return l.die(fmt.Errorf("write %s at %d: %w", l.head.name, l.head.end, err))
	}
	l.head.told = stable
	return nil
}

// mark tells what is stable of the head, unless a frame has told it.
func (l *Log) mark() error {
	l.writing.Lock()
	defer l.writing.Unlock()
	if l.dead.Load() != nil || l.head.told == l.head.stable.Load() || int64(l.head.end)+frameBytes > l.fileBytes {
		return nil
	}
	if err := l.write(appendFrame(nil, &frame{kind: kindMark}, nil)); err != nil {
		return err
	}
	l.mu.Lock()
	l.head.end += frameBytes
	l.mu.Unlock()
	return nil
}

// roll begins a new file and has what was written made stable soon. It waits for
// that only where the file before the full one is not stable yet (W2). The caller
// holds writing.
func (l *Log) roll() error {
	l.mu.RLock()
	old, wait := l.head, l.prev != nil
	l.mu.RUnlock()
	if wait {
		if err := l.syncHead(); err != nil {
			return err
		}
	}
	h := header{seq: 1, early: true, pool: l.opts.PoolID, boot: l.opts.BootID, fileSize: uint64(l.fileBytes)}
	if old != nil {
		h.prevSeq, h.prevEnd = old.seq, old.end
	}
	var next *file
	for _, f := range l.files {
		h.seq = max(h.seq, f.seq+1)
		// The newest of the free: its pages may still be in memory, and an idle part
		// of the log stays out of it.
		if f != old && !f.listed && f.live == 0 && (next == nil || f.seq > next.seq) {
			next = f
		}
	}
	if next == nil {
		return l.die(errors.New("no slot is free for a new file"))
	}
	var salt [8]byte
	rand.Read(salt[:]) // never fails
	h.salt, h.slot = le.Uint64(salt[:]), uint32(next.slot)
	b := l.newFile(&h)
	if _, err := next.f.WriteAt(b, 0); err != nil {
		return l.die(fmt.Errorf("write %s: %w", next.name, err))
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, f := range l.files {
		f.listed = f.live > 0
	}
	next.seq, next.salt, next.end, next.told = h.seq, h.salt, uint32(len(b)), 0
	next.stable.Store(0)
	l.head, l.prev = next, old
	l.flusher.nudge()
	return nil
}

// newFile returns the first bytes of a file: both headers and the snapshot.
func (l *Log) newFile(h *header) []byte {
	b := make([]byte, dataStart)
	copy(b, h.encode())
	copy(b[pageBytes:], h.encode())
	b = appendFrame(b, &frame{kind: kindSnapshot}, l.state.appendSnapshot(nil, l.pinnedFiles()))
	seal(b[dataStart:], h.salt, 0)
	return b
}

// pinnedFiles lists the files with live records by sequence.
func (l *Log) pinnedFiles() []fileRef {
	var refs []fileRef
	for _, f := range l.files {
		if f.live > 0 {
			refs = append(refs, fileRef{uint32(f.slot), f.end, f.seq, f.salt})
		}
	}
	slices.SortFunc(refs, func(a, b fileRef) int { return cmp.Compare(a.seq, b.seq) })
	return refs
}

// die ends all writing, for good: what a device that failed once still holds is
// for a restart to find out. It returns ErrDead.
func (l *Log) die(cause error) error {
	err := datanode.Errorf(datanode.ErrDead, "log %s: %v", l.opts.Dir, cause)
	if l.dead.CompareAndSwap(nil, err) {
		l.opts.Logger.Error("log: device has failed; nothing more is acknowledged", "dir", l.opts.Dir, "err", cause)
	}
	return l.dead.Load()
}

// alive returns ErrDead after the first failure.
func (l *Log) alive() error {
	if err := l.dead.Load(); err != nil {
		return err
	}
	return nil
}
