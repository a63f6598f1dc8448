package crash

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"plinth/nbd"
	"plinth/nbd/client"
)

const (
	// The disks are written from their beginning, region by region. All regions
	// but the last have one job each; the last one's jobs overwrite each other.
	regions       = 5
	regionSectors = 4096
	sharedJobs    = 3
	diskSectors   = regions * regionSectors
	diskBytes     = diskSectors * sectorBytes
	// connsPerDisk is how many connections the jobs share.
	connsPerDisk = 2
	// writeSectorsMax bounds a large write: 256 KiB, several records of a log.
	writeSectorsMax = 512
)

// fleet is the disks under load with all that is known of them.
type fleet struct {
	names   []string
	oracles []*oracle
	seq     atomic.Uint64 // of writes, over all disks
	ops     atomic.Int64
	full    atomic.Int64 // writes that found no space
}

func newFleet(names ...string) *fleet {
	f := &fleet{names: names}
	for range names {
		f.oracles = append(f.oracles, newOracle(diskSectors))
	}
	return f
}

// check reads all disks and compares. A false says that the process died.
func (f *fleet) check(t testing.TB, l *life) bool {
	t.Helper()
	for i, name := range f.names {
		if !f.oracles[i].compare(t, l, name) {
			return false
		}
		f.oracles[i].Since = 0
	}
	return true
}

// compare reads a whole export, which is then known. A false says that the process
// died.
func (o *oracle) compare(t testing.TB, l *life, export string) bool {
	t.Helper()
	c, err := l.dial(t, export)
	if err != nil {
		return false
	}
	p := make([]byte, 1<<20)
	for first := int64(0); first < diskSectors && err == nil; first += int64(len(p)) / sectorBytes {
		if err = c.ReadAt(context.Background(), p, first*sectorBytes); err == nil {
			if err := o.check(p, first, true); err != nil {
				l.kill(t)
				t.Fatalf("%s: %v\n%s", export, err, l.tail())
			}
		}
	}
	if err == nil {
		err = c.Disconnect(context.Background())
	}
	c.Close()
	if err == nil {
		return true
	}
	if errors.Is(err, client.ErrClosed) && l.dead() {
		return false
	}
	l.kill(t)
	t.Fatalf("read %s: %v\n%s", export, err, l.tail())
	return false
}

// load starts all jobs. wait returns when the process is gone and they with it.
func (f *fleet) load(t testing.TB, l *life, seed uint64) (wait func()) {
	t.Helper()
	var conns [connsPerDisk][]nbd.Device
	var clients []*client.Client
	for i := range conns {
		for _, name := range f.names {
			c, err := l.dial(t, name)
			if err != nil { // it has died already
				continue
			}
			clients = append(clients, c)
			conns[i] = append(conns[i], c)
		}
	}
	var jobs sync.WaitGroup
	if len(clients) == connsPerDisk*len(f.names) {
		for n := range regions - 1 + sharedJobs {
			j := &job{
				fleet: f, disks: conns[n%connsPerDisk], rng: rand.New(rand.NewPCG(seed, uint64(n))),
				region: int64(min(n, regions-1)), alone: n < regions-1,
				buf: make([]byte, writeSectorsMax*sectorBytes),
			}
			jobs.Go(func() {
				if err := j.run(); !errors.Is(err, client.ErrClosed) {
					t.Errorf("job %d: %v", n, err)
				}
			})
		}
	}
	return func() {
		jobs.Wait()
		for _, c := range clients {
			c.Close()
		}
	}
}

// job writes to one region of all disks.
type job struct {
	fleet  *fleet
	disks  []nbd.Device
	rng    *rand.Rand
	region int64
	alone  bool // nobody else writes there, so that it can read
	buf    []byte
}

// run does random operations until one fails.
func (j *job) run() error {
	for {
		if err := j.step(); err != nil {
			return err
		}
		j.fleet.ops.Add(1)
	}
}

// extent picks sectors of the region: mostly whole chunks, rarely many.
func (j *job) extent() (first, n int64) {
	n = 1 + j.rng.Int64N(16)
	switch j.rng.IntN(40) {
	case 0:
		n = writeSectorsMax
	case 1:
		n = 1 + j.rng.Int64N(writeSectorsMax)
	}
	first = j.rng.Int64N(regionSectors - n + 1)
	if j.rng.IntN(3) > 0 {
		first, n = first/chunkSectors*chunkSectors, (n+chunkSectors-1)/chunkSectors*chunkSectors
		n = min(n, regionSectors-first)
	}
	return j.region*regionSectors + first, n
}

func (j *job) step() error {
	first, n := j.extent()
	disk := j.rng.IntN(len(j.disks))
	switch k := j.rng.IntN(20); {
	case k == 0:
		return j.disks[disk].Flush(context.Background())
	case k < 4 && j.alone:
		return j.read(disk, first, n)
	case k < 6:
		return j.write(disk, first, n, 0)
	}
	seq := j.fleet.seq.Add(1)
	fillSectors(j.buf[:n*sectorBytes], first, seq)
	if j.rng.IntN(4) == 0 { // the same to all disks: chunks that they share
		for d := range j.disks {
			if err := j.write(d, first, n, seq); err != nil {
				return err
			}
		}
		return nil
	}
	return j.write(disk, first, n, seq)
}

// write writes what buf holds, or for seq 0 zeros, by a trim or a zero.
func (j *job) write(disk int, first, n int64, seq uint64) error {
	o, d, fua := j.fleet.oracles[disk], j.disks[disk], j.rng.IntN(10) == 0
	trim := seq == 0 && j.rng.IntN(2) == 0
	if trim { // only whole chunks are sure to be trimmed
		end := max((first+n)/chunkSectors, first/chunkSectors+1) * chunkSectors
		first = first / chunkSectors * chunkSectors
		n = end - first
	}
	begun := o.begin(first, n, seq)
	var err error
	switch off, size := first*sectorBytes, n*sectorBytes; {
	case seq != 0:
		err = d.WriteAt(context.Background(), j.buf[:size], off, fua)
	case trim:
		err = d.Trim(context.Background(), off, size, fua)
	default:
		err = d.Zero(context.Background(), off, size, j.rng.IntN(2) == 0, fua)
	}
	if errors.Is(err, nbd.ENOSPC) { // it may have been done in part, as one that is not answered
		j.fleet.full.Add(1)
		return nil
	}
	if err == nil {
		o.end(first, n, begun)
	}
	return err
}

func (j *job) read(disk int, first, n int64) error {
	p := make([]byte, n*sectorBytes)
	if err := j.disks[disk].ReadAt(context.Background(), p, first*sectorBytes); err != nil {
		return err
	}
	if err := j.fleet.oracles[disk].check(p, first, false); err != nil {
		return fmt.Errorf("while it runs: %w", err)
	}
	return nil
}
