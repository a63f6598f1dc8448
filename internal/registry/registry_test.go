package registry

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"plinth/datanode"
	"plinth/datanode/index/kv"
	"plinth/internal/id"
	"plinth/internal/registry/registrytest"
)

const dir = "/node/registry"

func TestContract(t *testing.T) { registrytest.Run(t, site) }

// site is a registry over a file system in memory.
func site(t *testing.T) *registrytest.Site {
	var mu sync.Mutex
	newest := map[id.Disk]id.Epoch{}
	opts := Options{Create: true, CheckEpoch: func(d id.Disk, epoch id.Epoch) error {
		mu.Lock()
		defer mu.Unlock()
		if epoch < newest[d] {
			return datanode.ErrFenced
		}
		return nil
	}}
	fs := vfs.NewMem()
	p := must(t, fs, opts)
	t.Cleanup(func() { p.Close() })
	return &registrytest.Site{
		Node: p,
		Reopen: func() datanode.RegistryNode {
			if err := p.Close(); err != nil {
				t.Fatal(err)
			}
			p = must(t, fs, opts)
			return p
		},
		Fence: func(d id.Disk, epoch id.Epoch) {
			mu.Lock()
			defer mu.Unlock()
			newest[d] = epoch
		},
		Dump: func() []byte {
			dump, _, err := p.Dump()
			if err != nil {
				t.Fatal(err)
			}
			return dump
		},
		Restore: func(dump []byte) datanode.RegistryNode {
			other := vfs.NewMem()
			if err := Restore(other, dir, dump); err != nil {
				t.Fatal(err)
			}
			q := must(t, other, opts)
			t.Cleanup(func() { q.Close() })
			return q
		},
	}
}

