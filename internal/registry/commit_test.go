package registry

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"plinth/datanode"
)

// TestCommitsTogether has commits wait while another one is being copied: they are
// carried out together, each for itself, and copied once.
func TestCommitsTogether(t *testing.T) {
	var copies []uint64 // revisions
	var failing error
	begun, resume := make(chan struct{}), make(chan struct{})
	p, err := Open(vfs.NewMem(), "r", Options{Create: true, Copies: func(_ []byte, revision uint64) error {
		copies = append(copies, revision)
		if revision == 1 {
			close(begun)
			<-resume
		}
		return failing
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	commit := func(txn datanode.RegistryTxn) (uint64, error) {
		reply, err := p.RegistryCommit(t.Context(), &txn)
		if err != nil {
			return 0, err
		}
		return reply.Revision, nil
	}
	put := func(key string, compares ...datanode.Compare) datanode.RegistryTxn {
		return datanode.RegistryTxn{Compares: compares, Puts: []datanode.Put{{Key: key, Value: []byte(key)}}}
	}
	var running sync.WaitGroup
	type outcome struct {
		revision uint64
		err      error
	}
	outcomes := map[string]*outcome{}
	begin := func(name string, txn datanode.RegistryTxn) {
		o := &outcome{}
		outcomes[name] = o
		waiting := func() int {
			p.queueMu.Lock()
			defer p.queueMu.Unlock()
			return len(p.queue)
		}
		before := waiting()
		running.Go(func() { o.revision, o.err = commit(txn) })
		for deadline := time.Now().Add(time.Minute); name != "first" && waiting() == before; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("a commit does not come")
			}
		}
	}
	begin("first", put("a"))
	<-begun
	begin("absent", put("b", datanode.Compare{Key: "b"}))
	begin("twice", put("b", datanode.Compare{Key: "b"})) // the one before has put it
	begin("after", put("c", datanode.Compare{Key: "b", Revision: 2}))
	begin("nothing", datanode.RegistryTxn{Deletes: []string{"z"}})
	begin("only looks", datanode.RegistryTxn{Compares: []datanode.Compare{{Key: "c", Revision: 3}}})
	begin("no lease", datanode.RegistryTxn{Puts: []datanode.Put{{Key: "d", Lease: 7}}})
	failing = datanode.Errorf(datanode.ErrSpindle, "no spindle")
	close(resume)
	running.Wait()
	for name, want := range map[string]struct {
		revision uint64
		err      error
	}{
		"first": {0, datanode.ErrSpindle}, "absent": {0, datanode.ErrSpindle}, "twice": {0, datanode.ErrConflict}, "after": {0, datanode.ErrSpindle},
		"nothing": {0, datanode.ErrSpindle}, "only looks": {4, nil}, "no lease": {0, datanode.ErrLeaseLost},
	} {
		if got := outcomes[name]; got.revision != want.revision || !errors.Is(got.err, want.err) {
			t.Errorf("%s: revision %d, %v; want %d, %v", name, got.revision, got.err, want.revision, want.err)
		}
	}
	if got, want := fmt.Sprint(copies), "[0 1 4]"; got != want {
		t.Errorf("copies of revisions %s, want %s", got, want)
	}
	for key, revision := range map[string]uint64{"a": 1, "b": 2, "c": 3} {
		if e, err := p.RegistryGet(t.Context(), &datanode.RegistryGetRequest{Key: key}); err != nil || e.Revision != revision {
			t.Errorf("key %s: %+v, %v", key, e, err)
		}
	}
	failing = nil
	if revision, err := commit(put("e")); revision != 5 || err != nil {
		t.Errorf("the next commit: revision %d, %v", revision, err)
	}
}
