package chunk

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"plinth/internal/id"
)

// keyMap is a Keys over secrets a test has made.
type keyMap map[id.Key]*Secret

func (m keyMap) Key(k id.Key) (*Secret, error) {
	if s := m[k]; s != nil {
		return s, nil
	}
	return nil, ErrUnknownKey
}

// house is a pool in small: one session, whatever opens its chunks, and
// fingerprints, all under fixed secrets.
type house struct {
	*Sealer
	*Opener
	*Hasher
}

func newHouse(t testing.TB, opts OpenerOptions) house {
	t.Helper()
	secret, err := SecretFromBytes(bytes.Repeat([]byte{1}, SecretBytes))
	if err != nil {
		t.Fatal(err)
	}
	domain, err := SecretFromBytes(bytes.Repeat([]byte{2}, SecretBytes))
	if err != nil {
		t.Fatal(err)
	}
	s, err := NewSealer(7, secret, func() (id.Key, *Secret, error) { return 0, nil, errors.New("no more keys") }, SealerOptions{})
	if err != nil {
		t.Fatal(err)
	}
	h := NewHasher(domain)
	return house{s, NewOpener(keyMap{7: secret}, h, opts), h}
}

// noise does not compress, text does.
func noise(n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{byte(n), byte(n >> 8)}).Read(b)
	return b
}

func text(n int) []byte {
	var b []byte
	for i := 0; len(b) < n; i++ {
		b = fmt.Appendf(b, "%d bottles of rain on the wall; ", i*i)
	}
	return b[:n]
}

// half compresses by half, everywhere alike, as fio's buffers do.
func half(n int) []byte {
	b := noise(n)
	for i := 256; i < n; i += 512 {
		clear(b[i:min(i+256, n)])
	}
	return b
}

var (
	suites   = []Suite{AES256GCM, AES256XTS}
	sizes    = []int{4096, 8192, 16384, 32768, 65536}
	contents = []struct {
		name  string
		make  func(int) []byte
		codec Codec
	}{{"noise", noise, Raw}, {"half", half, S2}, {"text", text, S2}}
	somePart = PartAD{Disk: 3, Epoch: 4, Pos: 5, Offset: 6}
	someUnit = UnitAD{Object: [24]byte{8, 9}, Unit: 10}
)

func TestChunkRoundTrip(t *testing.T) {
	for _, verify := range []bool{false, true} {
		h := newHouse(t, OpenerOptions{Verify: verify})
		for _, suite := range suites {
			for _, size := range sizes {
				for _, content := range contents {
					plain := content.make(size)
					fp := h.Sum(plain)
					sealed, err := h.SealChunk([]byte("before"), suite, fp, plain)
					if err != nil {
						t.Fatal(err)
					}
					sealed = checkPrefix(t, sealed)
					header := checkHeader(t, sealed, Header{Suite: suite, Codec: content.codec, Kind: KindChunk, PlainLen: size, Key: 7, Fingerprint: fp})
					if budget := 32 + header.tag(); content.codec == Raw && len(sealed) != size+budget {
						t.Errorf("%s: %d bytes for a chunk of %d", suite, len(sealed), size)
					}
					keep := slices.Clone(sealed)
					got, err := h.OpenChunk([]byte("before"), sealed, fp)
					if err != nil {
						t.Fatal(err)
					}
					if !bytes.Equal(checkPrefix(t, got), plain) || !bytes.Equal(sealed, keep) {
						t.Errorf("%s, %s, %d bytes: round trip differs", suite, content.name, size)
					}
				}
			}
		}
	}
}

func TestPartRoundTrip(t *testing.T) {
	h := newHouse(t, OpenerOptions{})
	for _, suite := range suites {
		for _, n := range []int{1, 2, 15, 16, 17, 31, 32, 33, 511, 512, 1000, 4095, 4097, 65519, 65521, 65535, 65536} {
			for _, content := range contents {
				plain := content.make(n)
				sealed, err := h.SealPart([]byte("before"), suite, somePart, plain)
				if err != nil {
					t.Fatal(err)
				}
				sealed = checkPrefix(t, sealed)
				codec := content.codec
				if n < 200 {
					codec = Raw
				}
				checkHeader(t, sealed, Header{Suite: suite, Codec: codec, Kind: KindPart, PlainLen: n, Key: 7})
				got, err := h.OpenPart([]byte("before"), sealed, somePart)
				if err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(checkPrefix(t, got), plain) {
					t.Errorf("%s, %s, %d bytes: round trip differs", suite, content.name, n)
				}
			}
		}
	}
}

