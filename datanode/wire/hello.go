package wire

import (
	"encoding/binary"
	"fmt"
	"io"

	"plinth/datanode"
)

// VersionMin and VersionMax are the versions of the protocol that this package
// speaks. Two sides use the highest that both do.
const (
	VersionMin = 1
	VersionMax = 1
)

// features are the optional parts that this package knows; both sides use those
// that both have.
const features = featureReplace | featureAdd

// featureReplace is the call ReplaceSpindle, featureAdd AddSpindle.
const (
	featureReplace uint64 = 1
	featureAdd     uint64 = 2
)

const (
	helloMagic   = "PLNTWIRE"
	welcomeMagic = "PLNTNODE"
	// helloBytesMax bounds a hello and a welcome behind magic and length.
	helloBytesMax = 16 << 10
)

// versions is a range, both ends included.
type versions struct{ low, high uint16 }

// common returns the highest version that both have.
func (v versions) common(w versions) (uint16, bool) {
	high := min(v.high, w.high)
	return high, high >= max(v.low, w.low)
}

// hello is what a client says first.
type hello struct {
	versions versions
	features uint64
	pool     [16]byte
	// session is drawn by the client. previous is the one before, if the client
	// has had one: the server ends it before it answers. fresh: no server has
	// welcomed the session yet.
	session, previous [16]byte
	fresh             bool
	bulk              bool
	name              string // of the node that is meant, "" for any
}

// welcome is the server's answer.
type welcome struct {
	refusal  datanode.Error // its code is 0 for none
	versions versions
	version  uint16 // that is spoken from here on
	features uint64
	pool     [16]byte
	boot     [16]byte // of the server's process
	instance uint64   // which session of this process it is; another one knows nothing of the calls of the one before
	slots    uint16   // calls in flight
	bytes    uint32   // of requests in flight
	name     string
}

const nameBytesMax = 256

// Both may grow: what follows the last field that a side knows is skipped, as
// only what was agreed here says what the other may send.
func visitHello(c *coder, h *hello) {
	u16(c, &h.versions.low)
	u16(c, &h.versions.high)
	u64(c, &h.features)
	c.array16(&h.pool)
	c.array16(&h.session)
	c.array16(&h.previous)
	c.flag(&h.fresh)
	c.flag(&h.bulk)
	text(c, &h.name, nameBytesMax)
}

func visitWelcome(c *coder, w *welcome) {
	mistake(c, &w.refusal)
	u16(c, &w.versions.low)
	u16(c, &w.versions.high)
	u16(c, &w.version)
	u64(c, &w.features)
	c.array16(&w.pool)
	c.array16(&w.boot)
	u64(c, &w.instance)
	u16(c, &w.slots)
	u32(c, &w.bytes)
	text(c, &w.name, nameBytesMax)
}

// putGreeting writes a hello or a welcome: magic, length, fields.
func putGreeting[T any](w io.Writer, magic string, v *T, visit func(*coder, *T)) error {
	size := coder{pass: sizing}
	visit(&size, v)
	if size.err != nil {
		return size.err
	}
	b := make([]byte, len(magic)+4+size.off)
	copy(b, magic)
	binary.LittleEndian.PutUint32(b[len(magic):], uint32(size.off))
	c := coder{pass: encoding, buf: b, off: len(magic) + 4}
	visit(&c, v)
	_, err := w.Write(b)
	return err
}

// getGreeting reads one, and nothing beyond it.
func getGreeting[T any](r io.Reader, magic string, v *T, visit func(*coder, *T)) error {
	head := make([]byte, len(magic)+4)
	if _, err := io.ReadFull(r, head); err != nil {
		return fmt.Errorf("read the handshake: %w", err)
	}
	if string(head[:len(magic)]) != magic {
		return fmt.Errorf("%w: the handshake begins with %q, not %q", datanode.ErrInvalid, head[:len(magic)], magic)
	}
	n := binary.LittleEndian.Uint32(head[len(magic):])
	if n > helloBytesMax {
		return fmt.Errorf("%w: a handshake of %d bytes: at most %d", datanode.ErrInvalid, n, helloBytesMax)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		return fmt.Errorf("read the handshake: %w", err)
	}
	c := coder{pass: decoding, buf: b}
	visit(&c, v)
	if c.err != nil {
		return fmt.Errorf("handshake: %w", c.err)
	}
	return nil
}
