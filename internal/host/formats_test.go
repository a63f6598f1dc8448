package host_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"flag"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"plinth/datanode/shelf"
	"plinth/internal/chunk"
	"plinth/internal/host"
	"plinth/internal/standalone"
	"plinth/nbd"
)

var formatMake = flag.String("format-make", "", "TestEarlierFormats: make testdata/formats/NAME.tar.zst of the format as it is now")

const (
	formatDir      = "testdata/formats"
	formatBytesMax = 256 << 20 // of a pool that is unpacked
)

func formatOptions(dir string, t *testing.T) standalone.Options {
	opts := siteOptions(t)
	opts.Dir = dir
	opts.Node = shelf.Options{Spindles: 4, LogBytes: shelf.LogBytesMin, SpindleBytes: shelf.SpindleBytesMin}
	return opts
}

// formatContent is what a disk holds: noise, what compresses, and zeros.
func formatContent(seed byte) []byte {
	p := make([]byte, 96<<10)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(p)
	for i := 32 << 10; i < 64<<10; i++ {
		p[i] = p[i&^63]
	}
	clear(p[64<<10 : 80<<10])
	return p
}

// What the pool of a format has: disks and snapshots by name.
func formatContents() map[string][]byte {
	old, now, other, clone := formatContent(1), formatContent(1), formatContent(2), formatContent(1)
	copy(now[4096:], formatContent(3)[:8192])
	copy(now[5000:], formatContent(4)[:1000]) // not destaged
	clear(now[40<<10 : 48<<10])
	copy(clone, formatContent(5)[:4096])
	return map[string][]byte{"gcm": now, "gcm@s": old, "xts": other, "clone": clone}
}

// makeFormat makes a pool as a crash leaves it, and packs it without what is
// disposable.
func makeFormat(t *testing.T, name string) {
	s := openSite(t, formatOptions(t.TempDir(), t))
	s.write("gcm", formatContent(1))
	_, err := s.Host.CreateDisk(t.Context(), host.DiskSpec{Name: "xts", Bytes: 96 << 10, Chunk: 64 << 10, Cipher: chunk.AES256XTS.String()})
	s.ok(err)
	s.put("xts", 0, formatContent(2))
	s.snap("gcm", "s")
	s.put("gcm", 4096, formatContent(3)[:8192])
	s.ok(s.Host.Quiesce(t.Context()))
	s.clone("gcm", "s", "clone")
	s.put("clone", 0, formatContent(5)[:4096])
	s.ok(s.Host.Quiesce(t.Context()))
	s.ok(s.Host.Sweep(t.Context()))
	s.put("gcm", 5000, formatContent(4)[:1000])
	s.ok(s.device("gcm", func(d nbd.Device) error { return d.Zero(t.Context(), 40<<10, 8<<10, true, true) }))
	s.ok(os.MkdirAll(formatDir, 0o755))
	f, err := os.Create(filepath.Join(formatDir, name+".tar.zst"))
	s.ok(err)
	z, err := zstd.NewWriter(f, zstd.WithEncoderLevel(zstd.SpeedBestCompression))
	s.ok(err)
	w := tar.NewWriter(z)
	root := os.DirFS(s.opts.Dir)
	s.ok(fs.WalkDir(root, ".", func(path string, e fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case e.IsDir() && path == "host":
			return fs.SkipDir
		case !e.Type().IsRegular():
			return nil
		}
		content, err := fs.ReadFile(root, path)
		if err != nil {
			return err
		}
		if err := w.WriteHeader(&tar.Header{Name: path, Mode: 0o600, Size: int64(len(content))}); err != nil {
			return err
		}
		_, err = w.Write(content)
		return err
	}))
	s.ok(errors.Join(w.Close(), z.Close(), f.Close()))
}

func unpackFormat(t *testing.T, path, dir string) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := zstd.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	for r := tar.NewReader(io.LimitReader(z, formatBytesMax)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil || !filepath.IsLocal(h.Name) {
			t.Fatalf("%s: %+v, %v", path, h, err)
		}
		to := filepath.Join(dir, h.Name)
		var content bytes.Buffer
		if _, err := content.ReadFrom(r); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(os.MkdirAll(filepath.Dir(to), 0o700), os.WriteFile(to, content.Bytes(), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
}

// TestEarlierFormats opens pools that earlier versions made and left as by a crash:
// what they hold is there, it can be written, reclaimed and read again, and verify
// finds nothing. A change of a format that fails it needs a step that reads the old
// one.
func TestEarlierFormats(t *testing.T) {
	if *formatMake != "" {
		makeFormat(t, *formatMake)
	}
	all, err := filepath.Glob(filepath.Join(formatDir, "*.tar.zst"))
	if err != nil || len(all) == 0 {
		t.Fatalf("there are no earlier formats: %v", err)
	}
	for _, path := range all {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".tar.zst"), func(t *testing.T) {
			dir := t.TempDir()
			unpackFormat(t, path, dir)
			s := openSite(t, formatOptions(dir, t))
			want := formatContents()
			for name, content := range want {
				s.has(name, content)
			}
			s.put("gcm", 80<<10, want["xts"][:8192])
			copy(want["gcm"][80<<10:], want["xts"][:8192])
			s.ok(s.Host.Quiesce(t.Context()))
			s.restart()
			for name, content := range want {
				s.has(name, content)
			}
			s.verified()
		})
	}
}
