package keyring

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"

	"plinth/internal/chunk"
)

const (
	rootFilePrefix = "plinth-root-v1 "
	rootFileBytes  = len(rootFilePrefix) + 2*chunk.SecretBytes + 1 + 8 + 1
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// CreateRootFile makes a random root key and writes it to path, mode 0600. A
// file that exists is left alone: the error then wraps os.ErrExist. When it
// returns without error, file and directory entry are on stable media. After a
// crash the file is whole or absent.
func CreateRootFile(path string) (*Root, error) {
	secret := chunk.NewSecret()
	if err := createExclusive(path, encodeRoot(secret)); err != nil {
		return nil, fmt.Errorf("create root key file: %w", err)
	}
	return newRoot(secret, nil), nil
}

// createExclusive writes a temporary file and links it to path, which unlike a
// rename fails if there is one. os.CreateTemp makes it 0600.
func createExclusive(path string, text []byte) (err error) {
	dir := filepath.Dir(path)
	tmp, err := os.CreateTemp(dir, ".root-key-*")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(tmp.Name())) }()
	_, err = tmp.Write(text)
	if err = errors.Join(err, tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	if err := os.Link(tmp.Name(), path); err != nil {
		return err
	}
	return syncDir(dir)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// LoadRootFile reads the root key from path. Errors: ErrPermissions if group or
// others may read or write the file, ErrCorrupt, ErrUnsupported, and those of
// os.Open, such as os.ErrNotExist.
func LoadRootFile(path string) (*Root, error) {
	text, err := readPrivate(path)
	if err != nil {
		return nil, fmt.Errorf("load root key: %w", err)
	}
	secret, err := decodeRoot(text)
	if err != nil {
		return nil, fmt.Errorf("load root key from %s: %w", path, err)
	}
	return newRoot(secret, nil), nil
}

func readPrivate(path string) ([]byte, error) {
	// Looked at before it is opened: opening a named pipe would wait for a writer.
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err = f.Stat() // of what was opened, whatever the path means by now
	if err != nil {
		return nil, err
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return nil, fmt.Errorf("%w: %s has mode %04o; run: chmod 600 %s", ErrPermissions, path, mode, path)
	}
	return io.ReadAll(io.LimitReader(f, int64(rootFileBytes)+1))
}

func encodeRoot(secret *chunk.Secret) []byte {
	key := secret.Reveal()
	line := hex.AppendEncode([]byte(rootFilePrefix), key[:])
	return fmt.Appendf(line, " %08x\n", crc32.Checksum(line, castagnoli))
}

func decodeRoot(text []byte) (*chunk.Secret, error) {
	if !bytes.HasPrefix(text, []byte(rootFilePrefix)) {
		if bytes.HasPrefix(text, []byte("plinth-root-v")) {
			return nil, fmt.Errorf("%w: not a root key of version 1", ErrUnsupported)
		}
		return nil, fmt.Errorf("%w: not a root key file", ErrCorrupt)
	}
	if len(text) != rootFileBytes {
		return nil, fmt.Errorf("%w: a root key file has %d bytes, not %d", ErrCorrupt, rootFileBytes, len(text))
	}
	var key [chunk.SecretBytes]byte
	if _, err := hex.Decode(key[:], text[len(rootFilePrefix):][:2*len(key)]); err != nil {
		return nil, fmt.Errorf("%w: key is not hexadecimal", ErrCorrupt) // err would quote it
	}
	secret, err := chunk.SecretFromBytes(key[:])
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(text, encodeRoot(secret)) { // checksum, and the one spelling
		return nil, fmt.Errorf("%w: checksum of the root key file does not match", ErrCorrupt)
	}
	return secret, nil
}
