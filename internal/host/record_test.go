package host

import (
	"encoding/json"
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"plinth/internal/gate"
	"plinth/internal/id"
)

// FuzzRecords decodes what a registry may hold: what is taken is written as it was
// read.
func FuzzRecords(f *testing.F) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	rec := DiskRecord{ID: 7, Name: "vm", Bytes: 1 << 20, Chunk: 4096, Cipher: "aes-256-gcm", Created: at}
	clone := rec
	clone.Base = &CloneBase{Disk: 3, Snapshot: 9}
	limited := rec
	limited.Limits = &gate.Limits{IOPS: 100, WriteBPS: 1 << 20, BurstSeconds: 0.5}
	for _, r := range []DiskRecord{rec, clone, limited} {
		b, err := r.marshal()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	s := SnapshotRecord{Version: 1, ID: 9, Bytes: 4096, Created: at, Expires: &at, Labels: map[string]string{"a": "b"}, Group: 8}
	b, err := s.marshal()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	group, err := groupRow{Host: "a", Name: "s", HoldMS: 500, Disks: []groupDisk{{1, 2}, {3, 4}}}.marshal()
	if err != nil {
		f.Fatal(err)
	}
	answer, err := groupAnswer{Marks: []groupMark{{1, 2, 4096}}}.marshal()
	if err != nil {
		f.Fatal(err)
	}
	refusal, err := groupAnswer{Error: strings.Repeat("ä", groupErrorBytesMax)}.marshal()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(group)
	f.Add(answer)
	f.Add(refusal)
	for _, bad := range []string{`{"version":3}`, `{"version":2,"id":3,"base":{"disk":3,"snapshot":1}}`, `{"version":1,"id":0}`, `[]`,
		`{"version":1,"id":7,"name":"vm","bytes":4096,"chunk":4096,"cipher":"aes-256-gcm","limits":{"iops":1}}`} {
		f.Add([]byte(bad))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if r, err := parseDiskRecord(b); err == nil {
			out, err := r.marshal()
			if err != nil {
				return // a year that JSON cannot say
			}
			again, err := parseDiskRecord(out)
			if err != nil {
				t.Fatalf("%+v: %v", r, err)
			}
			again.Version = r.Version
			if !same(t, r, again) {
				t.Fatalf("%+v became %+v", r, again)
			}
		}
		if r, err := parseSnapshotRecord(b); err == nil {
			out, err := r.marshal()
			if err != nil {
				return
			}
			again, err := parseSnapshotRecord(out)
			if err != nil || !same(t, r, again) {
				t.Fatalf("%+v became %+v, %v", r, again, err)
			}
		}
		if r, err := parseGroupRow(b); err == nil {
			out, err := r.marshal()
			if err != nil {
				t.Fatal(err)
			}
			again, err := parseGroupRow(out)
			if err != nil || !same(t, r, again) {
				t.Fatalf("%+v became %+v, %v", r, again, err)
			}
		}
		if r, err := parseGroupAnswer(b); err == nil {
			out, err := r.marshal()
			if err != nil {
				t.Fatal(err)
			}
			again, err := parseGroupAnswer(out)
			if err != nil || !same(t, r, again) {
				t.Fatalf("%+v became %+v, %v", r, again, err)
			}
		}
	})
}

func same(t *testing.T, a, b any) bool {
	t.Helper()
	x, err := json.Marshal(a)
	if err != nil {
		t.Fatal(err)
	}
	y, err := json.Marshal(b)
	if err != nil {
		t.Fatal(err)
	}
	return reflect.DeepEqual(x, y)
}

// TestSnapshotsAreBounded: rows of snapshots leave room in the registry.
func TestSnapshotsAreBounded(t *testing.T) {
	h := &Host{snapBytes: snapshotRowsBytesMax}
	if _, err := h.freeName("mon", time.Now(), nil); err != nil {
		t.Error(err)
	}
	h.snapBytes++
	if _, err := h.freeName("mon", time.Now(), nil); !errors.Is(err, ErrTooMany) {
		t.Errorf("one above the bound: %v", err)
	}
}

// TestCloneRecordIsRefusedByOlder: an agent that does not know bases must not open
// a clone, whose chunks it would let go.
func TestCloneRecordIsRefusedByOlder(t *testing.T) {
	for version, base := range map[int]*CloneBase{1: nil, 2: {Disk: 1, Snapshot: 1}} {
		b, err := DiskRecord{ID: id.Disk(2), Base: base}.marshal()
		if err != nil {
			t.Fatal(err)
		}
		var out struct{ Version int }
		if err := json.Unmarshal(b, &out); err != nil || out.Version != version {
			t.Errorf("%s, %v", b, err)
		}
	}
}

// TestGroupVerdict: a group is complete when each of its disks has a mark, of its newest
// owner where there are two, and fails when anybody refuses.
func TestGroupVerdict(t *testing.T) {
	row := groupRow{Disks: []groupDisk{{Disk: 1}, {Disk: 2}}}
	for _, c := range []struct {
		answers map[string]*groupAnswer
		missing []id.Disk
		refused string
		epochs  [2]id.Epoch
	}{
		{nil, []id.Disk{1, 2}, "", [2]id.Epoch{}},
		{map[string]*groupAnswer{"a": {Marks: []groupMark{{2, 5, 0}}}}, []id.Disk{1}, "", [2]id.Epoch{0, 5}},
		{map[string]*groupAnswer{"a": {Marks: []groupMark{{2, 5, 0}, {1, 3, 0}}}}, nil, "", [2]id.Epoch{3, 5}},
		{map[string]*groupAnswer{"a": {Marks: []groupMark{{2, 5, 0}}}, "b": {Marks: []groupMark{{2, 4, 0}, {1, 9, 0}}}}, nil, "", [2]id.Epoch{9, 5}},
		{map[string]*groupAnswer{"a": {Marks: []groupMark{{1, 1, 0}, {3, 1, 0}}}}, []id.Disk{2}, "", [2]id.Epoch{1, 0}}, // 3 was not asked for
		{map[string]*groupAnswer{"b": {Error: "no"}, "a": {Error: "never"}}, []id.Disk{1, 2}, "host a: never", [2]id.Epoch{}},
		{map[string]*groupAnswer{"b": {Error: "no"}, "a": {Marks: []groupMark{{2, 5, 0}, {1, 3, 0}}}}, nil, "host b: no", [2]id.Epoch{3, 5}},
	} {
		v := row.verdict(c.answers)
		if got := [2]id.Epoch{v.marks[1].Epoch, v.marks[2].Epoch}; !slices.Equal(v.missing, c.missing) || v.refused != c.refused || got != c.epochs {
			t.Errorf("%v: %+v, want %v", c.answers, v, c)
		}
	}
}
