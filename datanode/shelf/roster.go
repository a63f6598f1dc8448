package shelf

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/cockroachdb/pebble/v2/vfs"

	"plinth/datanode/spindle"
	"plinth/internal/id"
	"plinth/internal/vfsx"
)

const (
	rosterName       = "spindles"
	rosterMagic      = "PLNTDRVS"
	rosterVersion    = 1
	rosterHeadBytes  = 64
	rosterEntryBytes = 32
	identityMax      = 1<<48 - 1
)

// seat is what the node knows of the drive that is a spindle.
type seat struct {
	known bool
	// identity is the drive's (spindle.NewIdentity); 0: made by an older program.
	identity uint64
	// incarnation changes when the spindle may lack what it had.
	incarnation uint64
	// opens is how often it has been opened, as its mark says too: a mark that is lower
	// is of an older copy of the drive.
	opens uint64
}

// roster says which drives are the node's spindles, and which log is its log.
type roster struct {
	// log is drawn when the log is made; zero: by an older program. A node whose log is
	// another one is, to others, a machine that was booted anew.
	log   [16]byte
	seats []seat
}

func (r *roster) encode(pool [16]byte) []byte {
	b := make([]byte, rosterHeadBytes, rosterHeadBytes+len(r.seats)*rosterEntryBytes+4)
	copy(b, rosterMagic)
	binary.LittleEndian.PutUint16(b[8:], rosterVersion)
	binary.LittleEndian.PutUint16(b[14:], uint16(len(r.seats)))
	copy(b[16:], pool[:])
	copy(b[32:], r.log[:])
	for _, s := range r.seats {
		known := uint64(0)
		if s.known {
			known = 1
		}
		for _, v := range []uint64{known, s.identity, s.incarnation, s.opens} {
			b = binary.LittleEndian.AppendUint64(b, v)
		}
	}
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

// decodeRoster is the reverse of encode. Errors: ErrForeign, ErrNewer, ErrDamaged.
func decodeRoster(b []byte, pool [16]byte) (*roster, error) {
	if len(b) < 12 || string(b[:8]) != rosterMagic {
		return nil, fmt.Errorf("%w: it does not begin with %q", ErrForeign, rosterMagic)
	}
	if v, f := binary.LittleEndian.Uint16(b[8:]), binary.LittleEndian.Uint16(b[10:]); v != rosterVersion || f != 0 {
		return nil, fmt.Errorf("%w: version %d with features %#x, this program knows version %d without any", ErrNewer, v, f, rosterVersion)
	}
	body := b[:max(len(b)-4, 0)]
	if len(body) < rosterHeadBytes || binary.LittleEndian.Uint32(b[len(body):]) != crc32.Checksum(body, castagnoli) {
		return nil, fmt.Errorf("%w: its checksum does not match", ErrDamaged)
	}
	if [16]byte(b[16:]) != pool {
		return nil, fmt.Errorf("%w: it is of pool %x", ErrForeign, b[16:32])
	}
	n := int(binary.LittleEndian.Uint16(b[14:]))
	if len(body) != rosterHeadBytes+n*rosterEntryBytes || !bytes.Equal(b[48:rosterHeadBytes], make([]byte, 16)) {
		return nil, fmt.Errorf("%w: %d bytes for %d spindles", ErrDamaged, len(b), n)
	}
	r := &roster{log: [16]byte(b[32:]), seats: make([]seat, n)}
	for i := range r.seats {
		e := body[rosterHeadBytes+i*rosterEntryBytes:]
		at := func(n int) uint64 { return binary.LittleEndian.Uint64(e[8*n:]) }
		s := seat{at(0) == 1, at(1), at(2), at(3)}
		if at(0) > 1 || at(1) > identityMax || at(2) > identityMax || s.known != (at(2) != 0) ||
			!s.known && s != (seat{}) {
			return nil, fmt.Errorf("%w: spindle %d is %+v", ErrDamaged, i, s)
		}
		r.seats[i] = s
	}
	return r, nil
}

// readRoster reads the roster of a node with so many spindles: none of them is known
// where there is no roster, as older programs left it.
func (p place) readRoster(pool [16]byte, spindles int) (*roster, error) {
	path := p.path(rosterName)
	f, err := p.fs.Open(path)
	if isNotExist(err) {
		return &roster{seats: make([]seat, spindles)}, nil
	}
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(f, rosterHeadBytes+spindlesMax*rosterEntryBytes+8))
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	r, err := decodeRoster(b, pool)
	if err == nil && len(r.seats) == spindles-1 { // AddSpindle was interrupted
		r.seats = append(r.seats, seat{})
	}
	if err == nil && len(r.seats) != spindles {
		err = fmt.Errorf("%w: it is of %d spindles, the node has %d", ErrDamaged, len(r.seats), spindles)
	}
	if errors.Is(err, ErrDamaged) {
		err = fmt.Errorf("%w: if all drives are those that belong here, remove the file: the next start takes them as they are", err)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return r, nil
}

// writeRoster makes a roster appear, whole and durable.
func (p place) writeRoster(pool [16]byte, r *roster) error {
	return p.writeFile(rosterName, r.encode(pool))
}

// writeFile makes a file of the node's directory appear, whole and durable.
func (p place) writeFile(name string, content []byte) error {
	tmp := p.path(name + ".tmp")
	f, err := p.fs.Create(tmp, vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := p.fs.Rename(tmp, p.path(name)); err != nil {
		return err
	}
	return vfsx.SyncDir(p.fs, p.dir)
}

// identities returns those that are known.
func (r *roster) identities() map[id.Spindle]uint64 {
	known := make(map[id.Spindle]uint64)
	for i, s := range r.seats {
		if s.known {
			known[id.Spindle(i)] = s.identity
		}
	}
	return known
}

// meet takes note of a drive that serves as a spindle and says, by its mark, how often
// it has been opened. It reports whether the drive has gone back in time.
func (s *seat) meet(identity, opens uint64) (older bool) {
	if !s.known {
		*s = seat{known: true, identity: identity, incarnation: max(identity, 1), opens: opens}
	}
	if older = opens < s.opens; older {
		s.incarnation = spindle.NewIdentity()
	}
	s.opens = max(s.opens, opens)
	return older
}
