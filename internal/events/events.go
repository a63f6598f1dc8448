// Package events remembers what a process has logged of late, so that whoever asks its
// API learns what happened to which disk, segment or spindle without a search through
// the journal, which has all of it.
//
// It imports nothing of the project.
package events

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

const (
	// eventsMax is how many a Log remembers: the newest.
	eventsMax = 4096
	// textBytesMax bounds a message and each value; what is longer is cut.
	textBytesMax = 512
	// attrsMax bounds an event's attributes.
	attrsMax = 32
)

// Event is a line of the log.
type Event struct {
	// Number counts the process's events from 1.
	Number uint64    `json:"number"`
	Time   time.Time `json:"time"`
	// Level is INFO, WARN or ERROR.
	Level   string `json:"level"`
	Message string `json:"message"`
	// Attributes say what it is about: disk, segment, spindle, err and so on.
	Attributes []Attribute `json:"attributes,omitempty"`
}

// Attribute is a name and what it has.
type Attribute struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// Log remembers the newest events. Its methods may be called concurrently.
type Log struct {
	mu   sync.Mutex
	ring []Event // number n at (n-1) modulo eventsMax
	last uint64  // number of the newest
}

// After returns at most limit events with numbers above after, the oldest first, and
// the number of the newest that there is: less than after where another process
// counted.
func (l *Log) After(after uint64, limit int64) ([]Event, uint64) {
	if l == nil {
		return nil, 0
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	first := max(after, l.last-uint64(len(l.ring)))
	var out []Event
	for n := first + 1; n <= l.last && int64(len(out)) < limit; n++ {
		out = append(out, l.ring[(n-1)%eventsMax])
	}
	return out, l.last
}

func (l *Log) add(e Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.last++
	e.Number = l.last
	if len(l.ring) < eventsMax {
		l.ring = append(l.ring, e)
	} else {
		l.ring[(l.last-1)%eventsMax] = e
	}
}

// handler passes lines on and has a Log remember those of level info and above.
type handler struct {
	next  slog.Handler
	log   *Log
	attrs []Attribute
	group string // of what comes, with a point behind
}

// NewHandler returns a handler that passes on to next.
func NewHandler(next slog.Handler) slog.Handler { return handler{next: next, log: new(Log)} }

// Of returns what a logger by NewHandler remembers, nil for others.
func Of(log *slog.Logger) *Log {
	h, _ := log.Handler().(handler)
	return h.log
}

func (h handler) Enabled(ctx context.Context, level slog.Level) bool {
	return level >= slog.LevelInfo || h.next.Enabled(ctx, level)
}

func (h handler) Handle(ctx context.Context, r slog.Record) error {
	if r.Level >= slog.LevelInfo {
		e := Event{Time: r.Time, Level: r.Level.String(), Message: cut(r.Message), Attributes: h.attrs[:len(h.attrs):len(h.attrs)]}
		r.Attrs(func(a slog.Attr) bool {
			e.Attributes = appendAttr(e.Attributes, h.group, a)
			return true
		})
		h.log.add(e)
	}
	if !h.next.Enabled(ctx, r.Level) {
		return nil
	}
	return h.next.Handle(ctx, r)
}

func (h handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	h.next = h.next.WithAttrs(attrs)
	h.attrs = h.attrs[:len(h.attrs):len(h.attrs)]
	for _, a := range attrs {
		h.attrs = appendAttr(h.attrs, h.group, a)
	}
	return h
}

func (h handler) WithGroup(name string) slog.Handler {
	h.next = h.next.WithGroup(name)
	if name != "" {
		h.group += name + "."
	}
	return h
}

// appendAttr appends an attribute, or those of a group.
func appendAttr(to []Attribute, group string, a slog.Attr) []Attribute {
	value := a.Value.Resolve()
	if value.Kind() != slog.KindGroup {
		if len(to) == attrsMax || a.Equal(slog.Attr{}) {
			return to
		}
		return append(to, Attribute{cut(group + a.Key), cut(value.String())})
	}
	if a.Key != "" {
		group += a.Key + "."
	}
	for _, b := range value.Group() {
		to = appendAttr(to, group, b)
	}
	return to
}

func cut(s string) string {
	if len(s) > textBytesMax {
		return s[:textBytesMax-3] + "..."
	}
	return s
}
