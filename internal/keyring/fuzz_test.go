package keyring

import (
	"bytes"
	"errors"
	"testing"
)

func FuzzPoolHeader(f *testing.F) {
	pool := newPool(PoolID{1, 2}, fixed(f, 2))
	root := newRoot(fixed(f, 1), nil)
	f.Add(pool.Header(root))
	f.Add(pool.Header(passphrase(f, "x", cheap)))
	f.Add([]byte(headerMagic + "\x02\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) == headerBytes { // let it past the checksum
			b = reseal(bytes.Clone(b))
		}
		h, err := ParsePoolHeader(b)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrUnsupported) {
				t.Fatal(err)
			}
			return
		}
		if h.Root == RootPassphrase && h.KDF.Validate() != nil {
			t.Fatalf("parameters %+v", h.KDF)
		}
		if p, err := OpenPool(b, root); err == nil && p.ID() != h.ID {
			t.Fatal("another pool")
		}
	})
}

func FuzzRootFile(f *testing.F) {
	f.Add(encodeRoot(fixed(f, 1)))
	f.Add([]byte("plinth-root-v2 "))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, text []byte) {
		s, err := decodeRoot(text)
		if err == nil && !bytes.Equal(encodeRoot(s), text) {
			t.Fatalf("two spellings of one key: %q", text)
		}
	})
}

func FuzzWrapped(f *testing.F) {
	pool := newPool(PoolID{1}, fixed(f, 2))
	right := pool.WrapSession(3, fixed(f, 4))
	f.Add(right)
	f.Add(right[:63])
	f.Add([]byte{2})
	f.Fuzz(func(t *testing.T, wrapped []byte) {
		s, err := pool.UnwrapSession(3, wrapped)
		if err == nil && s.Reveal() != fixed(t, 4).Reveal() {
			t.Fatal("unwrapped a secret that nobody wrapped")
		}
	})
}
