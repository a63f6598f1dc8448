package peerflash

import (
	"bytes"
	"errors"
	"slices"
	"testing"

	"plinth/internal/id"
)

func names(n int) []id.Fingerprint {
	out := make([]id.Fingerprint, n)
	for i := range out {
		out[i] = id.Fingerprint{byte(i + 1), 0xfe}
	}
	return out
}

// replyOf encodes chunks, nil for one that is not here.
func replyOf(number uint32, chunks ...[]byte) []byte {
	b := beginReply(nil, &request{number, names(len(chunks))})
	for i, c := range chunks {
		setLength(b, i, len(c))
	}
	return append(b, slices.Concat(chunks...)...)
}

func FuzzRequest(f *testing.F) {
	f.Add(appendRequest(nil, 1, names(1)))
	f.Add(appendRequest(nil, 1<<32-1, names(ChunksMax)))
	f.Add(appendRequest(nil, 7, names(2))[:20])
	f.Add([]byte{0, 0, 0, 1, 0, 0, 0, 0})
	f.Add([]byte{0, 0, 0, 1, 0, ChunksMax + 1, 0, 0})
	f.Add([]byte{0, 0, 0, 1, 0, 1, 0, 1})
	f.Fuzz(func(t *testing.T, in []byte) {
		r := bytes.NewReader(in)
		q, err := readRequest(r)
		if err != nil {
			return
		}
		if n := len(q.names); n == 0 || n > ChunksMax {
			t.Fatalf("%d chunks are asked for", n)
		}
		if again := appendRequest(nil, q.number, q.names); !bytes.Equal(again, in[:len(in)-r.Len()]) {
			t.Fatalf("%x was read of %x", again, in)
		}
	})
}

func FuzzReply(f *testing.F) {
	f.Add(replyOf(1, nil))
	f.Add(replyOf(2, make([]byte, 16), nil, bytes.Repeat([]byte{9}, 4160)))
	f.Add(replyOf(3, make([]byte, 32))[:30])
	f.Add(slices.Concat([]byte{0, 0, 0, 1, 0, 3, 0, 0}, bytes.Repeat([]byte{0xff}, 6))) // more than BytesMax
	f.Add([]byte{0, 0, 0, 1, 0, 0, 0, 0})
	f.Add([]byte{0, 0, 0, 1, 255, 0, 0, 0})
	f.Fuzz(func(t *testing.T, in []byte) {
		r := bytes.NewReader(in)
		p, err := readReply(r)
		if err != nil {
			return
		}
		if len(p.units) == 0 || len(p.units) > ChunksMax || len(p.sealed) > BytesMax {
			t.Fatalf("%d chunks of %d bytes", len(p.units), len(p.sealed))
		}
		chunks := make([][]byte, len(p.units))
		p.each(func(i int, sealed []byte) {
			if len(sealed) == 0 || len(sealed)%id.Unit != 0 {
				t.Fatalf("a chunk of %d bytes", len(sealed))
			}
			chunks[i] = sealed
		})
		if again := replyOf(p.number, chunks...); !bytes.Equal(again, in[:len(in)-r.Len()]) {
			t.Fatalf("%x was read of %x", again, in)
		}
	})
}

func TestReplyBound(t *testing.T) {
	part := make([]byte, BytesMax/4)
	if _, err := readReply(bytes.NewReader(replyOf(1, part, part, part, part))); err != nil {
		t.Errorf("a reply of %d bytes: %v", BytesMax, err)
	}
	over := replyOf(1, part, part, part, part, part[:16])
	if _, err := readReply(bytes.NewReader(over)); !errors.Is(err, errProtocol) {
		t.Errorf("a reply of more than %d bytes: %v", BytesMax, err)
	}
}
