package registry

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"plinth/datanode"
	"plinth/datanode/index/kv"
	"plinth/internal/id"
	"plinth/internal/registry/registrytest"
)

const dir = "/node/registry"

func TestContract(t *testing.T) {
	registrytest.Run(t, func(t *testing.T, checkEpoch func(id.Disk, id.Epoch) error) (datanode.RegistryNode, func() datanode.RegistryNode) {
		fs := vfs.NewMem()
		p := must(t, fs, Options{Create: true, CheckEpoch: checkEpoch})
		t.Cleanup(func() { p.Close() })
		return p, func() datanode.RegistryNode {
			if err := p.Close(); err != nil {
				t.Fatal(err)
			}
			p = must(t, fs, Options{CheckEpoch: checkEpoch})
			return p
		}
	})
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
		if got, _, err := ParseDump(dump); err != nil || got != revision {
			t.Errorf("copy of revision %d: %d, %v", revision, got, err)
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
	if err != nil || revision != 20 || string(dump) != string(copies[20]) || len(dump) != p.dumpBytes {
		t.Fatalf("dump at %d, %d bytes (counted %d), %v", revision, len(dump), p.dumpBytes, err)
	}
	other := vfs.NewMem()
	if err := Restore(other, dir, dump); err != nil {
		t.Fatal(err)
	}
	q := must(t, other, Options{})
	defer q.Close()
	again, _, err := q.Dump()
	if err != nil || string(again) != string(dump) || q.dumpBytes != p.dumpBytes {
		t.Fatalf("restored differs: %v", err)
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
	if dump, _, err := p.Dump(); err != nil || len(dump) != p.dumpBytes {
		t.Fatal(len(dump), p.dumpBytes, err)
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
	f.Add(encodeDump(0, nil)[20:36])
	f.Add(encodeDump(7, []datanode.RegistryEntry{{Key: "a", Value: []byte("1"), Revision: 3}, {Key: "b", Revision: 7}})[20:])
	f.Fuzz(func(t *testing.T, body []byte) {
		ParseDump(body)
		revision, entries, err := ParseDump(kv.Seal(dumpMagic, dumpVersion, body))
		if err != nil {
			return
		}
		again, entries2, err := ParseDump(encodeDump(revision, entries))
		if err != nil || again != revision || len(entries) != len(entries2) || len(entries) > 0 && !reflect.DeepEqual(entries, entries2) {
			t.Fatalf("%+v became %+v, %v", entries, entries2, err)
		}
	})
}
