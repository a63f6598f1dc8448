package reclaim

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"plinth/datanode"
	"plinth/internal/id"
	"plinth/internal/stripe"
)

// parseState reads a state: free, spare and low in full segments, words, and a
// line for each segment: number, state, slots, live slots, sealed bytes.
func parseState(t *testing.T, text string) *State {
	t.Helper()
	states := map[string]datanode.State{
		"live": datanode.StateLive, "object": datanode.StateLive, "condemned": datanode.StateCondemned,
		"forwarded": datanode.StateForwarded, "deleting": datanode.StateDeleting,
	}
	s := &State{Geometry: stripe.Geometry{K: 2, M: 1}, Skip: map[id.Segment]bool{}}
	segment := packed(s.Geometry, id.SegmentBytesMax)
	head, rest, _ := strings.Cut(text, "\n")
	if _, err := fmt.Sscan(head, &s.Free, &s.Spare, &s.Low); err != nil {
		t.Fatalf("%q: %v", head, err)
	}
	s.Free, s.Spare, s.Low = s.Free*segment, s.Spare*segment, s.Low*segment
	s.Urgent, s.Full = strings.Contains(head, "urgent"), strings.Contains(head, "full")
	s.Keeper = func(l id.Layout) id.Node { return id.Node(l) }
	poor := make(map[id.Segment]bool)
	s.Poor = func(seg id.Segment) bool { return poor[seg] }
	for line := range strings.Lines(rest) {
		var number uint64
		var state string
		u := datanode.SegmentUse{Kind: datanode.KindChunks, SealedBytes: id.SegmentBytesMax}
		if n, err := fmt.Sscan(line, &number, &state, &u.Slots, &u.LiveSlots, &u.SealedBytes); n < 4 {
			t.Fatalf("%q: %v", line, err)
		}
		if state == "object" {
			u.Kind = datanode.KindObject
			s.Maps += u.SealedBytes
		}
		layout := id.Layout(0)
		if strings.Contains(line, "elsewhere") {
			layout = 1
		}
		u.Segment, u.State = id.MakeSegment(layout, number), states[state]
		u.StoredBytes = packed(s.Geometry, u.SealedBytes)
		s.Skip[u.Segment] = strings.Contains(line, "skip")
		poor[u.Segment] = strings.Contains(line, "poor")
		s.Segments = append(s.Segments, u)
	}
	return s
}

