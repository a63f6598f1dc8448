package interop

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// fileSystem is a kind of image and how to look whether it is sound.
type fileSystem struct {
	name  string
	make  func(t *testing.T, path string)
	check []string
}

var fileSystems = []fileSystem{
	{"ext4", makeExt4, []string{"e2fsck", "-fn"}},
	{"xfs", makeXFS, []string{"xfs_repair", "-n", "-f"}},
}

// makeExt4 makes an image with a tree of small files.
func makeExt4(t *testing.T, path string) {
	t.Helper()
	allocate(t, path, 160<<20)
	root := strings.TrimSpace(string(run(t, "go", "env", "GOROOT")))
	run(t, "mkfs.ext4", "-q", "-F", "-d", filepath.Join(root, "src", "crypto"), path)
}

// makeXFS makes an image with large files: mkfs takes no tree, but a list.
func makeXFS(t *testing.T, path string) {
	t.Helper()
	allocate(t, path, 320<<20)
	list := filepath.Join(t.TempDir(), "list")
	text := fmt.Sprintf("/\n0 0\nd--755 0 0\nplinth ---755 0 0 %s\nagain ---644 0 0 %s\n$\n", executable, executable)
	if err := os.WriteFile(list, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, "mkfs.xfs", "-q", "-p", list, path)
}

func allocate(t *testing.T, path string, bytes int64) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(bytes); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

// Images of real file systems go in and out by both programs and both kinds of
// socket, and are the same after a restart without the host's directory.
func TestImages(t *testing.T) {
	t.Parallel()
	dir := tempDir(t)
	data := filepath.Join(dir, "data")
	s := start(t, data, small...)
	sums := map[string][]byte{}
	for _, fs := range fileSystems {
		image := filepath.Join(dir, fs.name)
		fs.make(t, image)
		sums[fs.name] = sum(t, image)
		info, err := os.Stat(image)
		if err != nil {
			t.Fatal(err)
		}
		for _, network := range networks {
			for program, in := range map[string][]string{
				"qemu":    {"qemu-img", "convert", "-n", "-f", "raw", "-O", "raw"},
				"nbdcopy": {"nbdcopy", "--flush"},
			} {
				disk := strings.Join([]string{fs.name, network, program}, "-")
				s.command(t, "disk", "create", disk, fmt.Sprint(info.Size()))
				run(t, in[0], append(in[1:], image, s.uri(network, disk))...)
				s.checkImage(t, fs, image, network, disk, sums[fs.name])
			}
		}
	}
	s.stop(t)
	if err := os.RemoveAll(filepath.Join(data, "host")); err != nil {
		t.Fatal(err)
	}
	s = start(t, data, small...)
	for _, fs := range fileSystems {
		for _, network := range networks {
			for _, program := range []string{"qemu", "nbdcopy"} {
				disk := strings.Join([]string{fs.name, network, program}, "-")
				s.checkImage(t, fs, filepath.Join(dir, fs.name), network, disk, sums[fs.name])
			}
		}
	}
	if out := s.command(t, "verify"); !strings.Contains(out, "nothing is wrong") {
		t.Errorf("verify says:\n%s", out)
	}
	s.stop(t)
}

// checkImage compares a disk with an image and copies it out again, by the
// program that the disk is named for.
func (s *site) checkImage(t *testing.T, fs fileSystem, image, network, disk string, want []byte) {
	t.Helper()
	out := filepath.Join(filepath.Dir(image), "out")
	defer os.Remove(out)
	uri := s.uri(network, disk)
	if strings.HasSuffix(disk, "qemu") {
		run(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", image, uri)
		run(t, "qemu-img", "convert", "-f", "raw", "-O", "raw", uri, out)
	} else {
		run(t, "nbdcopy", uri, out)
	}
	if !bytes.Equal(sum(t, out), want) {
		t.Errorf("%s: the image that comes out is not the one that went in", disk)
	}
	run(t, fs.check[0], append(fs.check[1:], out)...)
}

// sum returns a file's SHA-256.
func sum(t *testing.T, path string) []byte {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		t.Fatal(err)
	}
	return h.Sum(nil)
}
