package main

import (
	"maps"
	"testing"
	"time"
)

func TestParseSnapshot(t *testing.T) {
	for word, want := range map[string][2]string{"vm1@mon": {"vm1", "mon"}, "a@b@c": {"a", "b@c"}} {
		disk, snapshot, err := parseSnapshot(word)
		if err != nil || disk != want[0] || snapshot != want[1] {
			t.Errorf("%q: %q, %q, %v", word, disk, snapshot, err)
		}
	}
	for _, word := range []string{"", "vm1", "@", "vm1@", "@mon"} {
		if _, _, err := parseSnapshot(word); err == nil {
			t.Errorf("%q is taken for a snapshot", word)
		}
	}
}

func TestParseExpiry(t *testing.T) {
	now := time.Date(2031, 5, 6, 7, 8, 9, 0, time.UTC)
	day, err := time.ParseInLocation("2006-01-02", "2031-12-24", time.Local)
	if err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]time.Time{
		"90m": now.Add(90 * time.Minute), "7d": now.Add(7 * 24 * time.Hour), "2w": now.Add(14 * 24 * time.Hour),
		"36525d": now.Add(36525 * 24 * time.Hour), "2031-12-24": day,
	} {
		if got, err := parseExpiry(text, now); err != nil || !got.Equal(want) {
			t.Errorf("%q: %v, %v; want %v", text, got, err, want)
		}
	}
	for _, text := range []string{"", "d", "7", "-7d", "0d", "-1h", "36526d", "6000w", "99999999999999999999d", "7d12h", "2031-05-06", "2031-13-01", "soon"} {
		if got, err := parseExpiry(text, now); err == nil {
			t.Errorf("%q is taken for %v", text, got)
		}
	}
}

func TestLabels(t *testing.T) {
	got, err := parseLabels([]string{"b=2", "a=", "c=x=y"})
	if err != nil || !maps.Equal(got, map[string]string{"a": "", "b": "2", "c": "x=y"}) {
		t.Errorf("%v, %v", got, err)
	}
	if text := formatLabels(got); text != "a=,b=2,c=x=y" {
		t.Errorf("written %s", text)
	}
	if text := formatLabels(map[string]string{"a": "x\x1b[2J"}); text != `"a=x\x1b[2J"` {
		t.Errorf("written %s", text)
	}
	for _, words := range [][]string{{"a"}, {"=b"}, {"a=1", "a=2"}, {""}} {
		if got, err := parseLabels(words); err == nil {
			t.Errorf("%q are taken for %v", words, got)
		}
	}
}
