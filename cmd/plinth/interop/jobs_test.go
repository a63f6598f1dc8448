package interop

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

const (
	jobBytes = 32 << 20
	// jobBytesPerSecond makes a job last long enough to be written under.
	jobBytesPerSecond = 16 << 20
)

// jobHouse is a site with a disk, an image file and a QEMU: what a job copies
// between, while a load writes.
type jobHouse struct {
	*site
	*qmp
	image string // raw
	model []byte // what is in the source
}

// newJobHouse makes one with some data in the image, or in the disk "vm".
func newJobHouse(t *testing.T, inDisk bool) *jobHouse {
	t.Helper()
	dir := tempDir(t)
	h := &jobHouse{site: start(t, filepath.Join(dir, "data"), small...), image: filepath.Join(dir, "image"), model: make([]byte, jobBytes)}
	h.command(t, "disk", "create", "vm", fmt.Sprint(jobBytes))
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 0))
	t.Logf("content of seed %d", seed)
	for off := 0; off < jobBytes; off += jobBytes / 4 { // and holes between
		fill(rng, h.model[off:off+jobBytes/8+loadSector])
	}
	if err := os.WriteFile(h.image, h.model, 0o600); err != nil {
		t.Fatal(err)
	}
	if inDisk {
		run(t, "nbdcopy", h.image, h.uri("unix", "vm"))
		allocate(t, h.image, jobBytes)
	}
	h.qmp = startQEMU(t)
	return h
}

// load exports a node of QEMU's and writes to it.
func (h *jobHouse) load(t *testing.T, node string) *load {
	t.Helper()
	socket := filepath.Join(filepath.Dir(h.image), "load")
	h.export(t, socket, node)
	l := startLoad(t, "unix", socket, node, h.model)
	l.await(t, 100)
	return l
}

// job starts one, named by its command, and returns when it has copied all but
// what the load still writes.
func (h *jobHouse) job(t *testing.T, l *load, command string, args arguments) {
	t.Helper()
	args["job-id"], args["speed"] = command, jobBytesPerSecond
	h.do(t, command, args)
	l.await(t, 300)
	h.do(t, "block-job-set-speed", arguments{"device": command, "speed": 0})
	h.wait(t, "BLOCK_JOB_READY", command)
	l.await(t, 100)
}

// equalDisk checks that the disk holds exactly this.
func (h *jobHouse) equalDisk(t *testing.T, want []byte) {
	t.Helper()
	out := filepath.Join(filepath.Dir(h.image), "out")
	run(t, "nbdcopy", h.uri("unix", "vm"), out)
	equalFile(t, out, want)
}

func equalFile(t *testing.T, path string, want []byte) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != len(want) {
		t.Fatalf("%s has %d bytes, not %d", path, len(got), len(want))
	}
	for off := 0; off < len(want); off += loadSector {
		if !bytes.Equal(got[off:off+loadSector], want[off:off+loadSector]) {
			t.Fatalf("%s differs from what was written, first at %d", path, off)
		}
	}
}

// end quits QEMU's use of the disk and stops the site, which checks its log.
func (h *jobHouse) end(t *testing.T) {
	t.Helper()
	h.do(t, "quit", nil)
	if out := h.command(t, "verify"); !bytes.Contains([]byte(out), []byte("nothing is wrong")) {
		t.Errorf("verify says:\n%s", out)
	}
	h.stop(t)
}

// A guest's disk moves to one of ours while it is written: drive-mirror with the
// switch to the copy at its end.
func TestJobMirrorTo(t *testing.T) {
	h := newJobHouse(t, false)
	h.addFile(t, "source", "raw", h.image, nil)
	l := h.load(t, "source")
	h.job(t, l, "drive-mirror", arguments{
		"device": "source", "target": h.uri("unix", "vm"), "format": "raw", "mode": "existing", "sync": "full",
	})
	h.do(t, "block-job-complete", arguments{"device": "drive-mirror"})
	h.wait(t, "BLOCK_JOB_COMPLETED", "drive-mirror")
	l.await(t, 100) // to the disk itself now
	l.pause()
	h.equalDisk(t, h.model)
	h.end(t)
}

// A disk of ours moves away while it is written, by the other way of mirroring;
// at the end both sides are equal.
func TestJobMirrorFrom(t *testing.T) {
	h := newJobHouse(t, true)
	h.addDisk(t, "source", h.site, "vm")
	h.addFile(t, "target", "raw", h.image, nil)
	l := h.load(t, "source")
	h.job(t, l, "blockdev-mirror", arguments{
		"device": "source", "target": "target", "sync": "full", "copy-mode": "write-blocking",
	})
	l.pause()
	h.do(t, "block-job-cancel", arguments{"device": "blockdev-mirror"})
	h.wait(t, "BLOCK_JOB_COMPLETED", "blockdev-mirror")
	h.equalDisk(t, h.model)
	equalFile(t, h.image, h.model)
	run(t, "qemu-img", "compare", "-U", "-f", "raw", "-F", "raw", h.image, h.uri("unix", "vm"))
	h.end(t)
}

// A backup into a disk of ours is the source as it was when it began, whatever
// was written since.
func TestJobBackupTo(t *testing.T) {
	h := newJobHouse(t, false)
	h.addFile(t, "source", "raw", h.image, nil)
	h.addDisk(t, "target", h.site, "vm")
	h.equalDisk(t, h.backup(t))
	equalFile(t, h.image, h.model)
	h.end(t)
}

// So is a backup of a disk of ours.
func TestJobBackupFrom(t *testing.T) {
	h := newJobHouse(t, true)
	h.addDisk(t, "source", h.site, "vm")
	h.addFile(t, "target", "raw", h.image, nil)
	equalFile(t, h.image, h.backup(t))
	h.equalDisk(t, h.model)
	h.end(t)
}

// backup copies source to target, and returns what must be there.
func (h *jobHouse) backup(t *testing.T) []byte {
	t.Helper()
	l := h.load(t, "source")
	l.pause()
	then := slices.Clone(h.model)
	h.do(t, "blockdev-backup", arguments{
		"job-id": "backup", "device": "source", "target": "target", "sync": "full", "speed": jobBytesPerSecond,
	})
	l.resume(t)
	l.await(t, 300)
	h.wait(t, "BLOCK_JOB_COMPLETED", "backup")
	l.pause()
	if bytes.Equal(then, h.model) {
		t.Error("nothing was written during the backup")
	}
	return then
}

// An overlay over a disk of ours is committed into it while it is written, and
// writes then go to the disk.
func TestJobCommit(t *testing.T) {
	h := newJobHouse(t, true)
	overlay := h.image + ".qcow2"
	run(t, "qemu-img", "create", "-q", "-f", "qcow2", overlay, fmt.Sprint(jobBytes))
	h.addDisk(t, "base", h.site, "vm")
	h.addFile(t, "overlay", "qcow2", overlay, arguments{"backing": "base"})
	l := h.load(t, "overlay")
	l.await(t, 500) // of some MiB
	h.job(t, l, "block-commit", arguments{"device": "overlay"})
	h.do(t, "block-job-complete", arguments{"device": "block-commit"})
	h.wait(t, "BLOCK_JOB_COMPLETED", "block-commit")
	l.await(t, 100)
	l.pause()
	h.equalDisk(t, h.model)
	h.end(t)
}
