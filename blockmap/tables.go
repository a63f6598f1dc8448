package blockmap

import (
	"strconv"
	"strings"
	"sync"
)

// table is a file of Pebble's, under one or more paths (a checkpoint links it).
type table struct {
	bytes  int64
	object Object // nil until it is uploaded
	remote bool   // only the object has the bytes
	paths  map[string]struct{}
}

// tables is every table of an attachment by its name, which stands for the same
// bytes until the map is closed: Pebble counts file numbers up. A table is
// forgotten when Pebble has removed its last path.
type tables struct {
	mu     sync.Mutex
	byName map[string]*table
}

// add makes a path known; an uploaded table keeps its object.
func (t *tables) add(name, path string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	tab := t.byName[name]
	if tab == nil {
		tab = &table{paths: map[string]struct{}{}}
		t.byName[name] = tab
	}
	tab.paths[path] = struct{}{}
}

// addRemote makes a table known of which there is only the object.
func (t *tables) addRemote(name, path string, bytes int64, o Object) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.byName[name] = &table{bytes: bytes, object: o, remote: true, paths: map[string]struct{}{path: {}}}
}

// remove forgets a path.
func (t *tables) remove(name, path string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if tab := t.byName[name]; tab != nil {
		delete(tab.paths, path)
		if len(tab.paths) == 0 {
			delete(t.byName, name)
		}
	}
}

// remoteAt returns the table at path if only its object has the bytes.
func (t *tables) remoteAt(name, path string) (table, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	tab := t.byName[name]
	if tab == nil || !tab.remote {
		return table{}, false
	}
	_, ok := tab.paths[path]
	return *tab, ok
}

// remotes returns the names of tables without a local file in a directory,
// given how its paths begin.
func (t *tables) remotes(prefix string) []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	var names []string
	for name, tab := range t.byName {
		if _, ok := tab.paths[prefix+name]; ok && tab.remote {
			names = append(names, name)
		}
	}
	return names
}

// removeUnder forgets all paths that begin with prefix.
func (t *tables) removeUnder(prefix string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for name, tab := range t.byName {
		for path := range tab.paths {
			if strings.HasPrefix(path, prefix) {
				delete(tab.paths, path)
			}
		}
		if len(tab.paths) == 0 {
			delete(t.byName, name)
		}
	}
}

// uploaded notes a table's object. The table is known: a checkpoint links it.
func (t *tables) uploaded(name string, bytes int64, o Object) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if tab := t.byName[name]; tab != nil {
		tab.bytes, tab.object = bytes, o
	}
}

// object returns a table's object and size, nil before it is uploaded.
func (t *tables) object(name string) (Object, int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if tab := t.byName[name]; tab != nil {
		return tab.object, tab.bytes
	}
	return nil, 0
}

// objects returns the objects of all tables.
func (t *tables) objects() []Object {
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []Object
	for _, tab := range t.byName {
		if tab.object != nil {
			out = append(out, tab.object)
		}
	}
	return out
}

// remoteCount counts the tables of which there is only the object.
func (t *tables) remoteCount() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := 0
	for _, tab := range t.byName {
		if tab.remote {
			n++
		}
	}
	return n
}

const tableSuffix = ".sst"

// tableName returns the name of Pebble's table n.
func tableName(n uint64) string {
	digits := strconv.FormatUint(n, 10)
	return strings.Repeat("0", max(0, 6-len(digits))) + digits + tableSuffix
}

// parseTableName is the inverse of tableName.
func parseTableName(name string) (uint64, bool) {
	digits, ok := strings.CutSuffix(name, tableSuffix)
	if !ok {
		return 0, false
	}
	n, err := strconv.ParseUint(digits, 10, 64)
	return n, err == nil && tableName(n) == name
}
