package guest

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// plainExt is added to the name of an image for that of what it contains.
const plainExt = ".plain"

// decompressors are programs that decompress their input, by what that begins with.
var decompressors = map[string]string{"\xfd7zXZ\x00": "xz", "\x28\xb5\x2f\xfd": "zstd"}

// decompress writes the ELF file that a bzImage contains to a path. QEMU boots that
// by its PVH entry.
func decompress(ctx context.Context, image, to string) error {
	b, err := os.ReadFile(image)
	if err != nil {
		return err
	}
	packed, err := payload(b)
	if err != nil {
		return err
	}
	for magic, program := range decompressors {
		if bytes.HasPrefix(packed, []byte(magic)) {
			cmd := exec.CommandContext(ctx, program, "-dc")
			cmd.Stdin = bytes.NewReader(packed)
			plain, err := output(cmd)
			if err != nil {
				return err
			}
			return replaceFile(to, plain)
		}
	}
	return fmt.Errorf("compressed by what begins with % x", packed[:min(8, len(packed))])
}

// payload returns the compressed kernel of a bzImage (Documentation/x86/boot.rst),
// without the size that follows it.
func payload(image []byte) ([]byte, error) {
	const sectors, magic, offset, length, end = 0x1f1, 0x202, 0x248, 0x24c, 0x250
	if len(image) < end || string(image[magic:magic+4]) != "HdrS" {
		return nil, errors.New("no bzImage")
	}
	at := (int64(image[sectors])+1)*512 + int64(binary.LittleEndian.Uint32(image[offset:]))
	n := int64(binary.LittleEndian.Uint32(image[length:]))
	if n < 4 || at+n > int64(len(image)) {
		return nil, fmt.Errorf("a payload of %d bytes at %d of %d", n, at, len(image))
	}
	return image[at : at+n-4], nil
}

// replaceFile writes a file whole: others may do the same at a time.
func replaceFile(path string, b []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), "new")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(b)
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
