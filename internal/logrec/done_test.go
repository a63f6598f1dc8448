package logrec

import (
	"bytes"
	"errors"
	"math"
	"reflect"
	"testing"

	"plinth/internal/id"
)

func TestDoneDecodes(t *testing.T) {
	full := Done{}
	for i := range ChangesMax {
		full.Changes = append(full.Changes, Change{id.Tag{Session: [16]byte{byte(i)}, Number: uint64(i)}, int64(i)})
	}
	for i := range OwnersMax {
		full.Owners = append(full.Owners, OwnerEnd{id.Epoch(i), id.Pos(math.MaxUint64)})
	}
	for _, want := range []Done{{}, {Changes: full.Changes[:1]}, {Owners: full.Owners[:2]}, full} {
		data := want.Append(nil)
		got, err := DecodeDone(data)
		if err != nil || !reflect.DeepEqual(*got, want) {
			t.Fatalf("%d changes and %d owners came back as %+v, %v", len(want.Changes), len(want.Owners), got, err)
		}
		for _, n := range []int{0, doneHeaderBytes - 1, len(data) - 1} {
			if _, err := DecodeDone(data[:n]); !errors.Is(err, ErrCorrupt) {
				t.Errorf("cut to %d bytes: %v", n, err)
			}
		}
		for i := range 4 {
			bad := bytes.Clone(data)
			bad[i]++
			if _, err := DecodeDone(bad); !errors.Is(err, ErrUnsupported) {
				t.Errorf("byte %d: %v", i, err)
			}
		}
	}
	for _, c := range []Change{{Tag: id.Tag{Number: 1 << id.TagNumberBits}}, {End: -1}, {End: DiskBytesMax + 1}} {
		bad := Done{Changes: []Change{c}}
		if _, err := DecodeDone(bad.Append(nil)); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

func FuzzDecodeDone(f *testing.F) {
	d := Done{Changes: []Change{{id.Tag{Number: 3}, 4096}}, Owners: []OwnerEnd{{1, 2}}}
	f.Add(d.Append(nil))
	f.Fuzz(func(t *testing.T, data []byte) {
		d, err := DecodeDone(data)
		if err == nil && !bytes.Equal(d.Append(nil), data) {
			t.Fatal("a decoded record encodes differently")
		}
	})
}
