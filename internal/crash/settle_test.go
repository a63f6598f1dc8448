package crash

import (
	"context"
	"errors"
	"maps"
	"slices"
	"testing"
)

// collect is one life that leaves some snapshots and clones.
func (k *keeper) collect(t *testing.T, s *site) {
	t.Helper()
	l := s.start(t, "")
	if !k.fleet.check(t, l) || !k.settle(t, l) {
		l.kill(t)
		t.Fatalf("the process died\n%s", l.tail())
	}
	wait := k.fleet.load(t, l, k.rng.Uint64())
	var err error
	for err == nil && len(k.snaps) < 4 {
		err = k.create(t, l)
	}
	for err == nil && len(k.clones) < 2 {
		err = k.clone(t, l)
	}
	l.kill(t)
	wait()
	if err != nil {
		t.Fatalf("%v\n%s", err, l.tail())
	}
}

// settle compares what there is after a start with what must be, and reads
// everything. A false says that the process died.
func (k *keeper) settle(t *testing.T, l *life) bool {
	t.Helper()
	ctx := context.Background()
	there := map[string]bool{}
	disks, err := l.api.Disks(ctx)
	for _, d := range disks {
		there[d.Name] = true
		snaps, serr := l.api.Snapshots(ctx, d.Name)
		err = errors.Join(err, serr)
		for _, s := range snaps {
			there[d.Name+"@"+s.Name] = s.State == "ok"
		}
	}
	if err != nil {
		if l.dead() {
			return false
		}
		l.kill(t)
		t.Fatal(err, l.tail())
	}
	groups := map[int]bool{}
	for _, all := range []map[string]*kept{k.snaps, k.clones} {
		for _, name := range slices.Sorted(maps.Keys(all)) {
			s, is := all[name], there[name]
			if was, seen := groups[s.group]; s.doubt && s.group > 0 && seen && was != is {
				t.Errorf("of the group of %s one snapshot exists and another does not", name)
			}
			groups[s.group] = is
			switch {
			case !is && !s.doubt:
				t.Errorf("%s is gone", name)
			case !is:
				delete(all, name)
			}
		}
	}
	for name := range there {
		if disk, snapshot := cutName(name); snapshot != "" && slices.Contains(k.fleet.names, disk) && k.snaps[name] == nil {
			t.Errorf("%s is there", name)
		}
	}
	if t.Failed() {
		l.kill(t)
		t.FailNow()
	}
	for name, s := range k.snaps {
		if s.doubt = false; !s.content.compare(t, l, name) {
			return false
		}
	}
	for _, name := range slices.Sorted(maps.Keys(k.clones)) {
		c := k.clones[name]
		if c.doubt { // perhaps half rolled back
			if _, died := asked(l, l.api.RemoveDiskWithSnapshots(ctx, name)); died != nil {
				return false
			}
			k.forget(name)
		} else if !c.content.compare(t, l, name) {
			return false
		}
	}
	return true
}