func must(t testing.TB, fs vfs.FS, opts Options) *Pebble {
	t.Helper()
	p, err := Open(fs, dir, opts)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func put(p *Pebble, key string, value []byte) error {
	_, err := p.RegistryCommit(context.Background(), &datanode.RegistryTxn{Puts: []datanode.Put{{Key: key, Value: value}}})
	return err
}

func TestCopiesRestore(t *testing.T) {
	var copies [][]byte
	fs := vfs.NewMem()
	p := must(t, fs, Options{Create: true, Copies: func(dump []byte, revision uint64) error {
		if got, err := ParseDump(dump); err != nil || got.Revision != revision {
			t.Errorf("copy of revision %d: %+v, %v", revision, got, err)
		}
		copies = append(copies, dump)
		return nil
	}})
	defer p.Close()
	for i := range 20 {
		if err := put(p, fmt.Sprint("key", i%7), fmt.Append(nil, i)); err != nil {
			t.Fatal(err)
		}
	}
	if len(copies) != 21 {
		t.Fatalf("%d copies", len(copies))
	}
	dump, revision, err := p.Dump()
	if err != nil || revision != 20 || string(dump) != string(copies[20]) || len(dump) != p.size() {
		t.Fatalf("dump at %d, %d bytes (counted %d), %v", revision, len(dump), p.size(), err)
	}
	other := vfs.NewMem()
	if err := Restore(other, dir, dump); err != nil {
		t.Fatal(err)
	}
	q := must(t, other, Options{})
	defer q.Close()
	_, again, err := q.Dump()
	if err != nil || again != revision+RestoreGap || q.size() != p.size() {
		t.Fatalf("restored at %d, of %d bytes, %v", again, q.size(), err)
	}
	// A damaged dump leaves what is there.
	dump[len(dump)/2] ^= 1
	if err := Restore(fs, dir, dump); !errors.Is(err, kv.ErrForeign) {
		t.Fatal(err)
	}
	if err := put(p, "a", nil); err != nil {
		t.Fatal(err)
	}
}

func TestFailedCopyIsSaidAndCommitStays(t *testing.T) {
	fs := vfs.NewMem()
	fail := error(datanode.ErrSpindle)
	p := must(t, fs, Options{Create: true, Copies: func([]byte, uint64) error { return fail }})
	defer func() { p.Close() }()
	if err := put(p, "a", []byte("1")); !errors.Is(err, datanode.ErrSpindle) {
		t.Fatal(err)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	copied := uint64(0)
	p = must(t, fs, Options{Copies: func(_ []byte, revision uint64) error { copied = revision; return nil }})
	if copied != 1 {
		t.Fatalf("the next open copied revision %d", copied)
	}
	if r, err := p.RegistryGet(context.Background(), &datanode.RegistryGetRequest{Key: "a"}); err != nil || string(r.Value) != "1" {
		t.Fatal(r, err)
	}
}

func TestBounded(t *testing.T) {
	p := must(t, vfs.NewMem(), Options{Create: true})
	defer p.Close()
	value := make([]byte, datanode.RegistryValueBytesMax)
	var err error
	n := 0
	for ; err == nil && n < 100; n++ {
		err = put(p, fmt.Sprint(n), value)
	}
	if !errors.Is(err, datanode.ErrNoSpace) || n != 64 {
		t.Fatalf("commit %d: %v", n, err)
	}
	if _, err := p.RegistryCommit(context.Background(), &datanode.RegistryTxn{Deletes: []string{"0"}}); err != nil {
		t.Fatal(err)
	}
	if err := put(p, "new", value); err != nil {
		t.Fatal(err)
	}
	if dump, _, err := p.Dump(); err != nil || len(dump) != p.size() {
		t.Fatal(len(dump), p.size(), err)
	}
}

func TestOpenRefuses(t *testing.T) {
	fs := vfs.NewMem()
	if _, err := Open(fs, dir, Options{}); !errors.Is(err, kv.ErrAbsent) {
		t.Fatal(err)
	}
	store, err := kv.OpenStore(fs, dir, kv.Options{Name: "foreign", Create: true})
	if err != nil {
		t.Fatal(err)
	}
	b := store.DB.NewBatch()
	set(b, []byte{keySuper}, kv.Seal(magic, version+1, nil))
	if err := errors.Join(store.Commit(b), store.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(fs, dir, Options{Create: true}); !errors.Is(err, kv.ErrNewer) {
		t.Fatal(err)
	}
}

// What returned is there after a loss of power, and so is nothing by halves.
func TestCrash(t *testing.T) {
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 0))
	for round := range 40 {
		fs := vfs.NewCrashableMem()
		p := must(t, fs, Options{Create: true})
		commits := 1 + rng.IntN(20)
		for i := range commits {
			value := fmt.Append(nil, i)
			_, err := p.RegistryCommit(context.Background(), &datanode.RegistryTxn{
				Puts: []datanode.Put{{Key: "a", Value: value}, {Key: "b", Value: value}, {Key: fmt.Sprint("c", i)}},
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		after := fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: rng.IntN(100), RNG: rng})
		p.Close()
		q := must(t, after, Options{})
		entries, err := q.RegistryList(context.Background(), &datanode.RegistryListRequest{})
		if err != nil || q.revision != uint64(commits) || len(entries.Entries) != commits+2 {
			t.Fatalf("seed %d, round %d: revision %d, %d entries, %v", seed, round, q.revision, len(entries.Entries), err)
		}
		q.Close()
	}
}

func FuzzParseDump(f *testing.F) {
	f.Add((&Dump{}).Encode()[20:36])
	f.Add((&Dump{Revision: 7, Leases: []Lease{{3, time.Second}, {9, time.Minute}}, Entries: []datanode.RegistryEntry{
		{Key: "a", Value: []byte("1"), Revision: 3, Lease: 9}, {Key: "b", Revision: 7},
	}}).Encode()[20:])
	f.Fuzz(func(t *testing.T, body []byte) {
		ParseDump(body)
		for version := range uint16(dumpVersion) {
			d, err := ParseDump(kv.Seal(dumpMagic, version+1, body))
			if err != nil {
				continue
			}
			again, err := ParseDump(d.Encode())
			if err != nil || again.Revision != d.Revision || len(d.Entries) != len(again.Entries) ||
				len(d.Entries) > 0 && !reflect.DeepEqual(d.Entries, again.Entries) || !reflect.DeepEqual(d.Leases, again.Leases) {
				t.Fatalf("%+v became %+v, %v", d, again, err)
			}
		}
	})
}

// An older plinth's dump has no leases.
func TestOldDump(t *testing.T) {
	b := le.AppendUint64(nil, 7)
	b = le.AppendUint32(b, 1)
	b = le.AppendUint64(b, 3)
	b = le.AppendUint16(b, 1)
	b = le.AppendUint32(b, 5)
	d, err := ParseDump(kv.Seal(dumpMagic, 1, append(b, "avalue"...)))
	if err != nil || d.Revision != 7 || len(d.Entries) != 1 || d.Entries[0].Key != "a" || string(d.Entries[0].Value) != "value" || d.Entries[0].Revision != 3 {
		t.Fatalf("%+v, %v", d, err)
	}
}

// What is remembered of changes is bounded; who is behind it is told.
func TestRecentIsBounded(t *testing.T) {
	p := must(t, vfs.NewMem(), Options{Create: true})
	defer p.Close()
	if err := put(p, "first", nil); err != nil {
		t.Fatal(err)
	}
	value := make([]byte, 200<<10)
	for i := range recentBytesMax/len(value) + 2 {
		if err := put(p, "a", value); err != nil {
			t.Fatal(i, err)
		}
		if p.recent.bytes > recentBytesMax {
			t.Fatalf("%d bytes are remembered", p.recent.bytes)
		}
	}
	_, err := p.RegistryWatch(t.Context(), &datanode.RegistryWatchRequest{After: 1})
	if !errors.Is(err, datanode.ErrCompacted) {
		t.Fatal(err)
	}
	if _, err = p.RegistryList(t.Context(), &datanode.RegistryListRequest{At: 1}); !errors.Is(err, datanode.ErrCompacted) {
		t.Fatal(err)
	}
	for range recentMax/datanode.RegistryOpsMax + 2 {
		txn := &datanode.RegistryTxn{}
		for i := range datanode.RegistryOpsMax {
			txn.Puts = append(txn.Puts, datanode.Put{Key: fmt.Sprint(i)})
		}
		if _, err := p.RegistryCommit(t.Context(), txn); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(p.recent.changes); n > recentMax || n < recentMax-datanode.RegistryOpsMax {
		t.Fatalf("%d changes are remembered", n)
	}
}

// Close does not wait for watches.
func TestCloseEndsWatches(t *testing.T) {
	p := must(t, vfs.NewMem(), Options{Create: true})
	ended := make(chan error)
	go func() {
		_, err := p.RegistryWatch(t.Context(), &datanode.RegistryWatchRequest{})
		ended <- err
	}()
	time.Sleep(10 * time.Millisecond)
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; !errors.Is(err, datanode.ErrClosed) {
		t.Fatal(err)
	}
}

// Leases, and what is under them, are there after a loss of power.
func TestCrashKeepsLeases(t *testing.T) {
	fs := vfs.NewCrashableMem()
	p := must(t, fs, Options{Create: true})
	var leases []datanode.LeaseID
	for i := range 3 {
		reply, err := p.RegistryGrant(t.Context(), &datanode.RegistryGrantRequest{TTL: time.Minute})
		if err != nil {
			t.Fatal(err)
		}
		leases = append(leases, reply.Lease)
		_, err = p.RegistryCommit(t.Context(), &datanode.RegistryTxn{Puts: []datanode.Put{{Key: fmt.Sprint(i), Lease: reply.Lease}}})
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := p.RegistryRevoke(t.Context(), &datanode.RegistryRevokeRequest{Lease: leases[0]}); err != nil {
		t.Fatal(err)
	}
	after := fs.CrashClone(vfs.CrashCloneCfg{})
	p.Close()
	q := must(t, after, Options{})
	defer q.Close()
	for i, lease := range leases {
		err := q.RegistryKeepAlive(t.Context(), &datanode.RegistryKeepAliveRequest{Lease: lease})
		_, gerr := q.RegistryGet(t.Context(), &datanode.RegistryGetRequest{Key: fmt.Sprint(i)})
		if i == 0 && (!errors.Is(err, datanode.ErrLeaseLost) || !errors.Is(gerr, datanode.ErrNotFound)) || i > 0 && errors.Join(err, gerr) != nil {
			t.Fatalf("lease %d: %v, %v", i, err, gerr)
		}
	}
}

// What a lease may have is bounded, and so are leases.
func TestLeasesAreBounded(t *testing.T) {
	p := must(t, vfs.NewMem(), Options{Create: true})
	defer p.Close()
	var lease datanode.LeaseID
	for range datanode.LeasesMax {
		reply, err := p.RegistryGrant(t.Context(), &datanode.RegistryGrantRequest{TTL: time.Minute})
		if err != nil {
			t.Fatal(err)
		}
		lease = reply.Lease
	}
	if _, err := p.RegistryGrant(t.Context(), &datanode.RegistryGrantRequest{TTL: time.Minute}); !errors.Is(err, datanode.ErrNoSpace) {
		t.Fatal(err)
	}
	var err error
	n := 0
	for ; err == nil && n <= datanode.LeaseKeysMax; n++ {
		_, err = p.RegistryCommit(t.Context(), &datanode.RegistryTxn{Puts: []datanode.Put{{Key: fmt.Sprint(n), Lease: lease}}})
	}
	if !errors.Is(err, datanode.ErrNoSpace) || n != datanode.LeaseKeysMax+1 {
		t.Fatalf("key %d: %v", n, err)
	}
	if dump, _, err := p.Dump(); err != nil || len(dump) != p.size() {
		t.Fatal(len(dump), p.size(), err)
	}
}
