package standalone

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"plinth/datanode/shelf"
)

// TestLostLog loses the log after a checkpoint and a later flushed write: the
// pool is refused until the loss is accepted, and then is as the checkpoint has
// it, for good.
func TestLostLog(t *testing.T) {
	opts := small(t, t.TempDir())
	opts.Host.DestageInterval = 1 << 40 // nothing in the background
	s := open(t, opts)
	d := create(t, s, "vm1", 1<<20)
	before, after := bytes.Repeat([]byte("kept"), 1024), bytes.Repeat([]byte("lost"), 1024)
	write := func(p []byte) {
		t.Helper()
		if err := d.WriteAt(t.Context(), p, 4096, true); err != nil {
			t.Fatal(err)
		}
	}
	write(before)
	quiesce(t, s)
	write(after)
	shut(t, s)
	if err := os.RemoveAll(filepath.Join(opts.Dir, "datanode", "log")); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), opts); !errors.Is(err, shelf.ErrLogMissing) {
		t.Fatalf("open without the log: %v", err)
	}
	if _, err := Recover(t.Context(), opts); !errors.Is(err, shelf.ErrLogMissing) {
		t.Fatalf("recover without the log: %v", err)
	}
	accept := opts
	accept.Node.AcceptLostLog = true
	s, err := Recover(t.Context(), accept)
	if err != nil {
		t.Fatal(err)
	}
	check := func(want []byte) {
		t.Helper()
		got := make([]byte, len(want))
		if err := device(t, s, "vm1").ReadAt(t.Context(), got, 4096); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("read %.8q, %v; want %.8q", got, err, want)
		}
	}
	check(before)
	shut(t, s)
	s = open(t, opts)
	check(before)
	d = device(t, s, "vm1")
	write(after)
	verify(t, s)
	shut(t, s)
	s = open(t, opts)
	check(after)
	shut(t, s)
}
