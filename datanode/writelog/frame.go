package writelog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"plinth/datanode"
	"plinth/internal/id"
)

// kind says what a frame is.
type kind uint8

const (
	kindRecord   kind = 1
	kindFence    kind = 2 // data: the floors
	kindTrim     kind = 3 // pos: through
	kindDrop     kind = 4
	kindSnapshot kind = 5
	kindMark     kind = 6 // only tells what is stable
	kindReset    kind = 7 // data: where the streams go on
	kindCopy     kind = 8 // a record under an epoch of its own
	kindEnd      kind = 9 // the first that is unknown
)

func (k kind) isRecord() bool { return k == kindRecord || k == kindCopy }

const (
	frameMagic   = 0x676c6c70 // "pllg"
	frameVersion = 1
	frameBytes   = 72 // of a header
	frameAlign   = 8
	fenceBytes   = 8 * datanode.Streams
)

var (
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
	le         = binary.LittleEndian
)

var (
	// errNoFrame: the bytes are no frame of this file: its end, or damage.
	errNoFrame = errors.New("no valid frame")
	// errUnsupported: a newer program wrote this.
	errUnsupported = errors.New("unsupported format, written by a newer version")
)

// positions are the data of a fence or a reset.
func positions(of [datanode.Streams]id.Pos) []byte {
	b := make([]byte, 0, fenceBytes)
	for _, pos := range of {
		b = le.AppendUint64(b, uint64(pos))
	}
	return b
}

// frame is a decoded header.
type frame struct {
	kind   kind
	stream datanode.Stream
	typ    uint8
	salt   uint64
	disk   id.Disk
	epoch  id.Epoch
	pos    id.Pos
	mac    [16]byte
	length uint32 // of the data, without padding
	stable uint32 // bytes of the file that were stable when this was written
	sum    uint32 // CRC32C of the data and its padding
}

// padded returns n rounded up to a frame's alignment.
func padded(n int) int { return (n + frameAlign - 1) &^ (frameAlign - 1) }

// frameSize returns what a frame with n bytes of data takes in a file.
func frameSize(n int) int { return frameBytes + padded(n) }

func (f *frame) size() int { return frameSize(int(f.length)) }

// appendFrame appends a frame with its data. Salt, stable and the header's
// checksum are filled in by seal, once its file is known.
func appendFrame(b []byte, f *frame, data []byte) []byte {
	start := len(b)
	b = append(b, make([]byte, frameBytes)...)
	b = append(b, data...)
	for len(b)%frameAlign != start%frameAlign {
		b = append(b, 0)
	}
	h := b[start:]
	le.PutUint32(h[0:], frameMagic)
	h[4], h[5], h[6], h[7] = frameVersion, byte(f.kind), byte(f.stream), f.typ
	le.PutUint64(h[16:], uint64(f.disk))
	le.PutUint64(h[24:], uint64(f.epoch))
	le.PutUint64(h[32:], uint64(f.pos))
	copy(h[40:56], f.mac[:])
	le.PutUint32(h[56:], uint32(len(data)))
	le.PutUint32(h[64:], crc32.Checksum(h[frameBytes:], castagnoli))
	return b
}

// seal completes the frames in b for a file of which stable bytes are stable.
func seal(b []byte, salt uint64, stable uint32) {
	for len(b) > 0 {
		le.PutUint64(b[8:], salt)
		le.PutUint32(b[60:], stable)
		le.PutUint32(b[68:], crc32.Checksum(b[:68], castagnoli))
		b = b[sealedSize(b):]
	}
}

// sealedSize returns the size of the frame that appendFrame put at b's start.
func sealedSize(b []byte) int { return frameSize(int(le.Uint32(b[56:]))) }

// parseHeader decodes the header at the start of b, of a file with that salt.
// Errors: errNoFrame, errUnsupported.
func parseHeader(b []byte, salt uint64) (frame, error) {
	if len(b) < frameBytes || le.Uint32(b) != frameMagic || le.Uint64(b[8:]) != salt ||
		le.Uint32(b[68:]) != crc32.Checksum(b[:68], castagnoli) {
		return frame{}, errNoFrame
	}
	f := frame{
		kind: kind(b[5]), stream: datanode.Stream(b[6]), typ: b[7],
		salt: salt, disk: id.Disk(le.Uint64(b[16:])), epoch: id.Epoch(le.Uint64(b[24:])),
		pos: id.Pos(le.Uint64(b[32:])), mac: [16]byte(b[40:56]),
		length: le.Uint32(b[56:]), stable: le.Uint32(b[60:]), sum: le.Uint32(b[64:]),
	}
	if b[4] != frameVersion || f.kind == 0 || f.kind >= kindEnd {
		return f, fmt.Errorf("frame version %d, kind %d: %w", b[4], f.kind, errUnsupported)
	}
	if f.stream >= datanode.Streams {
		return f, fmt.Errorf("frame of stream %d: %w", f.stream, errUnsupported)
	}
	return f, nil
}

// parseFrame decodes and checks the whole frame at the start of b, which may
// go on behind it. The data is a part of b. Errors: as parseHeader.
func parseFrame(b []byte, salt uint64) (frame, []byte, error) {
	f, err := parseHeader(b, salt)
	if err != nil {
		return f, nil, err
	}
	if int64(f.length) > int64(len(b)-frameBytes) || f.size() > len(b) ||
		crc32.Checksum(b[frameBytes:f.size()], castagnoli) != f.sum {
		return f, nil, errNoFrame
	}
	end := frameBytes + int(f.length)
	return f, b[frameBytes:end:end], nil
}

// provenStable looks behind a bad frame at off for one that proves that the
// bytes there were stable, and returns where.
func provenStable(b []byte, salt uint64, off int) (at int, ok bool) {
	for at = padded(off + 1); at+frameBytes <= len(b); at += frameAlign {
		if le.Uint64(b[at+8:]) != salt {
			continue
		}
		f, err := parseHeader(b[at:], salt)
		if !errors.Is(err, errNoFrame) && int64(f.stable) > int64(off) {
			return at, true
		}
	}
	return 0, false
}
