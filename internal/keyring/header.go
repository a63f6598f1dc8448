package keyring

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
)

const (
	headerMagic   = "PLNTPOOL"
	headerVersion = 1
	headerKDF     = 32
	headerWrapped = headerKDF + kdfBytes
	headerSum     = headerWrapped + wrappedBytes
	headerBytes   = headerSum + 4
)

// RootKind is the way to get at a root key.
type RootKind uint8

const (
	RootFile       RootKind = 1
	RootPassphrase RootKind = 2
)

func (k RootKind) String() string {
	switch k {
	case RootFile:
		return "root key file"
	case RootPassphrase:
		return "passphrase"
	}
	return fmt.Sprintf("root(%d)", uint8(k))
}

// PoolHeader is what a pool header says without any key: which root to ask for.
type PoolHeader struct {
	ID   PoolID
	Root RootKind
	KDF  KDFParams // for RootPassphrase
}

// ParsePoolHeader reads the open fields of a pool header and checks its
// checksum and bounds. Errors: ErrCorrupt, ErrUnsupported.
func ParsePoolHeader(b []byte) (PoolHeader, error) {
	if len(b) < 12 || string(b[:8]) != headerMagic {
		return PoolHeader{}, fmt.Errorf("%w: not a pool header", ErrCorrupt)
	}
	if v, f := binary.LittleEndian.Uint16(b[8:]), binary.LittleEndian.Uint16(b[10:]); v != headerVersion || f != 0 {
		return PoolHeader{}, fmt.Errorf("%w: pool header of version %d, features %#x", ErrUnsupported, v, f)
	}
	if len(b) != headerBytes {
		return PoolHeader{}, fmt.Errorf("%w: a pool header has %d bytes, not %d", ErrCorrupt, headerBytes, len(b))
	}
	if crc32.Checksum(b[:headerSum], castagnoli) != binary.LittleEndian.Uint32(b[headerSum:]) {
		return PoolHeader{}, fmt.Errorf("%w: checksum of the pool header does not match", ErrCorrupt)
	}
	h := PoolHeader{ID: PoolID(b[16:headerKDF]), Root: RootKind(b[14])}
	switch {
	case b[15] != 0:
		return PoolHeader{}, fmt.Errorf("%w: a reserved byte of the pool header is not zero", ErrCorrupt)
	case h.Root == RootFile:
		return h, nil
	case h.Root == RootPassphrase:
		var err error
		h.KDF, err = parseKDFParams(b[headerKDF:headerWrapped])
		return h, err
	}
	return PoolHeader{}, fmt.Errorf("%w: %s", ErrUnsupported, h.Root)
}

// Header returns the pool's header with its secret wrapped under root: the one
// it was opened with, or another to which the pool changes.
func (p *Pool) Header(root *Root) []byte {
	b := make([]byte, headerWrapped, headerBytes)
	copy(b, headerMagic)
	binary.LittleEndian.PutUint16(b[8:], headerVersion)
	b[14] = byte(root.Kind())
	copy(b[16:], p.id[:])
	if root.kdf != nil {
		root.kdf.put(b[headerKDF:])
	}
	b = append(b, root.Wrap(poolAD(b), p.secret)...)
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}
