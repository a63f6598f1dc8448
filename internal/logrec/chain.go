package logrec

import (
	"crypto/subtle"
	"encoding/binary"
	"fmt"

	"github.com/zeebo/blake3"

	"plinth/datanode"
	"plinth/internal/chunk"
	"plinth/internal/id"
)

// MAC is a record's place in its stream's chain.
type MAC = [16]byte

// Chain computes the MACs of one stream in order. It is not safe for
// concurrent use: its owner appends, or replays, one record after the other.
type Chain struct {
	disk   id.Disk
	stream datanode.Stream
	head   MAC
	h      *blake3.Hasher
	out    [32]byte
	auth   []byte // scratch
}

// NewChain goes on from head, which is zero at a stream's very beginning. key
// is the disk's MAC key.
func NewChain(key [32]byte, disk id.Disk, stream datanode.Stream, head MAC) *Chain {
	h, err := blake3.NewKeyed(key[:])
	if err != nil {
		panic(err) // the key's length is fixed by its type
	}
	return &Chain{disk: disk, stream: stream, head: head, h: h}
}

// Head returns the last record's MAC.
func (c *Chain) Head() MAC { return c.head }

// Next returns the MAC of the record that follows, and moves on to it. A write
// record that does not decode is hashed whole.
func (c *Chain) Next(epoch id.Epoch, pos id.Pos, t Type, data []byte) MAC {
	var b [16 + 8 + 1 + 8 + 8 + 1]byte
	copy(b[:], c.head[:])
	binary.BigEndian.PutUint64(b[16:], uint64(c.disk))
	b[24] = byte(c.stream)
	binary.BigEndian.PutUint64(b[25:], uint64(epoch))
	binary.BigEndian.PutUint64(b[33:], uint64(pos))
	b[41] = byte(t)
	c.h.Reset()
	c.h.Write(b[:])
	if t == TypeWrite {
		c.hashWrite(data)
	} else {
		c.h.Write(data)
	}
	c.head = MAC(c.h.Sum(c.out[:0])[:16])
	return c.head
}

// hashWrite hashes the header and what authenticates each sealed chunk.
func (c *Chain) hashWrite(data []byte) {
	n := min(writeHeaderBytes, len(data))
	c.auth = append(c.auth[:0], data[:n]...)
	for rest := data[n:]; len(rest) > 0; {
		h, err := chunk.ParseHeader(rest)
		if err == nil && h.Len <= len(rest) {
			c.auth, err = chunk.Authenticator(c.auth, rest[:h.Len])
		}
		if err != nil || h.Len > len(rest) {
			c.auth = append(c.auth, rest...)
			break
		}
		rest = rest[h.Len:]
	}
	c.h.Write(c.auth)
}

// Verify checks a record read from the log and moves on to it. Errors:
// ErrCorrupt.
func (c *Chain) Verify(r *datanode.Record) error {
	prev := c.head
	mac := c.Next(r.Epoch, r.Pos, Type(r.Type), r.Data)
	if subtle.ConstantTimeCompare(mac[:], r.MAC[:]) != 1 {
		c.head = prev
		return fmt.Errorf("disk %d, stream %d, position %d: MAC is not the chain's: %w", c.disk, c.stream, r.Pos, ErrCorrupt)
	}
	return nil
}
