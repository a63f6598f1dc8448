package host_test

import (
	"bytes"
	"slices"
	"testing"
	"time"

	"plinth/internal/id"
)

// rebuilt waits until a host's status says that spindles are whole again.
func (m *member) rebuilt(spindles ...id.Spindle) {
	m.r.Helper()
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(20 * time.Millisecond) {
		st, err := m.Status(m.r.Context())
		m.r.ok(err)
		if st.Rebuild.Ended != nil && slices.Equal(st.Rebuild.Restored, spindles) {
			if st.Rebuild.LostSegments > 0 {
				m.r.Errorf("lost: %+v", st.Rebuild.Lost)
			}
			return
		}
		if time.Now().After(deadline) {
			m.r.Fatalf("not rebuilt: %+v, %q", st.Rebuild, st.Warnings)
		}
	}
}

// TestSimHostNodeMadeAnew has a node come back empty under its number: its spindles get their
// fragments, its index the segments that it keeps, and logs their copies. After it
// another node may go.
func TestSimHostNodeMadeAnew(t *testing.T) {
	s := openShelves(t)
	a, content := s.begin()
	old := bytes.Clone(content)
	copy(content[1<<20:], noise(2, 2<<20))
	a.writeAt("one", content[1<<20:3<<20], 1<<20)
	a.settled()
	s.inSync(3)
	copy(content[4<<20:], noise(3, 1<<20))
	a.writeAt("one", content[4<<20:5<<20], 4<<20) // in the log alone
	before := a.stored()

	s.Stop(2)
	a.has("one", content)
	s.Renew(2)
	a.rebuilt(8, 9, 10, 11)
	s.inSync(3)
	a.has("one", content)
	a.settled()
	st, err := a.Status(t.Context())
	s.ok(err)
	if !st.Node.Index.Complete {
		t.Error("the index is not complete after every disk has passed")
	}
	if after := a.stored(); after < before {
		t.Errorf("%d bytes are stored, %d were before", after, before)
	}
	s.ok(a.Close())

	s.Away(1)
	b := s.on("b")
	b.has("one", content)
	b.has("one@s", old)
	copy(content[6<<20:], noise(4, 1<<20))
	b.writeAt("one", content[6<<20:7<<20], 6<<20)
	s.ok(b.Quiesce(t.Context()))
	b.has("one", content)
	s.Back(1)
	s.inSync(3)
	b.settled()
}

// A drive is replaced while a node is away: what can be restored without that is, the rest
// when it is back, and nothing is called lost.
func TestSimRebuildWhileANodeIsAway(t *testing.T) {
	const replaced, away = 2, 5 // nodes, each with one spindle
	s := openShelvesWith(t, false, 7, 1)
	a := s.on("a")
	content := noise(1, 24<<20)
	a.create("one", content[:1<<20])
	_, err := a.ResizeDisk(t.Context(), "one", int64(len(content)))
	s.ok(err)
	for off := int64(1 << 20); off < int64(len(content)); off += 1 << 20 { // a segment each, in layouts as they come
		a.writeAt("one", content[off:off+1<<20], off)
		s.ok(a.Quiesce(t.Context()))
	}
	a.settled()
	before, err := a.Status(t.Context())
	s.ok(err)
	had := before.Node.Spindles[replaced].Fragments
	s.Stop(replaced)
	s.Away(away)
	s.Replace(replaced, 0)
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(20 * time.Millisecond) {
		st, err := a.Status(t.Context())
		s.ok(err)
		if st.Rebuild.LostSegments > 0 {
			t.Fatalf("lost while a node is away: %+v", st.Rebuild.Lost)
		}
		if r := st.Rebuild; r.Fragments > 0 && slices.Contains(r.WaitsFor, away) {
			if r.Fragments >= had {
				t.Errorf("%d of %d fragments were restored, and nothing waited: the test shows nothing", r.Fragments, had)
			}
			t.Logf("%d of %d fragments were restored while a node was away", r.Fragments, had)
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("nothing is restored while a node is away: %+v, %q", st.Rebuild, st.Warnings)
		}
	}
	a.has("one", content)
	s.Back(away)
	a.rebuilt(replaced)
	after, err := a.Status(t.Context())
	s.ok(err)
	if got := after.Node.Spindles[replaced].Fragments; got < had {
		t.Errorf("the new drive has %d fragments, the old one had %d", got, had)
	}
	a.settled()
	a.has("one", content)
}
