package host

import (
	"bytes"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2/vfs"

	"plinth/datanode"
	"plinth/internal/vfsx/crashfs"
)

const (
	// poorOneIn of the writes to a poor spindle goes wrong.
	poorOneIn = 40
	// poorKept old contents may come back.
	poorKept = 64
)

// poorDrives are the file system of a node with bad drives: of what is written to two of its
// spindles, as many as a stripe does without, some is lost, torn, misdirected, garbled, or
// taken back later.
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
	on atomic.Bool

	mu  sync.Mutex
	rng *rand.Rand
	old []oldContent
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
	switch b.rng.IntN(5) {
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
		if n, _ := f.ReadAt(old, off); n == len(old) && len(b.old) < poorKept {
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
