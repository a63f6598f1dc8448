package object

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"plinth/internal/id"
)

func sampleDescriptor() *descriptor {
	return &descriptor{
		id: objectID(7, 3, 9), bytes: 3*UnitBytes + 5,
		segments: []piece{{id.MakeSegment(2, 77), 98816}, {id.MakeSegment(0, 1), 4096}},
	}
}

// FuzzDescriptor gives the decoder any bytes: it refuses them, or what it
// returns is written as the same bytes.
func FuzzDescriptor(f *testing.F) {
	good := sampleDescriptor().marshal()
	f.Add(good)
	f.Add(good[:descriptorBytes])
	f.Add((&descriptor{}).marshal())
	f.Add(append(bytes.Clone(good[:descriptorBytes-1]), 0xff))
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := unmarshal(b)
		segments, errS := Segments(b)
		size, errB := Bytes(b)
		if (err == nil) != (errS == nil) || (err == nil) != (errB == nil) {
			t.Fatalf("unmarshal says %v, Segments %v, Bytes %v", err, errS, errB)
		}
		if err != nil {
			return
		}
		if again := d.marshal(); !bytes.Equal(again, b) {
			t.Fatalf("%x became %x", b, again)
		}
		if len(segments) != len(d.segments) || size != d.bytes || size < 0 {
			t.Fatalf("%d segments, %d bytes of %+v", len(segments), size, d)
		}
	})
}

func TestDescriptorRefuses(t *testing.T) {
	for name, change := range map[string]func(b []byte) []byte{
		"empty":              func([]byte) []byte { return nil },
		"cut":                func(b []byte) []byte { return b[:len(b)-1] },
		"longer":             func(b []byte) []byte { return append(b, 0) },
		"too many bytes":     func(b []byte) []byte { b[28] = 1; return b },
		"too many segments":  func(b []byte) []byte { b[40] = 1; return b },
		"a newer version":    func(b []byte) []byte { b[0]++; return b },
		"an unknown feature": func(b []byte) []byte { b[2] = 1; return b },
		"another unit":       func(b []byte) []byte { b[37]++; return b },
	} {
		_, err := unmarshal(change(sampleDescriptor().marshal()))
		newer := strings.HasPrefix(name, "a") // which is no damage
		if err == nil || errors.Is(err, ErrCorrupt) == newer {
			t.Errorf("%s: %v", name, err)
		}
	}
}
