package crash

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"plinth/internal/api"
	"plinth/internal/host"
	"plinth/nbd"
	"plinth/nbd/client"
)

const (
	// keptMax bounds the snapshots of the disks under load, clonesMax the clones.
	keptMax   = 8
	clonesMax = 3
	// reclaimTimeMax bounds a reclaim.
	reclaimTimeMax = time.Second
)

// kept is a snapshot or a clone, and what it must hold.
type kept struct {
	content *oracle
	// doubt: a crash came while it was made or removed.
	doubt bool
	group int // of a snapshot that was in doubt with others: all exist or none
}

// keeper makes, reads and removes snapshots and clones while a fleet is written.
type keeper struct {
	fleet  *fleet
	rng    *rand.Rand
	favour string // an operation that comes often
	next   int    // number of names
	snaps  map[string]*kept
	clones map[string]*kept
	counts map[string]int
}

func newKeeper(f *fleet, seed uint64) *keeper {
	return &keeper{
		fleet: f, rng: rand.New(rand.NewPCG(seed, 1)), snaps: map[string]*kept{}, clones: map[string]*kept{}, counts: map[string]int{},
	}
}

// errDied ends a keeper's work: the process has gone.
var errDied = errors.New("the process died")

// asked judges the answer of the API: refused says that nothing was done.
func asked(l *life, err error) (refused bool, died error) {
	var body *api.ErrorBody
	switch {
	case err == nil:
		return false, nil
	case errors.As(err, &body) && body.Code != "internal" && body.Code != "closed":
		return true, nil
	case l.dead():
		return false, errDied
	}
	return false, err
}

// run works until the process dies; any other end is an error.
func (k *keeper) run(t *testing.T, l *life) error {
	operations := map[string]func(*testing.T, *life) error{
		"create": k.create, "remove": k.remove, "clone": k.clone, "drop": k.drop, "rollback": k.rollback,
		"read": k.read, "reclaim": k.reclaim, "write": k.write,
	}
	names := slices.Sorted(maps.Keys(operations))
	for {
		name := names[k.rng.IntN(len(names))]
		if k.rng.IntN(3) == 0 && k.favour != "" {
			name = k.favour
		}
		if err := operations[name](t, l); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		k.counts[name]++
	}
}

// some picks one that is known to be there.
func (k *keeper) some(all map[string]*kept) (string, *kept) {
	names := slices.Sorted(maps.Keys(all))
	if len(names) == 0 {
		return "", nil
	}
	name := names[k.rng.IntN(len(names))]
	return name, all[name]
}

func (k *keeper) create(_ *testing.T, l *life) error {
	if len(k.snaps) >= keptMax {
		return nil
	}
	k.next++
	name := fmt.Sprint("s", k.next)
	disks := slices.Clone(k.fleet.names)
	if clone, _ := k.some(k.clones); clone != "" && k.rng.IntN(3) == 0 {
		disks = []string{clone}
	} else if k.rng.IntN(2) == 0 {
		disks = disks[k.rng.IntN(len(disks)):][:1]
	}
	for _, d := range disks {
		o := k.oracle(d)
		content := o.watch()
		defer o.unwatch(content)
		k.snaps[d+"@"+name] = &kept{content: content, doubt: true, group: k.next}
	}
	_, err := l.api.CreateSnapshots(context.Background(), api.CreateSnapshots{Disks: disks, CreateSnapshot: api.CreateSnapshot{Name: name}})
	refused, died := asked(l, err)
	if died != nil {
		return died
	}
	for _, d := range disks {
		if k.snaps[d+"@"+name].doubt = false; refused {
			delete(k.snaps, d+"@"+name)
		}
	}
	return nil
}

// oracle is a disk's under load, or a clone's.
func (k *keeper) oracle(disk string) *oracle {
	if i := slices.Index(k.fleet.names, disk); i >= 0 {
		return k.fleet.oracles[i]
	}
	return k.clones[disk].content
}

func (k *keeper) remove(_ *testing.T, l *life) error {
	name, s := k.some(k.snaps)
	if s == nil {
		return nil
	}
	disk, snapshot := cutName(name)
	s.doubt, s.group = true, 0
	refused, died := asked(l, l.api.RemoveSnapshot(context.Background(), disk, snapshot, true))
	if died == nil && refused {
		died = fmt.Errorf("%s was not removed", name)
	}
	if died == nil {
		delete(k.snaps, name)
	}
	return died
}

func (k *keeper) clone(t *testing.T, l *life) error {
	from, s := k.some(k.snaps)
	if len(k.clones) >= clonesMax || s == nil {
		return nil
	}
	known := k.rng.IntN(2) == 0
	if known && !s.content.compare(t, l, from) {
		return errDied
	}
	k.next++
	name := fmt.Sprint("c", k.next)
	disk, snapshot := cutName(from)
	c := &kept{content: s.content.watch(), doubt: true}
	s.content.unwatch(c.content)
	k.clones[name] = c
	_, err := l.api.Clone(context.Background(), disk, snapshot, name)
	refused, died := asked(l, err)
	if died != nil {
		return died
	}
	if c.doubt = false; refused {
		delete(k.clones, name)
		return nil
	}
	if !c.content.compare(t, l, name) {
		return errDied
	}
	if !known { // it is what was cloned
		s.content = c.content.watch()
		c.content.unwatch(s.content)
	}
	return nil
}

