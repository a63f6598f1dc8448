package writelog

import (
	"context"
	"fmt"

	"github.com/cockroachdb/pebble/v2/vfs"

	"plinth/datanode"
	"plinth/internal/id"
)

// span is frames that lie behind each other in one file.
type span struct {
	f     vfs.File
	name  string
	salt  uint64
	off   uint32
	bytes int
	count int
}

// ReadLog implements datanode.LogNode. A position above the end is ErrInvalid; a
// BytesMax above AppendBytesMax counts as that. The replies' records share
// buffers, which are the caller's.
func (l *Log) ReadLog(ctx context.Context, r *datanode.ReadLogRequest) (*datanode.ReadLogReply, error) {
	if r.Stream >= datanode.Streams || r.BytesMax < 0 {
		return nil, datanode.Errorf(datanode.ErrInvalid, "read of stream %d, %d bytes", r.Stream, r.BytesMax)
	}
	if err := l.enter(ctx); err != nil {
		return nil, err
	}
	defer l.life.RUnlock()
	spans, err := l.plan(r)
	if err != nil {
		return nil, err
	}
	reply := &datanode.ReadLogReply{}
	for _, s := range spans {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if reply.Records, err = s.read(reply.Records, r); err != nil {
			// The slot may have another use by now, if the records were trimmed.
			if _, trimmed := l.plan(r); trimmed != nil {
				return nil, trimmed
			}
			return nil, err
		}
	}
	return reply, nil
}

// plan returns where the records lie that a request asks for.
func (l *Log) plan(r *datanode.ReadLogRequest) ([]span, error) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	d, err := l.disk(r.Disk, r.Epoch)
	if err != nil {
		return nil, err
	}
	t := &d.streams[r.Stream]
	switch {
	case r.From < t.first:
		return nil, datanode.Errorf(datanode.ErrNotFound, "disk %d, stream %d, position %d, first %d", r.Disk, r.Stream, r.From, t.first)
	case r.From > t.end:
		return nil, datanode.Errorf(datanode.ErrInvalid, "disk %d, stream %d, position %d, end %d", r.Disk, r.Stream, r.From, t.end)
	case r.From == t.end:
		return nil, nil
	}
	room := datanode.AppendBytesMax
	if r.BytesMax > 0 {
		room = min(room, r.BytesMax)
	}
	var spans []span
	count := 0
	for i := t.find(r.From); i < len(t.runs); i++ {
		at := t.runs[i].at
		if t.runs[i].start < r.From {
			at = at[r.From-t.runs[i].start:]
		}
		f := t.runs[i].file
		for _, p := range at {
			// A frame's padding counts as data here; so a page may be a little
			// smaller than asked for.
			if room -= int(p.size) - frameBytes; count == datanode.RecordsMax || room < 0 && count > 0 {
				return spans, nil
			}
			count++
			if n := len(spans); n > 0 && spans[n-1].f == f.f && int(spans[n-1].off)+spans[n-1].bytes == int(p.off) {
				spans[n-1].bytes += int(p.size)
				spans[n-1].count++
				continue
			}
			spans = append(spans, span{f.f, f.name, f.salt, p.off, int(p.size), 1})
		}
	}
	return spans, nil
}

// read appends the span's records to those of the request read before.
func (s *span) read(records []datanode.Record, r *datanode.ReadLogRequest) ([]datanode.Record, error) {
	b := make([]byte, s.bytes)
	if _, err := s.f.ReadAt(b, int64(s.off)); err != nil {
		return nil, datanode.Errorf(datanode.ErrCorrupt, "log file %s, offset %d: %v", s.name, s.off, err)
	}
	off := int64(s.off)
	for range s.count {
		f, data, err := parseFrame(b, s.salt)
		want := r.From + id.Pos(len(records))
		if err == nil && (!f.kind.isRecord() || f.disk != r.Disk || f.stream != r.Stream || f.pos != want) {
			err = fmt.Errorf("a record of disk %d, stream %d, position %d", f.disk, f.stream, f.pos)
		}
		if err != nil {
			return nil, datanode.Errorf(datanode.ErrCorrupt, "log file %s, offset %d: disk %d, stream %d, position %d: %v",
				s.name, off, r.Disk, r.Stream, want, err)
		}
		records = append(records, datanode.Record{Pos: f.pos, Type: f.typ, MAC: f.mac, Data: data, Epoch: f.epoch})
		b = b[f.size():]
		off += int64(f.size())
	}
	return records, nil
}
