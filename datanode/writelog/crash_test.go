package writelog

import (
	"context"
	"errors"
	"math/rand/v2"
	"testing"

	"plinth/datanode"
	"plinth/internal/id"
	"plinth/internal/vfsx/crashfs"
)

// crasher works on a log and knows which states a crash may leave.
type crasher struct {
	*testing.T
	rng   *rand.Rand
	log   *Log
	epoch id.Epoch // the last one given to any disk
	lives int
	// states that the log had or may have had, one after each step; acknowledged
	// and synced are the last ones of which that was said.
	states               []model
	acknowledged, synced int
	full                 int
}

func (c *crasher) now() model { return c.states[c.acknowledged] }

// pick returns a disk of the log.
func (c *crasher) pick() (id.Disk, modelDisk) {
	m := c.now()
	start := c.rng.IntN(5)
	for i := range 5 {
		number := id.Disk(1 + (start+i)%5)
		if d, found := m[number]; found {
			return number, d
		}
	}
	return 0, modelDisk{}
}

// step does one random operation. It returns false after a crash.
func (c *crasher) step() bool {
	number, d := c.pick()
	next := c.now().clone()
	ctx := context.Background()
	stream := datanode.Stream(c.rng.IntN(datanode.Streams))
	var err error
	stable := false
	switch n := c.rng.IntN(100); {
	case number == 0 || n < 6:
		number = id.Disk(1 + c.rng.IntN(5))
		c.epoch++
		d, found := next[number]
		if !found {
			c.lives++
			d = modelDisk{life: c.lives, first: [2]id.Pos{1, 1}, end: [2]id.Pos{1, 1}}
		}
		d.epoch = c.epoch
		var floor [datanode.Streams]id.Pos
		if c.rng.IntN(4) == 0 {
			floor[stream] = d.end[stream] + id.Pos(c.rng.IntN(5))
			if floor[stream] > d.end[stream] {
				d.first[stream], d.end[stream] = floor[stream], floor[stream]
			}
		}
		next[number] = d
		c.states = append(c.states, next)
		_, err = c.log.Fence(ctx, &datanode.FenceRequest{Disk: number, Epoch: c.epoch, Floor: floor})
		stable = true
	case n < 8:
		delete(next, number)
		c.states = append(c.states, next)
		err = c.log.DropLog(ctx, &datanode.DropLogRequest{Disk: number, Epoch: d.epoch})
		stable = true
	case n < 22:
		c.states = append(c.states, next)
		err = c.log.testSync(number, d.epoch)
		stable = true
	case n < 40:
		d.first[stream] += id.Pos(c.rng.IntN(int(d.end[stream]-d.first[stream]) + 1))
		next[number] = d
		c.states = append(c.states, next)
		err = c.log.testTrim(number, d.epoch, stream, d.first[stream]-1)
	default:
		count := 1 + c.rng.IntN(6)
		rs := contents(number, d.life, stream, d.end[stream], count)
		for range count {
			d.end[stream]++
			next = next.clone()
			next[number] = d
			c.states = append(c.states, next)
		}
		_, err = c.log.Append(ctx, &datanode.AppendRequest{
			Disk: number, Epoch: d.epoch, Stream: stream, Class: datanode.Class(c.rng.IntN(2)), Records: rs})
	}
	switch {
	case errors.Is(err, datanode.ErrLogFull):
		c.full++
		c.states = c.states[:c.acknowledged+1]
		for s := range datanode.Stream(datanode.Streams) {
			d := c.now()[number]
			if d.end[s] > d.first[s] {
				d.first[s] = d.end[s]
				next := c.now().clone()
				next[number] = d
				c.states = append(c.states, next)
				if c.log.testTrim(number, d.epoch, s, d.end[s]-1) != nil {
					return false
				}
				c.acknowledged = len(c.states) - 1
			}
		}
		return true
	case errors.Is(err, datanode.ErrDead):
		return false
	case err != nil:
		c.Fatal(err)
	}
	c.acknowledged = len(c.states) - 1
	if stable {
		c.synced = c.acknowledged
	}
	return true
}

// reopened finds the state that the log came back in among those it may.
func (c *crasher) reopened(oldest int) {
	got := modelOf(c.log).String()
	for i := len(c.states) - 1; i >= oldest; i-- {
		if c.states[i].String() != got {
			continue
		}
		if err := c.states[i].verify(c.log); err != nil {
			c.Fatal(err)
		}
		c.states, c.acknowledged, c.synced = []model{c.states[i]}, 0, 0
		return
	}
	c.Fatalf("log came back as\n%s\nlast acknowledged\n%s\nlast synced\n%s", got, c.now(), c.states[c.synced])
}

