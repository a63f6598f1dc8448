package peerflash

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"plinth/internal/id"
)

// Option is the number of the option by which a connection between hosts goes over from
// NBD to this protocol (nbd.Options.Others). Another version has another number.
const Option = 0x706c6601

const (
	// ChunksMax bounds the chunks of a request: enough that a large read is a few of
	// them.
	ChunksMax = 64
	// BytesMax bounds the chunks of a reply together: what would go beyond is not here.
	BytesMax = 2 << 20

	requestHeaderBytes = 8
	replyHeaderBytes   = 8
	fingerprintBytes   = len(id.Fingerprint{})
	lengthBytes        = 2
)

var errProtocol = errors.New("not the protocol of flash between hosts")

// request asks for chunks: u32 number ‖ u16 count, 1 to ChunksMax ‖ u16 zero ‖ the
// fingerprints. Integers are big-endian, as in the NBD that was before.
type request struct {
	number uint32
	names  []id.Fingerprint
}

func appendRequest(b []byte, number uint32, names []id.Fingerprint) []byte {
	b = appendHeader(b, number, len(names))
	for i := range names {
		b = append(b, names[i][:]...)
	}
	return b
}

func appendHeader(b []byte, number uint32, count int) []byte {
	b = binary.BigEndian.AppendUint32(b, number)
	b = binary.BigEndian.AppendUint16(b, uint16(count))
	return binary.BigEndian.AppendUint16(b, 0)
}

// parseHeader reads the header that requests and replies share.
func parseHeader(h []byte) (number uint32, count int, err error) {
	count = int(binary.BigEndian.Uint16(h[4:]))
	if count == 0 || count > ChunksMax || binary.BigEndian.Uint16(h[6:]) != 0 {
		return 0, 0, fmt.Errorf("%w: header %x", errProtocol, h[:requestHeaderBytes])
	}
	return binary.BigEndian.Uint32(h), count, nil
}

// readRequest reads one request.
func readRequest(r io.Reader) (*request, error) {
	var h [requestHeaderBytes]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return nil, err
	}
	number, count, err := parseHeader(h[:])
	if err != nil {
		return nil, err
	}
	var b [ChunksMax * fingerprintBytes]byte
	if _, err := io.ReadFull(r, b[:count*fingerprintBytes]); err != nil {
		return nil, err
	}
	q := &request{number, make([]id.Fingerprint, count)}
	for i := range q.names {
		q.names[i] = id.Fingerprint(b[i*fingerprintBytes:])
	}
	return q, nil
}

// reply answers a request: u32 number ‖ u16 count ‖ u16 zero ‖ for each chunk a u16, its
// length in units of 16 bytes, 0 for one that is not here ‖ the sealed chunks, one behind
// the other.
type reply struct {
	number uint32
	units  []uint16
	sealed []byte // of all
}

// beginReply appends a reply's header, and lengths that say that nothing is here.
func beginReply(b []byte, q *request) []byte {
	b = appendHeader(b, q.number, len(q.names))
	return append(b, make([]byte, len(q.names)*lengthBytes)...)
}

// setLength says, in a reply that begins at b's beginning, how long chunk i is.
func setLength(b []byte, i, bytes int) {
	binary.BigEndian.PutUint16(b[replyHeaderBytes+i*lengthBytes:], uint16(bytes/id.Unit))
}

// readReply reads one reply.
func readReply(r io.Reader) (*reply, error) {
	var h [replyHeaderBytes]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return nil, err
	}
	number, count, err := parseHeader(h[:])
	if err != nil {
		return nil, err
	}
	var b [ChunksMax * lengthBytes]byte
	if _, err := io.ReadFull(r, b[:count*lengthBytes]); err != nil {
		return nil, err
	}
	p := &reply{number: number, units: make([]uint16, count)}
	total := 0
	for i := range p.units {
		p.units[i] = binary.BigEndian.Uint16(b[i*lengthBytes:])
		total += int(p.units[i]) * id.Unit
	}
	if total > BytesMax {
		return nil, fmt.Errorf("%w: a reply of %d bytes", errProtocol, total)
	}
	p.sealed = make([]byte, total)
	_, err = io.ReadFull(r, p.sealed)
	return p, err
}

// each calls got for every chunk that is here.
func (p *reply) each(got func(i int, sealed []byte)) {
	rest := p.sealed
	for i, u := range p.units {
		n := int(u) * id.Unit
		if n > 0 {
			got(i, rest[:n:n])
		}
		rest = rest[n:]
	}
}
