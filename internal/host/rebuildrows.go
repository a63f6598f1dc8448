package host

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"plinth/datanode"
	"plinth/internal/id"
	"plinth/internal/rebuild"
)

func restoreKey(host string) string { return restorePrefix + host }

// rowWatch is what rows with a prefix are now, by their keys. A goroutine of the host's keeps it
// until stop.
type rowWatch struct {
	cancel context.CancelFunc

	mu   sync.Mutex
	rows map[string]datanode.RegistryEntry
	at   uint64 // revision of the newest change that is in it; 0: nothing was listed yet
}

// watchRows watches rows with a prefix, of one key if only is not empty, and wakes the rebuild at
// each change.
func (h *Host) watchRows(prefix, only string) *rowWatch {
	ctx, cancel := context.WithCancel(h.life)
	w := &rowWatch{cancel: cancel}
	whole := func(all []datanode.RegistryEntry, at uint64) {
		rows := make(map[string]datanode.RegistryEntry, len(all))
		for _, e := range all {
			rows[e.Key] = e
		}
		w.mu.Lock()
		w.rows, w.at = rows, max(at, 1)
		w.mu.Unlock()
		wake(h.rebuild.wake)
	}
	one := func(e *datanode.RegistryEvent) {
		if only != "" && e.Key != only {
			return
		}
		w.mu.Lock()
		if w.at = max(w.at, e.Revision); e.Deleted {
			delete(w.rows, e.Key)
		} else {
			w.rows[e.Key] = datanode.RegistryEntry{Key: e.Key, Value: e.Value, Revision: e.Revision, Lease: e.Lease}
		}
		w.mu.Unlock()
		wake(h.rebuild.wake)
	}
	h.work.Add(1)
	go h.watchFor(ctx, prefix, whole, one)
	return w
}

func (w *rowWatch) stop() {
	if w != nil {
		w.cancel()
	}
}

// get returns a row; without one, the revision as of which there was none.
func (w *rowWatch) get(key string) (e datanode.RegistryEntry, there bool, at uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	e, there = w.rows[key]
	return e, there, w.at
}

// all returns all rows by the names of their hosts, and false if they are not known yet.
func (w *rowWatch) all() (map[string]datanode.RegistryEntry, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := make(map[string]datanode.RegistryEntry, len(w.rows))
	for key, e := range w.rows {
		out[strings.TrimPrefix(key, restorePrefix)] = e
	}
	return out, w.at > 0
}

// seeRebuilds takes the row of the rebuild as it is listed, seeRebuild a change of it.
func (h *Host) seeRebuilds(all []datanode.RegistryEntry, _ uint64) {
	for i := range all {
		h.seeRebuild(&datanode.RegistryEvent{Key: all[i].Key, Value: all[i].Value})
	}
}

func (h *Host) seeRebuild(e *datanode.RegistryEvent) {
	if e.Key != keyRebuild {
		return
	}
	x := &h.rebuild
	x.mu.Lock()
	x.told = e.Value
	leads := x.loaded
	x.mu.Unlock()
	if !leads { // or else this host said so itself
		wake(x.wake)
	}
}

// takeTold has the row be what the warden says.
func (h *Host) takeTold() {
	x := &h.rebuild
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.told == nil {
		return
	}
	h.setRebuild(x.told)
	x.told = nil
}

// setRebuild takes a value of the row, nil for none, under mu.
func (h *Host) setRebuild(value []byte) {
	x := &h.rebuild
	x.row = h.parseRebuild(value)
	x.sharing.Store(int64(x.row.Pass.Sharing()))
}

func (h *Host) parseRebuild(value []byte) (row rebuild.Row) {
	if value != nil {
		if err := json.Unmarshal(value, &row); err != nil || row.Version != rebuild.RowVersion {
			// Without it nobody knows which spindles are whole: all are gone through.
			h.log.Warn("cannot read how far the rebuild was, all spindles are looked at", "version", row.Version, "err", err)
			row = rebuild.Row{Version: rebuild.RowVersion, Whole: make(map[id.Spindle]uint64)}
		}
	}
	return row
}

// loadRebuild reads the row.
func (h *Host) loadRebuild(ctx context.Context) error {
	value, _, err := h.catalog.get(ctx, keyRebuild)
	if err != nil {
		return err
	}
	x := &h.rebuild
	x.mu.Lock()
	defer x.mu.Unlock()
	h.setRebuild(value)
	return nil
}

// saveRebuild puts the row, if this host is the warden still. With an error what the registry has
// goes on.
func (h *Host) saveRebuild(ctx context.Context, l *leading) error {
	x := &h.rebuild
	x.mu.Lock()
	value, err := json.Marshal(&x.row)
	x.mu.Unlock()
	if err != nil {
		return err
	}
	if l.changed, l.saved = false, time.Now(); bytes.Equal(value, l.put) {
		return nil // as in a pass that waits
	}
	err = h.catalog.commit(ctx, &datanode.RegistryTxn{
		Compares: []datanode.Compare{{Key: keyWarden, Revision: l.guard}}, Puts: []datanode.Put{{Key: keyRebuild, Value: value}},
	})
	if err != nil {
		l.broken = true
		return fmt.Errorf("save how far the rebuild is: %w", err)
	}
	l.put = value
	return nil
}

// dropRow deletes this host's own row.
func (h *Host) dropRow(ctx context.Context) error {
	key := restoreKey(h.opts.Name)
	now, err := h.catalog.getEntry(ctx, key)
	if err != nil || now == nil {
		return err
	}
	_, err = h.catalog.decide(ctx, &datanode.RegistryTxn{
		Compares: []datanode.Compare{{Key: key, Revision: now.Revision}}, Deletes: []string{key},
	}, key, nil)
	if errors.Is(err, datanode.ErrConflict) {
		return nil // it is gone, or the next step sees to it
	}
	return err
}