// drop removes a clone.
func (k *keeper) drop(_ *testing.T, l *life) error {
	name, c := k.some(k.clones)
	if c == nil {
		return nil
	}
	c.doubt = true
	for snapshot, s := range k.snaps {
		if disk, _ := cutName(snapshot); disk == name {
			s.doubt, s.group = true, 0
		}
	}
	for {
		refused, died := asked(l, l.api.RemoveDiskWithSnapshots(context.Background(), name))
		if died != nil {
			return died
		}
		if !refused {
			k.forget(name)
			return nil
		}
		time.Sleep(10 * time.Millisecond) // a client that has left is still counted
	}
}

// forget takes a clone and its snapshots off what must be there.
func (k *keeper) forget(clone string) {
	delete(k.clones, clone)
	maps.DeleteFunc(k.snaps, func(name string, _ *kept) bool {
		disk, _ := cutName(name)
		return disk == clone
	})
}

// write writes to a clone, perhaps a young one.
func (k *keeper) write(t *testing.T, l *life) error {
	name, c := k.some(k.clones)
	if c == nil {
		return nil
	}
	d, err := l.dial(t, name)
	if err != nil {
		return errDied
	}
	defer d.Close()
	for range 1 + k.rng.IntN(16) {
		n := 1 + k.rng.Int64N(64)
		first, seq := k.rng.Int64N(diskSectors-n), k.fleet.seq.Add(1)
		p := make([]byte, n*sectorBytes)
		fillSectors(p, first, seq)
		begun := c.content.begin(first, n, seq)
		err := d.WriteAt(context.Background(), p, first*sectorBytes, k.rng.IntN(4) == 0)
		if errors.Is(err, nbd.ENOSPC) {
			continue
		}
		if err != nil {
			return fate(l, err)
		}
		c.content.end(first, n, begun)
	}
	if err := d.Disconnect(context.Background()); err != nil {
		return fate(l, err)
	}
	return nil
}

// rollback writes to a clone and takes that back.
func (k *keeper) rollback(t *testing.T, l *life) error {
	name, c := k.some(k.clones)
	if c == nil {
		return nil
	}
	// What a crash leaves of this is not known: then the clone goes.
	c.doubt = true
	k.next++
	snapshot := fmt.Sprint("r", k.next)
	_, err := l.api.CreateSnapshots(context.Background(), api.CreateSnapshots{Disks: []string{name}, CreateSnapshot: api.CreateSnapshot{Name: snapshot}})
	if refused, died := asked(l, err); died != nil || refused {
		c.doubt = died != nil
		return died
	}
	d, err := l.dial(t, name)
	if err != nil {
		return errDied
	}
	defer d.Close()
	p := make([]byte, writeSectorsMax*sectorBytes)
	for range 1 + k.rng.IntN(8) {
		first := k.rng.Int64N(diskSectors - writeSectorsMax)
		fillSectors(p, first, k.fleet.seq.Add(1))
		if err := d.WriteAt(context.Background(), p, first*sectorBytes, false); err != nil && !errors.Is(err, nbd.ENOSPC) {
			return fate(l, err)
		}
	}
	if err := d.Disconnect(context.Background()); err != nil {
		return fate(l, err)
	}
	for {
		_, err := l.api.Rollback(context.Background(), name, snapshot)
		refused, died := asked(l, err)
		if died != nil {
			return died
		}
		if !refused {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if !c.content.compare(t, l, name) {
		return errDied
	}
	c.doubt = false
	return nil
}

// fate is errDied for an error that the process's end explains.
func fate(l *life, err error) error {
	if errors.Is(err, client.ErrClosed) && l.dead() {
		return errDied
	}
	return err
}

func (k *keeper) read(t *testing.T, l *life) error {
	name, s := k.some(k.snaps)
	if s != nil && !s.content.compare(t, l, name) {
		return errDied
	}
	return nil
}

// reclaim cuts a full one off: under load there is always more to do.
func (k *keeper) reclaim(_ *testing.T, l *life) error {
	ctx, cancel := context.WithTimeout(context.Background(), reclaimTimeMax)
	defer cancel()
	_, err := l.api.Reclaim(ctx, host.ReclaimOptions{Full: true})
	if errors.Is(err, context.DeadlineExceeded) {
		return nil
	}
	_, died := asked(l, err)
	return died
}

func cutName(name string) (disk, snapshot string) {
	disk, snapshot, _ = strings.Cut(name, "@")
	return disk, snapshot
}
