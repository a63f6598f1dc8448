package host

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sys/unix"

	"plinth/datanode"
	"plinth/internal/id"
	"plinth/internal/vfsx"
	"plinth/internal/vfsx/crashfs"
)

const (
	// poorOneIn of the writes to a poor spindle goes wrong.
	poorOneIn = 40
	// unreadableOneIn of the reads from one fails.
	unreadableOneIn = 100
	// slowRead is how long a slow read takes.
	slowRead = 300 * time.Millisecond
	// poorKept old contents may come back.
	poorKept = 64
)

// poorDrives are the file system of a node with bad drives: of what is written to two of its
// spindles, as many as a stripe does without, some is refused, lost, torn, misdirected,
// garbled, or taken back later; and reads of them may fail, or be slow.
type poorDrives struct {
	*crashfs.Parking
	w *whole
}

func (p *poorDrives) poor(path string) bool {
	return (strings.Contains(path, "spindle-00/") || strings.Contains(path, "spindle-01/")) && strings.Contains(path, "slab-")
}

func (p *poorDrives) file(path string, f vfs.File, err error) (vfs.File, error) {
	if err != nil || !p.poor(path) {
		return f, err
	}
	return &poorFile{f, p.w}, nil
}

func (p *poorDrives) Create(path string, c vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := p.Parking.Create(path, c)
	return p.file(path, f, err)
}

func (p *poorDrives) OpenReadWrite(path string, c vfs.DiskWriteCategory, opts ...vfs.OpenOption) (vfs.File, error) {
	f, err := p.Parking.OpenReadWrite(path, c, opts...)
	return p.file(path, f, err)
}

// badness is what goes wrong on them.
type badness struct {
	on   atomic.Bool // writes go wrong
	slow atomic.Bool // reads take long

	mu  sync.Mutex
	rng *rand.Rand
	old []oldContent
}

func (b *badness) oneIn(n int) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.rng.IntN(n) == 0
}

// oldContent was at a place before something was written there.
type oldContent struct {
	file vfs.File
	at   int64
	p    []byte
}

type poorFile struct {
	vfs.File
	w *whole
}

func (f *poorFile) ReadAt(p []byte, off int64) (int, error) {
	b := &f.w.bad
	if b.slow.Load() {
		f.w.count("slow reads")
		time.Sleep(slowRead)
	}
	if b.on.Load() && b.oneIn(unreadableOneIn) {
		f.w.count("reads refused")
		return 0, unix.EIO
	}
	return f.File.ReadAt(p, off)
}

func (f *poorFile) WriteAt(p []byte, off int64) (int, error) {
	b := &f.w.bad
	if !b.on.Load() {
		return f.File.WriteAt(p, off)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.rng.IntN(poorOneIn) > 0 {
		return f.File.WriteAt(p, off)
	}
	q := bytes.Clone(p)
	at := off
	switch b.rng.IntN(6) {
	case 5: // the spindle serves no more until its node begins again
		f.w.count("writes refused")
		return 0, []error{unix.EIO, unix.ENOSPC}[b.rng.IntN(2)]
	case 0:
		f.w.count("writes lost")
		return len(p), nil
	case 1:
		f.w.count("writes torn")
		q = q[:len(q)/2/crashfs.SectorBytes*crashfs.SectorBytes]
	case 2:
		f.w.count("writes misdirected")
		if st, err := f.Stat(); err == nil && st.Size() > int64(len(q)) {
			at = b.rng.Int64N(st.Size()-int64(len(q))) / datanode.BlockBytes * datanode.BlockBytes
		}
	case 3:
		f.w.count("bits flipped")
		q[b.rng.IntN(len(q))] ^= 1 << b.rng.IntN(8)
	default:
		old := make([]byte, len(p))
		if n, _ := f.File.ReadAt(old, off); n == len(old) && len(b.old) < poorKept {
			b.old = append(b.old, oldContent{f.File, off, old})
		}
	}
	if _, err := f.File.WriteAt(q, at); err != nil {
		return 0, err
	}
	return len(p), nil
}

// takeBack has old contents come back.
func (w *whole) takeBack() {
	w.bad.mu.Lock()
	defer w.bad.mu.Unlock()
	for _, o := range w.bad.old {
		if _, err := o.file.WriteAt(o.p, o.at); err == nil { // else its file system is gone
			w.count("writes taken back")
		}
	}
	w.bad.old = nil
}

// replace mounts an empty drive over one of the bad ones, and has a host take it into use.
func (w *whole) replace() {
	spindle := w.rng.IntN(2)
	w.nodes.Mount(w.poor, spindle)
	w.ok(vfsx.SyncDir(w.drives[w.poor].Load(), "node"))
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(200 * time.Millisecond) {
		err := errors.New("no host is there")
		if h := w.hosts[w.rng.IntN(wholeHosts)].host(); h != nil {
			err = h.ReplaceSpindle(w.Context(), id.Spindle(w.poor*wholeSpindles+spindle))
		}
		if err == nil {
			w.count("drives replaced")
			return
		}
		if time.Now().After(deadline) {
			w.Fatalf("replace spindle %d of node %d: %v", spindle, w.poor, err)
		}
		w.revive()
	}
}
