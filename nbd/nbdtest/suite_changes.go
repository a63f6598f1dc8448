package nbdtest

import (
	"context"
	"net"
	"slices"
	"testing"

	"plinth/nbd/client"
	"plinth/nbd/internal/wire"
)

// ChangesTarget is an export with a dirty bitmap.
type ChangesTarget struct {
	// Dial connects to the server, before the handshake.
	Dial func(ctx context.Context) (net.Conn, error)
	// Export has the bitmap.
	Export, Bitmap string
	// Dirty are offsets and lengths of what the bitmap says has changed,
	// ascending, with something clean between any two.
	Dirty [][2]int64
}

// RunChanges tests that a bitmap is found as clients look for it, and that it says
// what has changed, in each form that the server offers.
func RunChanges(t *testing.T, target ChangesTarget) {
	for form, name := range map[client.Form]string{client.Structured: "structured", client.Extended: "extended"} {
		s := suite{Target{Dial: target.Dial, Export: target.Export}, form}
		t.Run(name, func(t *testing.T) {
			if s.open(t, s.Export).Form() == form {
				s.wildcards(t, target)
				s.changes(t, target)
			}
		})
	}
}

// wildcards looks for the bitmap's context as clients do.
func (s suite) wildcards(t *testing.T, target ChangesTarget) {
	r := NewRaw(t, s.dial(t))
	r.Greet(wire.ClientFixedNewstyle | wire.ClientNoZeroes)
	r.Option(wire.OptStructuredReply, nil)
	r.LastReply(wire.OptStructuredReply)
	name := wire.ContextDirtyPrefix + target.Bitmap
	for query, found := range map[string]bool{
		"qemu:": true, wire.ContextDirtyPrefix: true, name: true, "base:": false, name + "x": false,
	} {
		const list = wire.OptListMetaContext
		r.Option(list, MetaData(t, s.Export, query))
		var names []string
		for {
			typ, payload := r.OptionReply(list)
			if typ == wire.RepAck {
				break
			}
			if typ != wire.RepMetaContext || len(payload) < 5 {
				t.Fatalf("query %q: reply %#x %q", query, typ, payload)
			}
			names = append(names, string(payload[4:]))
		}
		if slices.Contains(names, name) != found {
			t.Errorf("query %q finds %q", query, names)
		}
	}
}

// changes compares the bitmap, from all sorts of places on.
func (s suite) changes(t *testing.T, target ChangesTarget) {
	ctx := s.context(t)
	o := client.Options{Form: s.form, Contexts: []string{wire.ContextAllocation, wire.ContextDirtyPrefix + target.Bitmap}}
	c, err := client.NewClient(ctx, s.dial(t), s.Export, o)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if c.Bitmap() != target.Bitmap {
		t.Fatalf("bitmap %q", c.Bitmap())
	}
	starts := []int64{0}
	for _, r := range target.Dirty {
		starts = append(starts, r[0], r[0]+r[1]/2, r[0]+r[1])
	}
	for _, start := range starts {
		var want, got [][2]int64
		for _, r := range target.Dirty {
			if from, to := max(r[0], start), r[0]+r[1]; from < to {
				want = append(want, [2]int64{from, to - from})
			}
		}
		off := start
		err := c.Changes(ctx, start, c.Size()-start, func(n int64, dirty bool) bool {
			switch k := len(got); {
			case !dirty:
			case k > 0 && got[k-1][0]+got[k-1][1] == off:
				got[k-1][1] += n
			default:
				got = append(got, [2]int64{off, n})
			}
			off += n
			return true
		})
		if err != nil || off != c.Size() || !slices.Equal(got, want) {
			t.Errorf("changes from %d to %d: %v, want %v; %v", start, off, got, want, err)
		}
		if start == c.Size() {
			continue
		}
		statuses, err := c.BlockStatus(ctx, start, c.Size()-start, true)
		if err != nil || len(statuses) != 2 || len(statuses[0].Runs) != 1 || len(statuses[1].Runs) != 1 {
			t.Errorf("one run from %d: %+v, %v", start, statuses, err)
		}
	}
}
