package shelf

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/cockroachdb/pebble/v2/vfs"

	"plinth/internal/vfsx"
)

// The names in a node's directory.
const (
	superblockName = "node"
	lockName       = "LOCK"
	creatingName   = "creating" // there while Create is at work
	logName        = "log"
	indexName      = "index"
	spindlePrefix  = "spindle-"
	lostFound      = "lost+found" // at the root of a file system of its own

	fingerprintsName = "fingerprints" // in an index directory
	registryName     = "registry"
)

// place is a node's directory.
type place struct {
	fs  vfs.FS
	dir string
}

func (p place) path(names ...string) string {
	return p.fs.PathJoin(append([]string{p.dir}, names...)...)
}

func spindleName(n int) string { return fmt.Sprintf("%s%02d", spindlePrefix, n) }

// spindles returns the directories of that many spindles, in order.
func (p place) spindles(count int) []string {
	dirs := make([]string, count)
	for n := range dirs {
		dirs[n] = p.path(spindleName(n))
	}
	return dirs
}

// lock takes the node for this process. ErrLocked if another has it.
func (p place) lock() (io.Closer, error) {
	lock, err := p.fs.Lock(p.path(lockName))
	if err != nil {
		return nil, fmt.Errorf("%w: another process has %s open (%v): stop it, or use another directory", ErrLocked, p.dir, err)
	}
	return lock, nil
}

// mkdir makes a directory and its name durable.
func (p place) mkdir(path string) error {
	if err := p.fs.MkdirAll(path, 0o700); err != nil {
		return err
	}
	return vfsx.SyncDir(p.fs, p.fs.PathDir(path))
}

// remove takes what is at the path, and all below it, away, durably.
func (p place) remove(names ...string) error {
	path := p.path(names...)
	if there, err := exists(p.fs, path); err != nil || !there {
		return err
	}
	if err := p.fs.RemoveAll(path); err != nil {
		return err
	}
	return vfsx.SyncDir(p.fs, p.fs.PathDir(path))
}

// leftovers returns the names in the directory that an interrupted Create left:
// they go, since no node was ever opened there. Besides those it may hold empty
// spindle directories, on which drives may be mounted; ErrExists for anything
// else. It changes nothing.
func (p place) leftovers() ([]string, error) {
	names, err := p.fs.List(p.dir)
	if isNotExist(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	slices.Sort(names)
	interrupted := slices.Contains(names, creatingName) && !slices.Contains(names, superblockName)
	var left []string
	for _, name := range names {
		spindle := strings.HasPrefix(name, spindlePrefix) // rosterName has not
		switch {
		case name == lockName, name == creatingName, name == lostFound:
		case interrupted && (spindle || slices.Contains([]string{superblockName + ".tmp", rosterName, rosterName + ".tmp", logName, indexName}, name)):
			left = append(left, name)
		case spindle:
			if err := p.empty(name); err != nil {
				return nil, err
			}
		default:
			return nil, fmt.Errorf("%w: %s holds %s: create the data node in a directory of its own", ErrExists, p.dir, name)
		}
	}
	return left, nil
}

// begin marks the directory as one where Create is at work.
func (p place) begin() error {
	f, err := p.fs.Create(p.path(creatingName), vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return err
	}
	return vfsx.SyncDir(p.fs, p.dir)
}

// clear empties a directory that may be a mount point, or removes a file.
func (p place) clear(name string) error {
	info, err := p.fs.Stat(p.path(name))
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return p.remove(name)
	}
	return vfsx.ClearDir(p.fs, p.path(name), lostFound)
}

// empty returns ErrExists unless the directory is.
func (p place) empty(name string) error {
	below, err := p.fs.List(p.path(name))
	if err != nil {
		return err
	}
	for _, b := range below {
		if b != lostFound {
			return fmt.Errorf("%w: %s holds %s: a new spindle must be empty", ErrExists, p.path(name), b)
		}
	}
	return nil
}

// drive is a file system that a new node lies on.
type drive struct {
	path      string
	available int64
	spindles  int // on it
}

// drives returns the file systems of a new node, the log's first. A spindle has
// another only where its directory is there already, mounted by an operator.
func (p place) drives(spindles int) ([]drive, error) {
	var drives []drive
	numbers := map[vfs.DeviceID]int{}
	add := func(path string, spindles int) error {
		info, err := p.fs.Stat(path)
		if isNotExist(err) {
			drives[0].spindles += spindles
			return nil
		}
		if err != nil {
			return err
		}
		n, known := numbers[info.DeviceID()]
		if !known {
			available, err := vfsx.Available(p.fs, path)
			if err != nil {
				return err
			}
			n = len(drives)
			numbers[info.DeviceID()] = n
			drives = append(drives, drive{path: path, available: available})
		}
		drives[n].spindles += spindles
		return nil
	}
	err := add(p.dir, 0)
	for _, dir := range p.spindles(spindles) {
		if err != nil {
			break
		}
		err = add(dir, 1)
	}
	return drives, err
}
