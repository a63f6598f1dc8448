package writelog

import (
	"io"
	"math/rand/v2"
	"strings"
	"testing"

	"plinth/datanode"
	"plinth/internal/id"
	"plinth/internal/vfsx/crashfs"
)

// filled returns a log of several files, all of it synced, and what it holds.
func filled(t *testing.T) (*crashfs.FS, *Log, model) {
	fs := crashfs.New()
	l := mustOpen(t, fs, small)
	m := model{}
	for n := id.Disk(1); n <= 2; n++ {
		l.mustFence(t, n, 1)
		m[n] = modelDisk{epoch: 1, life: 1, first: [2]id.Pos{1, 1}, end: [2]id.Pos{1, 1}}
	}
	for i := range id.Pos(60) {
		n := 1 + id.Disk(i%2)
		d := m[n]
		ok(t, l.testAppend(n, 1, 0, content(n, 1, 0, d.end[0])))
		d.end[0]++
		m[n] = d
	}
	d := m[1]
	d.first[0] = 4
	m[1] = d
	ok(t, l.testTrim(1, 1, 0, 3))
	l.calm()
	ok(t, l.testSync(1, 1))
	return fs, l, m
}

// flip inverts bits of one byte.
func flip(t *testing.T, fs *crashfs.FS, name string, off int64, bits byte) {
	t.Helper()
	f, err := fs.OpenReadWrite(name, category)
	ok(t, err)
	defer f.Close()
	var b [1]byte
	_, err = f.ReadAt(b[:], off)
	ok(t, err)
	b[0] ^= bits
	_, err = f.WriteAt(b[:], off)
	ok(t, err)
}

// A byte that changes in what is stable and needed is found, and said where;
// one elsewhere changes nothing.
func TestDamageIsFoundAndNamed(t *testing.T) {
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 0))
	fs, l, m := filled(t)
	found := 0
	for n := 0; n < 300 || found < 30; n++ {
		if n == 5000 {
			t.Fatalf("seed %d: %d of %d flips mattered", seed, found, n)
		}
		f := l.files[rng.IntN(len(l.files))]
		off := rng.Int64N(l.fileBytes)
		needed := off >= dataStart && off < int64(f.end)
		if f == l.head {
			needed = needed && off < int64(f.end)-frameBytes // the mark is the tail
		} else {
			needed = needed && f.live > 0
		}
		after := fs.Kill()
		flip(t, after, f.name, off, byte(1+rng.IntN(255)))
		again, err := Open(after, small)
		if !needed {
			if err == nil {
				err = m.verify(again)
				again.Close()
			}
			if err != nil {
				t.Fatalf("seed %d: %s at %d does not matter: %v", seed, f.name, off, err)
			}
			continue
		}
		found++
		wantCode(t, f.name, err, datanode.ErrCorrupt)
		if !strings.Contains(err.Error(), f.name+", offset ") {
			t.Fatalf("seed %d: %v does not name %s", seed, err, f.name)
		}
	}
}

func TestDamagedHeaders(t *testing.T) {
	fs, l, m := filled(t)
	for _, f := range l.files {
		after := fs.Kill()
		flip(t, after, f.name, 17, 1)
		again, err := Open(after, small)
		ok(t, err)
		ok(t, m.verify(again))
		ok(t, again.Close())
		if f.seq == 0 {
			continue
		}
		after = fs.Kill()
		flip(t, after, f.name, 17, 1)
		flip(t, after, f.name, pageBytes+17, 1)
		_, err = Open(after, small)
		wantCode(t, "both copies of "+f.name, err, datanode.ErrCorrupt)
	}
	flip(t, fs.Kill(), "log/superblock", 40, 1)
	after := fs.Kill()
	flip(t, after, "log/superblock", 40, 1)
	_, err := Open(after, small)
	wantCode(t, "superblock", err, datanode.ErrCorrupt)
}

// What was not synced and is torn is cut, once, and appends go on there.
func TestTornTailIsCut(t *testing.T) {
	fs, l, m := filled(t)
	d := m[2]
	start := int64(l.head.end)
	ok(t, l.testAppend(2, 1, 0, contents(2, 1, 0, d.end[0], 4)...))
	torn := l.state.disks[2].streams[0].runs
	last := torn[len(torn)-1].at
	if int64(last[len(last)-1].off) < start {
		t.Fatal("the tail began a new file")
	}
	d.end[0] += 2
	m[2] = d
	after := fs.Kill()
	flip(t, after, l.head.name, int64(last[len(last)-2].off)+50, 1)
	for range 3 {
		again := mustOpen(t, after, small)
		ok(t, m.verify(again))
		ok(t, again.testAppend(2, 1, 0, content(2, 1, 0, d.end[0])))
		d.end[0]++
		m[2] = d
		ok(t, again.testSync(2, 1))
		after = after.Kill()
	}
}

// A record that changes while the log is open is found when it is read.
func TestReadVerifies(t *testing.T) {
	fs, l, _ := filled(t)
	r := l.state.disks[1].streams[0].runs[0]
	flip(t, fs, r.file.name, int64(r.at[2].off)+frameBytes-20, 4)
	_, err := l.readAll(1, 1, 0, r.start)
	wantCode(t, "damaged record", err, datanode.ErrCorrupt)
	if !strings.Contains(err.Error(), r.file.name+", offset ") {
		t.Error(err)
	}
}

// Two crashes one after the other, each in the middle of the same slot's
// header, leave a whole copy: the first one's damage is repaired between them.
func TestTornHeaderIsRepairedBeforeTheSlotIsUsedAgain(t *testing.T) {
	fs, l, m := filled(t)
	for _, f := range l.files {
		after := fs.Kill()
		flip(t, after, f.name, pageBytes+17, 1)
		again := mustOpen(t, after, small)
		ok(t, m.verify(again))
		after = after.Kill()
		flip(t, after, f.name, 17, 1)
		again = mustOpen(t, after, small)
		ok(t, m.verify(again))
	}
}

// A file that lost no more than zeros holds its last frame still, and that can
// be read.
func TestShortFileIsMadeWhole(t *testing.T) {
	fs, l, _ := filled(t)
	rec := content(2, 1, 0, l.state.disks[2].streams[0].end)
	rec.Data = []byte{1, 0, 0, 0, 0}
	ok(t, l.testAppend(2, 1, 0, rec))
	name, end := l.head.name, int(l.head.end)
	after := fs.Kill()
	b, err := readAll(after, name)
	ok(t, err)
	f, err := after.Create(name, category)
	ok(t, err)
	_, err = f.Write(b[:end-6])
	ok(t, err)
	ok(t, f.Close())
	again := mustOpen(t, after, small)
	got, err := again.readAll(2, 1, 0, rec.Pos)
	ok(t, err)
	if len(got) != 1 || !same(got[0], rec) {
		t.Errorf("read %v, want %v", got, rec)
	}
}

func readAll(fs *crashfs.FS, name string) ([]byte, error) {
	f, err := fs.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(f)
}
