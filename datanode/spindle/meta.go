package spindle

import (
	"errors"
	"fmt"
	"io"
	"os"

	"plinth/datanode"
	"plinth/internal/id"
	"plinth/internal/vfsx"
)

const (
	// MetaBytesMax bounds one small file on a spindle.
	MetaBytesMax = 64 << 20

	// TempSuffix ends the name of a file that was not finished.
	TempSuffix = ".new"

	metaPrefix = "meta-"
	metaMagic  = "plinthMT"
)

// encodeMetaHead returns what stands before the data of a small file.
func encodeMetaHead(pool *[16]byte, data []byte) []byte {
	b := make([]byte, headBytes)
	copy(b, metaMagic)
	le.PutUint16(b[8:], version)
	copy(b[16:], pool[:])
	le.PutUint64(b[32:], uint64(len(data)))
	le.PutUint32(b[40:], checksum(data))
	le.PutUint32(b[60:], checksum(b[:60]))
	return b
}

// decodeMeta returns the data of a small file, part of b.
func decodeMeta(b []byte, pool *[16]byte) ([]byte, error) {
	if err := checkHead("small file", metaMagic, b); err != nil {
		return nil, err
	}
	data := b[headBytes:]
	switch {
	case [16]byte(b[16:]) != *pool:
		return nil, fmt.Errorf("small file: %w: of pool %x", errDamaged, b[16:32])
	case le.Uint64(b[32:]) != uint64(len(data)) || le.Uint32(b[40:]) != checksum(data):
		return nil, fmt.Errorf("small file: %w: length or checksum", errDamaged)
	}
	return data, nil
}

// meta finds a spindle for a call, which sp.leave ends.
func (s *Set) meta(spindle id.Spindle, file string) (*spindle, error) {
	valid := len(file) > 0 && len(file) <= 64
	for _, c := range file {
		valid = valid && (c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-')
	}
	all := s.all()
	if !valid || int(spindle) >= len(all) {
		return nil, datanode.Errorf(datanode.ErrInvalid, "small file %q on spindle %d", file, spindle)
	}
	sp := all[spindle]
	if err := sp.enter(); err != nil {
		return nil, err
	}
	return sp, nil
}

// PutMeta stores a small file on a spindle, durably and in one step: after a
// crash it is the new or the previous one. Names have 1 to 64 lower-case
// letters, digits and hyphens. Errors: ErrInvalid, ErrSpindle, ErrNoSpace.
func (s *Set) PutMeta(spindle id.Spindle, file string, data []byte) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.life.RUnlock()
	sp, err := s.meta(spindle, file)
	if err != nil {
		return err
	}
	defer sp.leave()
	if len(data) > MetaBytesMax {
		return datanode.Errorf(datanode.ErrInvalid, "small file %s of %d bytes: at most %d", file, len(data), MetaBytesMax)
	}
	sp.metaMu.Lock()
	defer sp.metaMu.Unlock()
	path := sp.fs.PathJoin(sp.dir, metaPrefix+file)
	if err := sp.putMeta(path, data); err != nil {
		if vfsx.IsNoSpace(err) {
			sp.fs.Remove(path + TempSuffix) // a leftover only takes space
			return datanode.Errorf(datanode.ErrNoSpace, "write %s: %s", path, err)
		}
		return sp.fault(fmt.Errorf("write %s: %w", path, err))
	}
	return nil
}

func (sp *spindle) putMeta(path string, data []byte) error {
	if err := sp.present(); err != nil {
		return err // before a file comes to lie on another drive
	}
	// Pebble's file systems may change what they are given to write.
	copied := append([]byte(nil), data...)
	if err := writeFile(sp.fs, path+TempSuffix, encodeMetaHead(&sp.pool, data), copied); err != nil {
		return err
	}
	if err := sp.fs.Rename(path+TempSuffix, path); err != nil {
		return err
	}
	if err := vfsx.SyncDir(sp.fs, sp.dir); err != nil {
		return err
	}
	return sp.present()
}

// GetMeta returns what PutMeta stored last. Errors: ErrInvalid, ErrSpindle,
// ErrNotFound, ErrCorrupt.
func (s *Set) GetMeta(spindle id.Spindle, file string) ([]byte, error) {
	if err := s.enter(); err != nil {
		return nil, err
	}
	defer s.life.RUnlock()
	sp, err := s.meta(spindle, file)
	if err != nil {
		return nil, err
	}
	defer sp.leave()
	path := sp.fs.PathJoin(sp.dir, metaPrefix+file)
	f, err := sp.fs.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, datanode.Errorf(datanode.ErrNotFound, "%s", path)
	}
	if err != nil {
		return nil, datanode.Errorf(datanode.ErrCorrupt, "read %s: %s", path, err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, headBytes+MetaBytesMax+1))
	if err == nil {
		b, err = decodeMeta(b, &sp.pool)
	}
	if err != nil {
		return nil, datanode.Errorf(datanode.ErrCorrupt, "read %s: %s", path, err)
	}
	return b, nil
}
