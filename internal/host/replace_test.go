package host_test

import (
	"testing"
	"time"

	"plinth/datanode"
)

// TestSimReplaceSpindle replaces a drive of a node that serves, at a host that is not the
// warden: it is whole again without a restart of anything, and stripes may lose others then.
func TestSimReplaceSpindle(t *testing.T) {
	const n = 5 // spindle 1 of node 1
	ctx := t.Context()
	s := openShelves(t)
	a, content := s.begin()
	b := s.on("b")
	s.refused(b.ReplaceSpindle(ctx, 99), "there is no spindle 99")
	s.refused(b.ReplaceSpindle(ctx, n), "unmount")
	before, err := a.Status(ctx)
	s.ok(err)
	s.Mount(1, n-4)
	copy(content[1<<20:], noise(2, 1<<20))
	a.writeAt("one", content[1<<20:2<<20], 1<<20)
	s.ok(a.Quiesce(ctx))
	s.Away(2)
	s.refused(b.ReplaceSpindle(ctx, n), "than can be made up for")
	s.Back(2)
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		if st, err := b.Status(ctx); err == nil && st.Node.Spindles[8].State == datanode.SpindleOK {
			break
		} else if time.Now().After(deadline) {
			t.Fatal("a node is not back")
		}
	}
	s.ok(b.ReplaceSpindle(ctx, n))
	s.refused(b.ReplaceSpindle(ctx, n), "unmount")
	copy(content[2<<20:], noise(3, 1<<20))
	a.writeAt("one", content[2<<20:3<<20], 2<<20)
	a.rebuilt(n)
	after, err := a.Status(ctx)
	s.ok(err)
	if sp := after.Node.Spindles[n]; sp.State != datanode.SpindleOK || sp.Fragments == 0 || sp.Incarnation == before.Node.Spindles[n].Incarnation {
		t.Errorf("after it: %+v, before: %+v", sp, before.Node.Spindles[n])
	}
	s.sound(a, b)
	s.Away(2)
	a.has("one", content)
}