func TestDecide(t *testing.T) {
	for _, c := range []struct{ what, state, want, why string }{
		{"enough is free", "10 12 5\n1 live 100 10\n2 live 100 50", "", "enough space"},
		{
			"older first; all alive, objects and what is dead as a whole are left alone",
			"2 4 3\n1 live 100 60\n2 live 100 100\n3 object 1 1\n4 live 100 0\n5 live 100 60\n99 live 100 100", "1 5", "little space",
		},
		{"an old one with few dead before a new one with many", "2 4 3\n1 live 100 70\n999 live 100 40\n1000 live 100 100", "1 999", "little space"},
		{"who waits gets the emptiest", "0 1 3 urgent\n1 live 100 70\n999 live 100 40\n1000 live 100 90", "999", "somebody waits"},
		{"not without room", "0 0 3 urgent\n1 live 100 70\n999 live 100 60", "", "no room"},
		{"what lies poorly, whatever lives", "10 12 5\n1 live 100 100 8388608 poor\n2 live 100 50\n3 live 100 0 8388608 poor\n4 live 100 90 8388608 poor skip", "1", "a node's loss"},
		{"what lies poorly after what was condemned, before others", "2 4 3\n1 live 100 60\n2 condemned 100 100\n9 live 100 100 8388608 poor", "2* 1 9", "little space"},
		{"room for one", "0 1 3 urgent\n1 live 100 70\n999 live 100 60", "999", "somebody waits"},
		{"room for a checkpoint too", "0 1 3 urgent\n1 live 100 70\n5 object 1 1 4194304\n999 live 100 60", "", "no room"},
		{
			"what was condemned goes first, and on even if enough is free",
			"9 11 3\n1 live 100 20\n7 condemned 100 70\n8 condemned 100 0\n9 forwarded 100 50", "7*", "go on",
		},
		{"first what was condemned, then the rest", "2 5 3\n1 live 100 20\n7 condemned 100 70", "7* 1", "little space"},
		{
			"a full reclaim takes all with an eighth dead, oldest first",
			"20 22 3 full\n1 live 100 90\n2 live 100 87\n3 live 100 10\n4 live 100 0\n5 live 100 60", "2 3 5", "1/8 dead",
		},
		{"not those that cannot be emptied", "1 3 3\n2 live 100 20 8388608 skip\n3 live 100 40", "3", "little space"},
		{"nothing to gain", "1 3 3\n2 live 100 100\n3 live 100 100", "", "no segment"},
		{"a short one alone gains nothing", "20 22 3 full\n1 live 10 10 4096", "", "no gain"},
		{"many do", "20 22 3 full\n1 live 10 10 4096\n2 live 10 10 4096\n3 live 10 10 4096\n4 live 10 10 4096", "1 2 3 4", "1/8 dead"},
		{"not such of two keepers", "20 22 3 full\n1 live 10 10 4096\n2 live 10 10 4096 elsewhere", "", "no gain"},
		{
			"what one of two keepers gains by", "20 22 3 full\n1 live 10 10 4096\n2 live 10 10 4096\n3 live 10 10 4096 elsewhere\n4 live 10 10 4096",
			"1 2 4", "1/8 dead",
		},
		{"nothing is known", "0 0 0 urgent", "", "no segment"},
	} {
		s := parseState(t, c.state)
		p := Decide(s)
		var got []string
		for _, choice := range p.Condemn {
			name := fmt.Sprint(choice.Segment.Number())
			if choice.Resume {
				name += "*"
			}
			got = append(got, name)
		}
		if strings.Join(got, " ") != c.want || !strings.Contains(p.Why, c.why) {
			t.Errorf("%s: empties %q, want %q\n%s", c.what, strings.Join(got, " "), c.want, p)
		}
		if b, err := json.Marshal(p); err != nil || !json.Valid(b) {
			t.Errorf("%s: JSON %s, %v", c.what, b, err)
		}
	}
}

// TestTransitMax has more segments condemned than may be.
func TestTransitMax(t *testing.T) {
	lines := "1000 1000 2000\n"
	for i := range 2 * datanode.TransitMax {
		lines += fmt.Sprintf("%d live 100 10\n", i+1)
	}
	if p := Decide(parseState(t, lines)); len(p.Condemn) != datanode.TransitMax {
		t.Errorf("%d segments at a time", len(p.Condemn))
	}
	lines += "999 forwarded 100 10\n998 condemned 100 0\n"
	if p := Decide(parseState(t, lines)); len(p.Condemn) != datanode.TransitMax-2 {
		t.Errorf("%d segments beside 2 in transit", len(p.Condemn))
	}
}

func TestPlanText(t *testing.T) {
	p := Decide(parseState(t, "2 5 3\n1 live 100 20\n7 condemned 100 70"))
	want := `segment 0.000000000007: 12619776 bytes stored, 5872025 live, score 0.319, condemned before
segment 0.000000000001: 12619776 bytes stored, 1677721 live, score 12.5
2 segments, move 7549746 bytes, gain 13878069 bytes: little space: 25239552 bytes are free, 37859328 are to be
`
	if got := p.String(); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

func TestLow(t *testing.T) {
	for _, c := range [][3]int64{
		{1000, 0, 60}, {1000, 500, 60}, {1000, 800, 25}, {1000, 900, 12}, {1000, 1000, 0}, {1000, 1100, 0},
	} {
		if got := Low(c[0], c[1]); got != c[2] {
			t.Errorf("%d of %d live: %d, want %d", c[1], c[0], got, c[2])
		}
	}
}