func TestUnitRoundTrip(t *testing.T) {
	h := newHouse(t, OpenerOptions{})
	for _, n := range []int{1, 16, 4095, 32768, 65535, 65536} {
		plain := text(n)
		sealed, err := h.SealUnit(nil, someUnit, plain)
		if err != nil {
			t.Fatal(err)
		}
		if len(sealed) != UnitSealedBytes(n) {
			t.Errorf("a unit of %d bytes takes %d, stated %d", n, len(sealed), UnitSealedBytes(n))
		}
		got, err := h.OpenUnit(nil, sealed, someUnit)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, plain) {
			t.Errorf("%d bytes: round trip differs", n)
		}
	}
}

func TestSealRefuses(t *testing.T) {
	h := newHouse(t, OpenerOptions{})
	for _, n := range []int{0, 1, 4095, 4097, 2048, 12288, 131072} {
		if _, err := h.SealChunk(nil, AES256GCM, id.Fingerprint{}, make([]byte, n)); err == nil {
			t.Errorf("sealed a chunk of %d bytes", n)
		}
	}
	for _, n := range []int{0, PlainBytesMax + 1} {
		if _, err := h.SealPart(nil, AES256GCM, somePart, make([]byte, n)); err == nil {
			t.Errorf("sealed a part of %d bytes", n)
		}
		if _, err := h.SealUnit(nil, someUnit, make([]byte, n)); err == nil {
			t.Errorf("sealed a unit of %d bytes", n)
		}
	}
	for _, suite := range []Suite{0, 3, 16} {
		if _, err := h.SealPart(nil, suite, somePart, []byte{1}); !errors.Is(err, ErrUnsupported) {
			t.Errorf("sealed under %s: %v", suite, err)
		}
	}
}

// Nothing a guest wrote is readable in what leaves the host.
func TestMarkerDoesNotShow(t *testing.T) {
	h := newHouse(t, OpenerOptions{})
	marker := []byte("MARKER-7f3a-do-not-show")
	for _, suite := range suites {
		for _, content := range contents {
			plain := content.make(8192)
			for off := 0; off+len(marker) <= len(plain); off += 1000 {
				copy(plain[off:], marker)
			}
			var all []byte
			all, err1 := h.SealChunk(all, suite, h.Sum(plain), plain)
			all, err2 := h.SealPart(all, suite, somePart, plain[500:2222])
			all, err3 := h.SealPart(all, suite, somePart, marker)
			all, err4 := h.SealUnit(all, someUnit, plain)
			if err := errors.Join(err1, err2, err3, err4); err != nil {
				t.Fatal(err)
			}
			// Any eight bytes of it would be too many.
			for i := range len(marker) - 7 {
				if bytes.Contains(all, marker[i:i+8]) {
					t.Fatalf("%s, %s: %q shows in the sealed bytes", suite, content.name, marker[i:i+8])
				}
			}
		}
	}
}

func checkPrefix(t testing.TB, b []byte) []byte {
	t.Helper()
	rest, ok := bytes.CutPrefix(b, []byte("before"))
	if !ok {
		t.Fatal("did not append")
	}
	return rest
}

// checkHeader compares all fields but Len, Pad and Counter, which it checks
// against the rest, with want.
func checkHeader(t testing.TB, sealed []byte, want Header) Header {
	t.Helper()
	h, err := ParseHeader(sealed)
	if err != nil {
		t.Fatal(err)
	}
	if h.Len != len(sealed) || h.Len%id.Unit != 0 || h.Counter == 0 {
		t.Fatalf("%d bytes have header %+v", len(sealed), h)
	}
	want.Len, want.Pad, want.Counter = h.Len, h.Pad, h.Counter
	if h != want {
		t.Fatalf("header %+v, want %+v", h, want)
	}
	return h
}
