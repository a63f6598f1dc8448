package chunk

import (
	"fmt"
	"iter"
	"strconv"
	"strings"

	"plinth/internal/id"
)

// Size is a disk's chunk size in bytes: a power of two from SizeMin to SizeMax.
type Size uint32

const (
	SizeMin     Size = 4 << 10
	SizeMax     Size = 64 << 10
	SizeDefault      = SizeMin
)

// Validate returns an error that says what sizes there are.
func (s Size) Validate() error {
	if s < SizeMin || s > SizeMax || s&(s-1) != 0 {
		return fmt.Errorf("chunk size %d is not 4K, 8K, 16K, 32K or 64K", uint32(s))
	}
	return nil
}

// ParseSize reads a size as flags spell it: 4096, 4K, 4KiB, in either case.
func ParseSize(text string) (Size, error) {
	digits, shift := strings.ToLower(text), 0
	for _, suffix := range []string{"kib", "k"} {
		if d, ok := strings.CutSuffix(digits, suffix); ok {
			digits, shift = d, 10
			break
		}
	}
	n, err := strconv.ParseUint(digits, 10, 20)
	if err != nil || n<<shift > uint64(SizeMax) {
		return 0, fmt.Errorf("chunk size %q is not 4K, 8K, 16K, 32K or 64K", text)
	}
	s := Size(n << shift)
	return s, s.Validate()
}

func (s Size) String() string {
	if s%1024 == 0 {
		return strconv.Itoa(int(s/1024)) + "K"
	}
	return strconv.Itoa(int(s))
}

// Piece is the share of one chunk in a range of bytes.
type Piece struct {
	LBA id.LBA
	Off int // first byte, within the chunk
	Len int // bytes, at least 1; the whole chunk if equal to its Size
}

// Split cuts the n bytes from byte off of a disk at chunk borders and yields
// the pieces in order. Off and n are not negative and off+n does not overflow;
// n may be 0 and then there are none.
func (s Size) Split(off, n int64) iter.Seq[Piece] {
	return func(yield func(Piece) bool) {
		size := int64(s)
		for n > 0 {
			in := off & (size - 1)
			take := min(size-in, n)
			if !yield(Piece{LBA: id.LBA(off / size), Off: int(in), Len: int(take)}) {
				return
			}
			off, n = off+take, n-take
		}
	}
}
