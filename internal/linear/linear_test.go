package linear

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"
)

var errLost = errors.New("no answer")

func write(t *testing.T, h *History, at int, err error) (value uint64) {
	t.Helper()
	if got := h.Write(at, 1, func(p []byte) error { value = binary.LittleEndian.Uint64(p); return err }); got != err {
		t.Fatal(got)
	}
	return value
}

func read(t *testing.T, h *History, at int, value uint64) {
	t.Helper()
	if err := h.Read(at, 1, func(p []byte) error {
		copy(p, bytes.Repeat(binary.LittleEndian.AppendUint64(nil, value), len(p)/8))
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

func TestCheck(t *testing.T) {
	for name, c := range map[string]struct {
		good bool
		f    func(h *History)
	}{
		"zeros at first": {true, func(h *History) { read(t, h, 0, 0) }},
		"the last write": {true, func(h *History) {
			write(t, h, 0, nil)
			read(t, h, 0, write(t, h, 0, nil))
			read(t, h, 1, 0)
		}},
		"an older write": {false, func(h *History) {
			old := write(t, h, 0, nil)
			write(t, h, 0, nil)
			read(t, h, 0, old)
		}},
		"a lost write":                       {false, func(h *History) { write(t, h, 0, nil); read(t, h, 0, 0) }},
		"a failed write that did not happen": {true, func(h *History) { write(t, h, 0, errLost); read(t, h, 0, 0) }},
		"a failed write that happens late": {true, func(h *History) {
			late := write(t, h, 0, errLost)
			read(t, h, 0, write(t, h, 0, nil))
			read(t, h, 0, late)
		}},
		"a failed write that happens and is undone": {false, func(h *History) {
			late := write(t, h, 0, errLost)
			read(t, h, 0, late)
			read(t, h, 0, 0)
		}},
		"what was never written": {false, func(h *History) { write(t, h, 0, nil); read(t, h, 0, 7) }},
		"zeros that were written": {true, func(h *History) {
			write(t, h, 0, nil)
			_ = h.Zero(0, 1, func() error { return nil })
			read(t, h, 0, 0)
		}},
		"zeros that did not stay": {false, func(h *History) {
			old := write(t, h, 0, nil)
			_ = h.Zero(0, 1, func() error { return nil })
			read(t, h, 0, old)
		}},
		"zeros in doubt": {true, func(h *History) {
			old := write(t, h, 0, nil)
			_ = h.Zero(0, 1, func() error { return errLost })
			read(t, h, 0, old)
			read(t, h, 0, 0)
		}},
		"either of two at once": {true, func(h *History) {
			var inner uint64
			_ = h.Write(0, 1, func([]byte) error { inner = write(t, h, 0, nil); return nil })
			read(t, h, 0, inner)
		}},
	} {
		h := New(2)
		c.f(h)
		if err := h.Check(); (err == nil) != c.good {
			t.Errorf("%s: %v", name, err)
		}
	}
	var torn *TornError
	if err := New(1).Read(0, 1, func(p []byte) error { p[9] = 1; return nil }); !errors.As(err, &torn) {
		t.Errorf("a torn sector: %v", err)
	}
}