func (c *crasher) run(points int, power bool) {
	fs := crashfs.New()
	var err error
	c.log, err = Open(fs, small)
	ok(c, err)
	c.states = []model{{}}
	for range points {
		fs.Limit(int64(c.rng.IntN(60_000)))
		for c.step() {
		}
		if !fs.Crashed() {
			c.Fatal("a failure without a crash")
		}
		oldest := c.acknowledged
		for {
			_ = c.log.Close() // fails, since the device has
			if power {
				fs, oldest = fs.Crash(c.rng, c.rng.IntN(5)*25), c.synced
			} else {
				fs = fs.Kill()
			}
			if c.rng.IntN(3) == 0 {
				fs.Limit(int64(c.rng.IntN(20_000)))
			}
			l, err := Open(fs, small)
			if err == nil {
				c.log = l
				break
			}
			if !fs.Crashed() {
				c.Fatal(err)
			}
		}
		c.reopened(oldest)
	}
	fs.Limit(1 << 40)
	ok(c, c.log.Close())
	if c.full == 0 {
		c.Error("the log was never full")
	}
}

func crash(t *testing.T, points int, power bool) {
	seed := rand.Uint64()
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("seed %d", seed)
		}
	})
	(&crasher{T: t, rng: rand.New(rand.NewPCG(seed, 0))}).run(points, power)
}

// What comes back is what the log held at one instant, not before the last sync.
func TestCrashPowerLoss(t *testing.T) { crash(t, 600, true) }

// What comes back is all that was acknowledged.
func TestCrashKill(t *testing.T) { crash(t, 400, false) }

// beginning is a log that is about to begin a new file, and the crasher that knows
// what it holds. Nobody syncs until its group is finished.
func beginning(t *testing.T, rng *rand.Rand) (*crasher, *crashfs.FS) {
	fs := crashfs.New()
	c := &crasher{T: t, rng: rng, log: mustOpen(t, fs, small), states: []model{{}}}
	c.log.mustFence(t, 1, 1)
	c.states = []model{{1: {epoch: 1, life: 1, first: [2]id.Pos{1, 1}, end: [2]id.Pos{1, 1}}}}
	for seq, end := c.log.at(); seq < 3 || end < c.log.fileBytes-3000; seq, end = c.log.at() {
		ok(t, c.append())
	}
	// Files that the newest one's snapshot names become free, for whoever comes back.
	last := c.now().clone()
	d := last[1]
	d.first[0] = d.end[0] - 2
	last[1] = d
	ok(t, c.log.testTrim(1, 1, 0, d.first[0]-1))
	c.log.calm()
	ok(t, c.log.testSync(1, 1))
	c.states, c.acknowledged, c.synced = []model{last}, 0, 0
	if _, lead, err := c.log.group.join(t.Context()); !lead || err != nil {
		t.Fatal("a sync is under way")
	}
	return c, fs
}

// append adds one record of disk 1.
func (c *crasher) append() error {
	next := c.now().clone()
	d := next[1]
	rec := content(1, 1, 0, d.end[0])
	d.end[0]++
	next[1] = d
	c.states = append(c.states, next)
	err := c.log.testAppend(1, 1, 0, rec)
	if err == nil {
		c.acknowledged = len(c.states) - 1
	}
	return err
}

// A crash at any point of a file's beginning, while nothing of it or of the end of the
// file before is stable, and of the sync that makes both so; on the way back another
// crash at any point of that; and a loss of power right after, which takes nothing.
func TestCrashWhereAFileBegins(t *testing.T) {
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 0))
	for budget, whole := int64(0), 0; whole < 10; budget += 50 {
		c, fs := beginning(t, rng)
		first, _ := c.log.at()
		fs.Limit(budget)
		for seq, end := c.log.at(); seq == first || end < 12_000; seq, end = c.log.at() {
			if c.append() != nil {
				break
			}
		}
		c.log.group.finish(nil)
		if c.log.testSync(1, 1) == nil {
			c.synced = c.acknowledged
			whole++
		}
		oldest := c.acknowledged
		for opened := false; !opened; {
			_ = c.log.Close()
			if rng.IntN(2) == 0 {
				fs = fs.Kill()
			} else {
				fs, oldest = fs.Crash(rng, rng.IntN(5)*25), c.synced
			}
			if rng.IntN(2) == 0 {
				fs.Limit(rng.Int64N(20_000))
			}
			l, err := Open(fs, small)
			if err != nil && !fs.Crashed() {
				t.Fatalf("seed %d, budget %d: %v", seed, budget, err)
			}
			if opened = err == nil; opened {
				c.log = l
			}
		}
		c.reopened(oldest)
		_ = c.log.Close()
		fs = fs.Crash(rng, 0)
		c.log = mustOpen(t, fs, small)
		c.reopened(0)
		ok(t, c.log.Close())
	}
}
