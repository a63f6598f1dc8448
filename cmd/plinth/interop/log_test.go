package interop

import (
	"bytes"
	"encoding/binary"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var damageSeed = flag.Uint64("damage-seed", 0, "seed of damage to logs; 0 draws one")

// A log whose tail is torn or flipped: the program starts with a prefix of what
// was written, or refuses in one line that names the file.
func TestDamagedLog(t *testing.T) {
	seed := *damageSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 2))
	const writes, size = 48, 8 << 10
	for _, damage := range []struct {
		name string
		do   func(tail []byte)
	}{
		{"flipped", func(tail []byte) { tail[rng.IntN(len(tail))] ^= 1 << rng.IntN(8) }},
		{"torn", func(tail []byte) { clear(tail[rng.IntN(len(tail)):]) }},
		{"scrambled", func(tail []byte) {
			for i := range tail {
				tail[i] = byte(rng.Uint32())
			}
		}},
		{"cut", nil},
	} {
		t.Run(damage.name, func(t *testing.T) {
			dir := tempDir(t)
			data := filepath.Join(dir, "data")
			args := append(small, "--destage-interval", "1h", "--idle-time", "1h")
			s := start(t, data, args...)
			var commands []string
			for i := range writes {
				commands = append(commands, fmt.Sprintf("write -f -P %d %d %d", i+1, i*size, size))
			}
			s.qemuIO(t, "unix", commands)
			s.kill()
			path, end := newest(t, filepath.Join(data, "datanode", "log"))
			at := end - 1 - rng.Int64N(1500)
			if damage.do == nil {
				if err := os.Truncate(path, at); err != nil {
					t.Fatal(err)
				}
			} else {
				damageTail(t, path, at, end, damage.do)
			}
			s = launch(t, data, args...)
			if s.socket == "" {
				lines := strings.SplitAfter(strings.TrimSpace(s.said.String()), "\n")
				oneLine(t, lines[len(lines)-1]+"\n", s.cmd.ProcessState.ExitCode(), filepath.Base(path))
				t.Log(s.said)
				return
			}
			copied := filepath.Join(dir, "copy")
			run(t, "qemu-img", "dd", "-f", "raw", "-O", "raw", fmt.Sprintf("bs=%d", size), fmt.Sprintf("count=%d", writes),
				"if="+s.uri("unix", "vm1"), "of="+copied)
			got, err := os.ReadFile(copied)
			if err != nil {
				t.Fatal(err)
			}
			lost := 0
			for i := range writes {
				b := got[i*size:][:size]
				switch {
				case bytes.Count(b, []byte{byte(i + 1)}) == size:
					if lost > 0 {
						t.Errorf("write %d survives, and one before it does not", i)
					}
				case bytes.Count(b, []byte{0}) == size:
					lost++
				default:
					t.Errorf("write %d survives in part", i)
				}
			}
			t.Logf("%d of %d writes are lost", lost, writes)
			s.qemuIO(t, "tcp", []string{"write -P 0x99 0 1M", "flush", "read -P 0x99 0 1M"})
			s.stop(t)
		})
	}
}

// newest returns the log file that was written last, and where what was written
// ends in it.
func newest(t *testing.T, dir string) (path string, end int64) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "log-*"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no log files in %s: %v", dir, err)
	}
	var number uint64
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		// docs/format/log.md: the file's number is at 16.
		if n := binary.LittleEndian.Uint64(b[16:]); n > number {
			number, path, end = n, f, int64(len(bytes.TrimRight(b, "\x00")))
		}
	}
	return path, end
}

// damageTail changes a file's bytes from at to end.
func damageTail(t *testing.T, path string, at, end int64, change func([]byte)) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, end-at)
	if _, err := f.ReadAt(b, at); err != nil {
		t.Fatal(err)
	}
	change(b)
	if _, err := f.WriteAt(b, at); err != nil {
		t.Fatal(err)
	}
}
