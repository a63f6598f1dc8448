package guest

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// An archive of one file, byte for byte as the kernel's documentation has it
// (Documentation/driver-api/early-userspace/buffer-format).
func TestArchive(t *testing.T) {
	var a archive
	a.add("/d/f", []byte("hello"))
	a.add("/d/f", []byte("not twice"))
	header := func(inode, mode, size, name string) string {
		zero := "00000000"
		return "070701" + inode + mode + zero + zero + "00000001" + zero + size + zero + zero + zero + zero + name + zero
	}
	want := header("00000001", "000041ed", "00000000", "00000002") + "d\x00" +
		header("00000002", "000081ed", "00000005", "00000004") + "d/f\x00\x00\x00" + "hello\x00\x00\x00" +
		header("00000000", "00000000", "00000000", "0000000b") + "TRAILER!!!\x00\x00\x00\x00"
	if got := string(a.bytes()); got != want {
		t.Errorf("archive\n%q, want\n%q", got, want)
	}
}

func TestProgramWithLibraries(t *testing.T) {
	path, err := lookPath("sh")
	if err != nil {
		t.Fatal(err)
	}
	var a archive
	if err := a.addProgram(t.Context(), "sh"); err != nil {
		t.Fatal(err)
	}
	if all := strings.Join(a.paths, " "); !strings.Contains(all, path) || !strings.Contains(all, "libc.so") {
		t.Errorf("only %v", a.paths)
	}
	if err := a.addProgram(t.Context(), "no such program"); err == nil {
		t.Error("a missing program is no error")
	}
}

func TestOrderOfMissingModule(t *testing.T) {
	k := &Kernel{modules: map[string]string{"bad": filepath.Join(t.TempDir(), "bad.ko")}}
	if err := os.WriteFile(k.modules["bad"], []byte("no module"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"missing", "bad"} {
		if order, err := k.order([]string{name}); err == nil {
			t.Errorf("%s: %v", name, order)
		}
	}
}

func TestAwait(t *testing.T) {
	g := &Guest{done: make(chan struct{}), changed: make(chan struct{})}
	go func() {
		for _, text := range []string{"be", "gin\nguest: sta", "tus 7\r\n"} {
			_, _ = g.Write([]byte(text)) // never fails
		}
		close(g.done)
	}()
	if err := g.Await(t.Context(), "begin"); err != nil {
		t.Error(err)
	}
	if status, err := g.Wait(); status != 7 || err != nil {
		t.Errorf("status %d, %v", status, err)
	}
	if err := g.Await(t.Context(), "more"); err == nil {
		t.Error("a guest that has ended says more")
	}
	g.done = make(chan struct{})
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if err := g.Await(ctx, "more"); err == nil {
		t.Error("a silent guest says more")
	}
}

func TestPayload(t *testing.T) {
	image := make([]byte, 2048)
	copy(image[0x202:], "HdrS")
	image[0x1f1], image[0x249], image[0x24c] = 1, 1, 7 // 256 bytes after two sectors
	copy(image[1280:], "abcsize")
	if got, err := payload(image); err != nil || string(got) != "abc" {
		t.Errorf("%q, %v", got, err)
	}
	if err := decompress(t.Context(), os.Args[0], filepath.Join(t.TempDir(), "plain")); err == nil {
		t.Error("a program is a kernel")
	}
	for name, bad := range map[string][]byte{"too short": image[:0x24f], "cut off": image[:1286], "no kernel": make([]byte, 2048)} {
		if got, err := payload(bad); err == nil {
			t.Errorf("%s: %q", name, got)
		}
	}
}
