package host_test

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"plinth/datanode"
	"plinth/datanode/shelf"
	"plinth/internal/host"
	"plinth/internal/standalone"
	"plinth/nbd"
)

// siteOptions are a small pool's, in a directory of the test's, whose agent
// works in the background only when it is asked to.
func siteOptions(t *testing.T) standalone.Options {
	return standalone.Options{
		Dir:    t.TempDir(),
		Node:   shelf.Options{Spindles: 4, LogBytes: 16 << 20, SpindleBytes: 32 << 20},
		Host:   host.Options{DestageInterval: time.Hour, IdleTime: time.Hour},
		Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
	}
}

type site struct {
	*testing.T
	*standalone.Site
	opts standalone.Options
}

func (s *site) ok(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

func openSite(t *testing.T, opts standalone.Options) *site {
	t.Helper()
	in, err := standalone.Open(t.Context(), opts)
	s := &site{t, in, opts}
	s.ok(err)
	t.Cleanup(func() { s.ok(s.Close()) })
	return s
}

// write makes a disk of that content.
func (s *site) write(name string, content []byte) {
	s.Helper()
	_, err := s.Host.CreateDisk(s.Context(), host.DiskSpec{Name: name, Bytes: int64(len(content))})
	s.ok(err)
	s.ok(s.device(name, func(d nbd.Device) error { return d.WriteAt(s.Context(), content, 0, true) }))
	s.ok(s.Host.Quiesce(s.Context()))
}

func (s *site) device(name string, f func(nbd.Device) error) error {
	e, release, err := host.Exports{Host: s.Host}.Open(s.Context(), name)
	if err != nil {
		return err
	}
	defer release()
	return f(e.Device)
}

func (s *site) has(name string, content []byte) {
	s.Helper()
	got := make([]byte, len(content))
	s.ok(s.device(name, func(d nbd.Device) error { return d.ReadAt(s.Context(), got, 0) }))
	if !bytes.Equal(got, content) {
		s.Fatalf("disk %s has another content", name)
	}
}

func (s *site) remove(name string) {
	s.Helper()
	s.ok(s.Host.RemoveDisk(s.Context(), name))
	s.ok(s.Host.Sweep(s.Context()))
}

// stored returns the bytes of fragments on all spindles.
func (s *site) stored() (bytes int64, index datanode.IndexStatus) {
	s.Helper()
	st, err := s.Node.Status(s.Context())
	s.ok(err)
	for _, sp := range st.Spindles {
		bytes += sp.AllocatedBytes
	}
	return bytes, st.Index
}

// loseIndex loses the data node's Pebble and recovers.
func (s *site) loseIndex() {
	s.Helper()
	s.ok(s.Close())
	s.ok(os.RemoveAll(filepath.Join(s.opts.Dir, "datanode", "index")))
	var err error
	s.Site, err = standalone.Recover(context.WithoutCancel(s.Context()), s.opts)
	s.ok(err)
	if _, index := s.stored(); !index.Complete {
		s.Fatal("the index is not complete after recovery")
	}
}

// TestRemovedDisksLetGo removes a disk whose chunks another one shares, loses the
// index, and so has the removed disk hold its births again. They are let go:
// when the other disk goes too, everything comes back.
func TestRemovedDisksLetGo(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	content := make([]byte, 2<<20)
	for i := range content {
		content[i] = byte(rng.Uint32())
	}
	s := openSite(t, siteOptions(t))
	s.write("old", content)
	s.write("new", content[:1<<20]) // nothing of it is stored again
	s.remove("old")
	before, _ := s.stored()
	s.loseIndex()
	s.has("new", content[:1<<20])
	if after, _ := s.stored(); after > before {
		t.Errorf("%d bytes are stored after the recovery, %d before", after, before)
	}
	report, err := s.Host.Verify(t.Context(), host.VerifyOptions{})
	s.ok(err)
	for _, f := range report.Findings {
		t.Errorf("verify: %+v", f)
	}
	s.remove("new")
	if bytes, index := s.stored(); bytes != 0 || index.Segments != 0 {
		t.Errorf("%d bytes in %d segments are left of removed disks", bytes, index.Segments)
	}
	st, err := s.Node.Status(t.Context())
	s.ok(err)
	if len(st.Streams) != 0 {
		t.Errorf("logs of removed disks are left: %+v", st.Streams)
	}
}

// TestUnknownDisksHold loses the record and the epochs of a disk: a registry that
// knows nothing of it must not let its chunks go.
func TestUnknownDisksHold(t *testing.T) {
	s := openSite(t, siteOptions(t))
	s.write("vm", bytes.Repeat([]byte("chunk"), 100<<10))
	before, _ := s.stored()
	keys := []string{"name/vm", "disk/0000000000000001", "epoch/0000000000000001", "ckpt/0000000000000001"}
	for _, key := range keys {
		_, err := s.Node.RegistryGet(t.Context(), &datanode.RegistryGetRequest{Key: key})
		s.ok(err)
	}
	_, err := s.Node.RegistryCommit(t.Context(), &datanode.RegistryTxn{Deletes: keys})
	s.ok(err)
	s.loseIndex()
	s.ok(s.Host.Sweep(t.Context()))
	if after, _ := s.stored(); after != before {
		t.Fatalf("%d bytes are stored, %d were: an old registry let them go", after, before)
	}
}
