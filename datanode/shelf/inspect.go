package shelf

import "github.com/cockroachdb/pebble/v2/vfs"

// PoolID returns the pool whose data node dir holds, without opening it. Errors:
// ErrNoNode, ErrForeign, ErrNewer, ErrDamaged.
func PoolID(fs vfs.FS, dir string) ([16]byte, error) {
	s, err := place{fs, dir}.readSuperblock()
	return s.poolID, err
}
