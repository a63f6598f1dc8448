package guest

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// archive builds an initramfs in the kernel's format, "newc" of cpio, without
// compression, which an emulated processor would undo slowly.
type archive struct {
	buf   bytes.Buffer
	paths []string // what is in it, with folders
}

const (
	modeFolder  = 0o040755
	modeProgram = 0o100755
)

// add puts a file and the folders above it into the archive. path begins with a
// slash. A path that is there already stays as it is.
func (a *archive) add(path string, content []byte) {
	for i := 1; i < len(path); i++ {
		if path[i] == '/' {
			a.entry(path[:i], modeFolder, nil)
		}
	}
	a.entry(path, modeProgram, content)
}

func (a *archive) entry(path string, mode int, content []byte) {
	if slices.Contains(a.paths, path) {
		return
	}
	a.paths = append(a.paths, path)
	a.record(strings.TrimPrefix(path, "/"), len(a.paths), mode, content)
}

// record is a header of 13 numbers of 8 hexadecimal digits, a name that ends with
// NUL, and the content, the last two padded to 4 bytes.
func (a *archive) record(name string, inode, mode int, content []byte) {
	a.buf.WriteString("070701")
	for _, n := range []int{inode, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0} {
		fmt.Fprintf(&a.buf, "%08x", n)
	}
	a.buf.WriteString(name)
	a.buf.WriteByte(0)
	a.pad()
	a.buf.Write(content)
	a.pad()
}

func (a *archive) pad() { a.buf.Write(make([]byte, -a.buf.Len()&3)) }

// bytes ends the archive.
func (a *archive) bytes() []byte {
	a.record("TRAILER!!!", 0, 0, nil)
	return a.buf.Bytes()
}

// addFile puts a file of this machine at a path.
func (a *archive) addFile(path, from string) error {
	content, err := os.ReadFile(from)
	if err == nil {
		a.add(path, content)
	}
	return err
}

// addProgram puts a program of this machine and its libraries where they are here.
func (a *archive) addProgram(ctx context.Context, name string) error {
	path, err := lookPath(name)
	if err != nil {
		return err
	}
	if err := a.addFile(path, path); err != nil {
		return err
	}
	out, err := command(ctx, "", "ldd", path)
	if err != nil {
		return nil // it is no dynamic executable
	}
	for word := range strings.FieldsSeq(string(out)) {
		if strings.HasPrefix(word, "/") {
			if err := a.addFile(word, word); err != nil {
				return err
			}
		}
	}
	return nil
}

// lookPath finds a program also where only root has it in the path.
func lookPath(name string) (string, error) {
	path, err := exec.LookPath(name)
	if err == nil {
		return filepath.Abs(path)
	}
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		path := filepath.Join(dir, name)
		if _, serr := os.Stat(path); serr == nil {
			return path, nil
		}
	}
	return "", err
}
