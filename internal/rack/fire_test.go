package rack_test

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"plinth/datanode"
	"plinth/internal/id"
	"plinth/internal/rack"
	"plinth/internal/rack/racktest"
	"plinth/internal/stripe"
)

// fired is a disk that is written without a pause, by one owner after the other.
type fired struct {
	disk   id.Disk
	racks  []*rack.Rack
	epoch  id.Epoch
	next   [datanode.Streams]id.Pos
	acked  [datanode.Streams]map[id.Pos]id.Epoch // by position: who was told that it has it
	owners int
	first  [datanode.Streams]id.Pos // what is before it is not needed
}

// own takes the disk over, at another rack each time, for as long as that takes.
func (f *fired) own(t *testing.T) error {
	for deadline := time.Now().Add(patience); ; {
		f.epoch++
		r := f.racks[int(f.epoch)%len(f.racks)]
		reply, err := r.Fence(t.Context(), &datanode.FenceRequest{Disk: f.disk, Epoch: f.epoch})
		if err != nil {
			if time.Now().After(deadline) {
				return fmt.Errorf("disk %d is not taken over: %w", f.disk, err)
			}
			time.Sleep(20 * time.Millisecond)
			continue
		}
		f.owners++
		f.next = reply.End
		return f.check(t, r, reply.First)
	}
}

// check reads all and looks for what was acknowledged.
func (f *fired) check(t *testing.T, r *rack.Rack, first [datanode.Streams]id.Pos) error {
	for s := range datanode.Stream(datanode.Streams) {
		if first[s] > max(f.first[s], 1) {
			return fmt.Errorf("disk %d, stream %d begins at %d, %d is needed", f.disk, s, first[s], f.first[s])
		}
		from, seen := first[s], make(map[id.Pos]id.Epoch)
		for {
			reply, err := r.ReadLog(t.Context(), &datanode.ReadLogRequest{Disk: f.disk, Epoch: f.epoch, Stream: s, From: from})
			if err != nil {
				return fmt.Errorf("disk %d, stream %d: %w", f.disk, s, err)
			}
			if len(reply.Records) == 0 {
				break
			}
			for _, rec := range reply.Records {
				if rec.MAC != record(rec.Epoch, rec.Pos).MAC {
					return fmt.Errorf("disk %d, stream %d: record %d of epoch %d has another MAC", f.disk, s, rec.Pos, rec.Epoch)
				}
				seen[rec.Pos] = rec.Epoch
			}
			from += id.Pos(len(reply.Records))
		}
		if from != f.next[s] {
			return fmt.Errorf("disk %d, stream %d: the fence said %d, the log ends at %d", f.disk, s, f.next[s], from)
		}
		for pos, epoch := range f.acked[s] {
			if pos >= f.first[s] && seen[pos] != epoch {
				return fmt.Errorf("disk %d, stream %d: record %d of epoch %d was acknowledged, there is one of %d", f.disk, s, pos, epoch, seen[pos])
			}
		}
	}
	return nil
}

// trim gives up all but the newest.
func (f *fired) trim(t *testing.T, r *rack.Rack) error {
	err := r.Sync(t.Context(), &datanode.SyncRequest{Disk: f.disk, Epoch: f.epoch})
	for s := range datanode.Stream(datanode.Streams) {
		if through := f.next[s] - 50; err == nil && f.next[s] > 50 {
			f.first[s] = max(f.first[s], through+1)
			err = r.TrimLog(t.Context(), &datanode.TrimLogRequest{Disk: f.disk, Epoch: f.epoch, Stream: s, Through: through})
		}
	}
	return err
}

func (f *fired) run(t *testing.T, ended func() bool) error {
	if err := f.own(t); err != nil {
		return err
	}
	for n := 0; !ended(); n++ {
		s := datanode.Stream(n % datanode.Streams)
		r := f.racks[int(f.epoch)%len(f.racks)]
		_, err := r.Append(t.Context(), &datanode.AppendRequest{Disk: f.disk, Epoch: f.epoch, Stream: s, Records: []datanode.Record{record(f.epoch, f.next[s])}})
		if err == nil {
			f.acked[s][f.next[s]] = f.epoch
			f.next[s]++
			if n%8 == 0 {
				err = r.Sync(t.Context(), &datanode.SyncRequest{Disk: f.disk, Epoch: f.epoch})
			}
		}
		if err == nil && n%50 == 49 {
			err = f.trim(t, r)
		}
		if err != nil || n%300 == 299 { // somebody else takes it
			if errors.Is(err, datanode.ErrInvalid) || errors.Is(err, datanode.ErrPosition) {
				return fmt.Errorf("disk %d, epoch %d, stream %d, position %d: %w", f.disk, f.epoch, s, f.next[s], err)
			}
			if err := f.own(t); err != nil {
				return err
			}
		}
		time.Sleep(500 * time.Microsecond)
	}
	return nil
}

// Nodes go and come back, one at a time, under hosts that append and take disks from
// each other: what was acknowledged is there, and each log becomes whole.
func TestLogsWhileNodesComeAndGo(t *testing.T) {
	s := racktest.Open(t, [16]byte{1}, stripe.Geometry{K: 4, M: 2}, 3, 4)
	racks := []*rack.Rack{s.Rack(rack.Options{}), s.Rack(rack.Options{})}
	var over atomic.Bool
	var running sync.WaitGroup
	all := make([]*fired, 4)
	errs := make([]error, len(all))
	for i := range all {
		f := &fired{disk: id.Disk(i + 1), racks: racks}
		for s := range f.acked {
			f.acked[s] = make(map[id.Pos]id.Epoch)
		}
		all[i] = f
		running.Go(func() {
			if errs[i] = f.run(t, over.Load); errs[i] != nil {
				over.Store(true)
			}
		})
	}
	for round := 0; round < 8 && !over.Load(); round++ {
		n := 1 + round%2 // node 0 has the registry
		if round%4 < 2 {
			s.Away(n)
			time.Sleep(100 * time.Millisecond)
			s.Back(n)
		} else {
			s.Stop(n)
			time.Sleep(100 * time.Millisecond)
			s.Start(n)
		}
		for deadline := time.Now().Add(patience); !over.Load(); time.Sleep(10 * time.Millisecond) {
			whole := 0
			for _, f := range all {
				reply, err := racks[0].RegistryGet(t.Context(), &datanode.RegistryGetRequest{Key: fmt.Sprintf("logset/%016x", uint64(f.disk))})
				if err != nil {
					continue
				}
				row, err := rack.ParseRow(reply.Value)
				if err != nil {
					t.Fatal(err)
				}
				if len(row) == 3 {
					whole++
				}
			}
			if whole == len(all) {
				break
			}
			if time.Now().After(deadline) {
				over.Store(true)
				t.Error("not every log is made whole")
			}
		}
	}
	over.Store(true)
	running.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	for _, f := range all {
		if err := f.own(t); err != nil {
			t.Error(err)
		}
		t.Logf("disk %d: %d and %d records acknowledged, %d owners", f.disk, len(f.acked[0]), len(f.acked[1]), f.owners)
		if len(f.acked[0]) == 0 || f.owners < 2 {
			t.Error("too little happened")
		}
	}
}
