package disk

import (
	"bytes"
	"encoding/json"
	"errors"
	"testing"

	"plinth/internal/logrec"
)

// FuzzState gives the decoder any bytes: it refuses them, or what it returns is
// written as the same bytes.
func FuzzState(f *testing.F) {
	s := state{through: 9, throughMAC: logrec.MAC{1, 2}, result: 4, resultMAC: logrec.MAC{3}, bytes: 1 << 30}
	f.Add(s.marshal())
	f.Add(state{}.marshal())
	f.Add(state{bytes: -1}.marshal())
	f.Add(s.marshal()[1:])
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := unmarshalState(b)
		if err != nil {
			if s != (state{}) {
				t.Fatalf("%v, and a state %+v", err, s)
			}
			return
		}
		if s.bytes < 0 || s.bytes > logrec.DiskBytesMax {
			t.Fatalf("a disk of %d bytes", s.bytes)
		}
		if again := s.marshal(); !bytes.Equal(again, b) {
			t.Fatalf("%x became %x", b, again)
		}
	})
}

func sampleCheckpoint() *CheckpointRecord {
	return &CheckpointRecord{
		Version: checkpointVersion, Epoch: 3, Manifest: []byte{1, 2, 3}, ManifestBytes: 77,
		State: state{through: 9, result: 4, bytes: 1 << 30}.marshal(),
	}
}

// FuzzCheckpoint gives the decoder any bytes: what it takes, it takes again
// after it was written anew.
func FuzzCheckpoint(f *testing.F) {
	good, err := json.Marshal(sampleCheckpoint())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(good[:len(good)-1])
	f.Add([]byte(`{"version":1,"manifest_bytes":1,"state":""}`))
	f.Add([]byte("null"))
	f.Fuzz(func(t *testing.T, b []byte) {
		rec, s, err := parseCheckpoint(b)
		if err != nil {
			return
		}
		if rec.ManifestBytes <= 0 || rec.ManifestBytes > manifestBytesMax {
			t.Fatalf("a manifest of %d bytes", rec.ManifestBytes)
		}
		again, err := json.Marshal(rec)
		if err != nil {
			t.Fatal(err)
		}
		if _, s2, err := parseCheckpoint(again); err != nil || s2 != s {
			t.Fatalf("%q became %q: %v", b, again, err)
		}
	})
}

func TestCheckpointRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		change  func(*CheckpointRecord)
		corrupt bool
	}{
		"a newer version":       {func(r *CheckpointRecord) { r.Version = 3 }, false},
		"a clone of nothing":    {func(r *CheckpointRecord) { r.Version = 2 }, true},
		"a clone unannounced":   {func(r *CheckpointRecord) { r.CloneOf = 5 }, true},
		"a newer state":         {func(r *CheckpointRecord) { r.State[0]++ }, false},
		"an unknown feature":    {func(r *CheckpointRecord) { r.State[7] = 1 }, false},
		"no manifest":           {func(r *CheckpointRecord) { r.ManifestBytes = 0 }, true},
		"a manifest too long":   {func(r *CheckpointRecord) { r.ManifestBytes = manifestBytesMax + 1 }, true},
		"no state":              {func(r *CheckpointRecord) { r.State = nil }, true},
		"an impossible size":    {func(r *CheckpointRecord) { r.State[56] = 0x80 }, true},
		"a state that was torn": {func(r *CheckpointRecord) { r.State = r.State[:63] }, true},
	} {
		rec := sampleCheckpoint()
		c.change(rec)
		b, err := json.Marshal(rec)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := parseCheckpoint(b); err == nil || errors.Is(err, ErrCorrupt) != c.corrupt {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, _, err := parseCheckpoint([]byte("{")); !errors.Is(err, ErrCorrupt) {
		t.Errorf("half a record: %v", err)
	}
}
