package host

import (
	"strings"
	"testing"
	"time"

	"plinth/internal/id"
)

func TestScrubWait(t *testing.T) {
	const interval = 16 * time.Hour
	for _, x := range []struct {
		n, left  int64
		untilEnd time.Duration
		want     time.Duration
	}{
		{1, 16, 16 * time.Hour, time.Hour},
		{1, 2, 4 * time.Hour, 2 * time.Hour},
		{1, 2, -time.Hour, time.Hour},        // late: as if an eighth of the interval were left
		{5, 1, 3 * time.Hour, 3 * time.Hour}, // more than was thought to be left
		{0, 0, time.Hour, 0},
	} {
		if got := scrubWait(x.n, x.left, x.untilEnd, interval); got != x.want {
			t.Errorf("%+v: %v", x, got)
		}
	}
}

func TestScrubWarnings(t *testing.T) {
	began := time.Date(2026, 11, 20, 0, 0, 0, 0, time.UTC)
	s := ScrubStatus{
		Pass: &ScrubPass{Began: began.Add(24 * time.Hour), Damaged: map[id.Spindle]int64{3: 2}},
		Last: &ScrubPass{Began: began, Damaged: map[id.Spindle]int64{3: 1, 1: 4}},
	}
	got := s.warnings()
	if len(got) != 2 || !strings.HasPrefix(got[0], "spindle 1 has had 4") || !strings.HasPrefix(got[1], "spindle 3 has had 3 damaged fragments since 2026-11-20") {
		t.Errorf("%q", got)
	}
	if got := (&ScrubStatus{Pass: &ScrubPass{}}).warnings(); len(got) > 0 {
		t.Errorf("%q", got)
	}
}
