package shelf

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"plinth/datanode"
	"plinth/internal/vfsx/crashfs"
)

// TestCrash ends power or process at random moments of a node's life: what was
// acknowledged is there, with its index or without. It ends none while a Pebble
// opens: Pebble then panics or waits for ever, as if it were the process's end.
func TestCrash(t *testing.T) {
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 0))
	var all tally
	for round := range 60 {
		if err := crash(t, rng, &all); err != nil {
			t.Fatalf("seed %d, round %d: %v", seed, round, err)
		}
	}
	t.Logf("seed %d: %+v", seed, all)
	if all.made < 40 || all.opened < 200 || all.recovered < 20 || all.crashed < 50 || all.commits < 500 {
		t.Errorf("seed %d: too little happened: %+v", seed, all)
	}
}

// tally counts what TestCrash met.
type tally struct{ made, opened, recovered, crashed, commits int }

// crash runs one life over several power failures.
func crash(t *testing.T, rng *rand.Rand, all *tally) error {
	disk := crashfs.New()
	made, told := false, 0
	for range 5 {
		opts := small(disk)
		opts.LogBytes = LogBytesMin
		if !made {
			if made = Create("/data", opts) == nil; made {
				all.made++
			}
		}
		if made {
			if err := live(t, disk, opts, rng, &told, all); err != nil {
				return err
			}
		}
		if disk.Crashed() {
			all.crashed++
		}
		if rng.IntN(2) == 0 {
			disk = disk.Kill()
		} else {
			disk = disk.Crash(rng, rng.IntN(101))
		}
		if there, err := exists(disk, "/data/"+superblockName); err != nil {
			return err
		} else if made && !there {
			return errors.New("a node that was created is gone")
		} else {
			made = there
		}
	}
	return nil
}

// live opens a node, by recovery if its index is to be lost, tests that all that
// it was told is there, and tells it more until the file system crashes.
func live(t *testing.T, disk *crashfs.FS, opts Options, rng *rand.Rand, told *int, all *tally) error {
	ctx := t.Context()
	if rng.IntN(3) == 0 {
		if err := (place{disk, "/data"}).remove(indexName); err != nil {
			return nil // crashed over it
		}
	}
	s, err := Open(ctx, "/data", opts)
	if errors.Is(err, ErrNeedsRecover) {
		if s, err = Recover(ctx, "/data", opts); err == nil {
			all.recovered++
		}
	}
	if err != nil {
		if disk.Crashed() {
			return nil
		}
		return err
	}
	all.opened++
	defer s.Close() // with an error, if the file system has crashed
	if *told > 0 {
		reply, err := s.RegistryGet(ctx, &datanode.RegistryGetRequest{Key: "told"})
		if disk.Crashed() {
			return nil
		}
		if err != nil {
			return fmt.Errorf("told %d: %w", *told, err)
		}
		var has int
		if _, err := fmt.Sscan(string(reply.Value), &has); err != nil || has < *told {
			return fmt.Errorf("told %d, the registry has %q", *told, reply.Value)
		}
		*told = has
	}
	disk.Limit(rng.Int64N(100 << 10))
	for range 20 {
		put := []datanode.Put{{Key: "told", Value: fmt.Append(nil, *told+1)}}
		if _, err := s.RegistryCommit(ctx, &datanode.RegistryTxn{Puts: put}); err != nil {
			if disk.Crashed() {
				return nil
			}
			return err
		}
		*told++
		all.commits++
	}
	return nil
}
