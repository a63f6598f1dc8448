package events

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
)

func TestLinesAreRememberedAndPassedOn(t *testing.T) {
	var out bytes.Buffer
	log := slog.New(NewHandler(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelWarn})))
	log.Debug("nobody wants this")
	log.Info("a disk moved", "disk", "vm1")
	log.With("spindle", 3).WithGroup("of").Warn("damage", slog.Group("segment", "layout", 1, "number", 2), "err", errors.New("bad"))
	if s := out.String(); strings.Contains(s, "moved") || !strings.Contains(s, "of.segment.layout=1") {
		t.Errorf("the handler behind has %q", s)
	}
	all, last := Of(log).After(0, 10)
	if len(all) != 2 || last != 2 {
		t.Fatalf("%d events, the last %d: %+v", len(all), last, all)
	}
	if e := all[0]; e.Number != 1 || e.Level != "INFO" || e.Message != "a disk moved" || fmt.Sprint(e.Attributes) != "[{disk vm1}]" {
		t.Errorf("%+v", e)
	}
	if e := all[1]; e.Level != "WARN" || fmt.Sprint(e.Attributes) != "[{spindle 3} {of.segment.layout 1} {of.segment.number 2} {of.err bad}]" {
		t.Errorf("%+v", e)
	}
	if all, _ := Of(log).After(1, 10); len(all) != 1 || all[0].Number != 2 {
		t.Errorf("after 1: %+v", all)
	}
	if all, last := Of(log).After(7, 10); len(all) != 0 || last != 2 {
		t.Errorf("after 7: %+v, %d", all, last)
	}
	if Of(slog.New(slog.DiscardHandler)) != nil {
		t.Error("another handler has events")
	}
}

func TestOnlyTheNewestAreKept(t *testing.T) {
	log := slog.New(NewHandler(slog.DiscardHandler))
	const each, writers = 1500, 4
	var all sync.WaitGroup
	for range writers {
		all.Go(func() {
			for range each {
				log.Warn(strings.Repeat("long", 1000))
			}
		})
	}
	all.Wait()
	got, last := Of(log).After(0, each*writers)
	if last != each*writers || len(got) != eventsMax {
		t.Fatalf("%d events, the last %d", len(got), last)
	}
	for i, e := range got {
		if e.Number != last-uint64(eventsMax-1-i) || len(e.Message) != textBytesMax {
			t.Fatalf("event %d has number %d and %d bytes", i, e.Number, len(e.Message))
		}
	}
	if got, _ := Of(log).After(last-5, 2); len(got) != 2 || got[0].Number != last-4 {
		t.Errorf("two of the last five: %+v", got)
	}
}
