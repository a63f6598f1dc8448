package crashfs

import (
	"errors"
	"io"
	"os"
	"path"
	"strings"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// The methods of vfs.FS. Paths are separated by slashes; the working directory
// is the root.

var (
	errNotDir   = errors.New("not a directory")
	errIsDir    = errors.New("is a directory")
	errNotEmpty = errors.New("directory not empty")
	errLocked   = errors.New("file is locked")
)

// parts returns the names on the way from the root.
func parts(name string) []string {
	clean := strings.Trim(path.Clean("/"+name), "/")
	if clean == "" {
		return nil
	}
	return strings.Split(clean, "/")
}

// find returns a node. The caller holds mu.
func (fs *FS) find(op, name string) (*node, error) {
	if fs.crashed {
		return nil, ErrCrashed
	}
	n := fs.root
	for _, p := range parts(name) {
		if !n.dir {
			return nil, &os.PathError{Op: op, Path: name, Err: errNotDir}
		}
		if n = n.children[p]; n == nil {
			return nil, &os.PathError{Op: op, Path: name, Err: os.ErrNotExist}
		}
	}
	return n, nil
}

// parent returns the directory that holds, or would hold, name.
func (fs *FS) parent(op, name string) (dir *node, base string, err error) {
	ps := parts(name)
	if len(ps) == 0 {
		return nil, "", &os.PathError{Op: op, Path: name, Err: os.ErrInvalid}
	}
	dir, err = fs.find(op, path.Dir(path.Clean("/"+name)))
	if err == nil && !dir.dir {
		err = &os.PathError{Op: op, Path: name, Err: errNotDir}
	}
	return dir, ps[len(ps)-1], err
}

func (fs *FS) Create(name string, _ vfs.DiskWriteCategory) (vfs.File, error) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	return fs.create(name)
}

func (fs *FS) create(name string) (vfs.File, error) {
	dir, base, err := fs.parent("create", name)
	if err != nil {
		return nil, err
	}
	if old := dir.children[base]; old != nil && old.dir {
		return nil, &os.PathError{Op: "create", Path: name, Err: errIsDir}
	}
	if err := fs.spend(OpCost); err != nil {
		return nil, err
	}
	n := newFile()
	dir.apply(change{names: []string{base}, nodes: []*node{n}})
	return &file{fs: fs, n: n, name: base, write: true}, nil
}

func (fs *FS) Link(oldname, newname string) error {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	n, err := fs.find("link", oldname)
	if err != nil {
		return err
	}
	dir, base, err := fs.parent("link", newname)
	if err != nil {
		return err
	}
	if n.dir || dir.children[base] != nil {
		return &os.LinkError{Op: "link", Old: oldname, New: newname, Err: os.ErrExist}
	}
	if err := fs.spend(OpCost); err != nil {
		return err
	}
	dir.apply(change{names: []string{base}, nodes: []*node{n}})
	return nil
}

func (fs *FS) open(name string, write bool) (vfs.File, error) {
	n, err := fs.find("open", name)
	if err != nil {
		return nil, err
	}
	if write && n.dir {
		return nil, &os.PathError{Op: "open", Path: name, Err: errIsDir}
	}
	return &file{fs: fs, n: n, name: path.Base(name), write: write}, nil
}

func (fs *FS) Open(name string, opts ...vfs.OpenOption) (vfs.File, error) {
	fs.mu.Lock()
	f, err := fs.open(name, false)
	fs.mu.Unlock()
	return applied(f, err, opts)
}

func (fs *FS) OpenReadWrite(name string, _ vfs.DiskWriteCategory, opts ...vfs.OpenOption) (vfs.File, error) {
	fs.mu.Lock()
	f, err := fs.open(name, true)
	if errors.Is(err, os.ErrNotExist) {
		f, err = fs.create(name)
	}
	fs.mu.Unlock()
	return applied(f, err, opts)
}

func applied(f vfs.File, err error, opts []vfs.OpenOption) (vfs.File, error) {
	if err != nil {
		return nil, err
	}
	for _, o := range opts {
		o.Apply(f)
	}
	return f, nil
}

func (fs *FS) OpenDir(name string) (vfs.File, error) { return fs.Open(name) }

func (fs *FS) Remove(name string) error {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	return fs.remove(name, false)
}

func (fs *FS) RemoveAll(name string) error {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	err := fs.remove(name, true)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

func (fs *FS) remove(name string, all bool) error {
	dir, base, err := fs.parent("remove", name)
	if err != nil {
		return err
	}
	n := dir.children[base]
	switch {
	case n == nil:
		return &os.PathError{Op: "remove", Path: name, Err: os.ErrNotExist}
	case !all && len(n.children) > 0:
		return &os.PathError{Op: "remove", Path: name, Err: errNotEmpty}
	}
	if err := fs.spend(OpCost); err != nil {
		return err
	}
	dir.apply(change{names: []string{base}, nodes: []*node{nil}})
	return nil
}

func (fs *FS) Rename(oldname, newname string) error {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	return fs.rename(oldname, newname)
}

func (fs *FS) rename(oldname, newname string) error {
	from, oldbase, err := fs.parent("rename", oldname)
	if err != nil {
		return err
	}
	to, newbase, err := fs.parent("rename", newname)
	if err != nil {
		return err
	}
	n := from.children[oldbase]
	if n == nil {
		return &os.LinkError{Op: "rename", Old: oldname, New: newname, Err: os.ErrNotExist}
	}
	if old := to.children[newbase]; old != nil && old.dir != n.dir {
		return &os.LinkError{Op: "rename", Old: oldname, New: newname, Err: os.ErrExist}
	}
	if err := fs.spend(OpCost); err != nil {
		return err
	}
	switch {
	case from == to && oldbase == newbase:
	case from == to:
		from.apply(change{names: []string{oldbase, newbase}, nodes: []*node{nil, n}})
	default:
		to.apply(change{names: []string{newbase}, nodes: []*node{n}})
		from.apply(change{names: []string{oldbase}, nodes: []*node{nil}, local: true})
	}
	return nil
}

func (fs *FS) ReuseForWrite(oldname, newname string, _ vfs.DiskWriteCategory) (vfs.File, error) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if err := fs.rename(oldname, newname); err != nil {
		return nil, err
	}
	return fs.open(newname, true)
}

func (fs *FS) MkdirAll(name string, _ os.FileMode) error {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if fs.crashed {
		return ErrCrashed
	}
	n := fs.root
	for _, p := range parts(name) {
		child := n.children[p]
		if child == nil {
			if err := fs.spend(OpCost); err != nil {
				return err
			}
			child = newDir()
			child.ordered = n.ordered || fs.ordered != "" && p == fs.ordered
			n.apply(change{names: []string{p}, nodes: []*node{child}})
		}
		if !child.dir {
			return &os.PathError{Op: "mkdir", Path: name, Err: errNotDir}
		}
		n = child
	}
	return nil
}

// Lock excludes other holders of the same name on this file system only: a
// crash ends all locks.
func (fs *FS) Lock(name string) (io.Closer, error) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	key := path.Clean("/" + name)
	if fs.locks[key] {
		return nil, &os.PathError{Op: "lock", Path: name, Err: errLocked}
	}
	f, err := fs.create(name)
	if err != nil {
		return nil, err
	}
	fs.locks[key] = true
	return &lock{fs, key, f}, nil
}

type lock struct {
	fs  *FS
	key string
	f   vfs.File
}

func (l *lock) Close() error {
	if err := l.f.Close(); err != nil {
		return err
	}
	l.fs.mu.Lock()
	defer l.fs.mu.Unlock()
	delete(l.fs.locks, l.key)
	return nil
}

func (fs *FS) List(name string) ([]string, error) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	n, err := fs.find("list", name)
	if err != nil {
		return nil, err
	}
	if !n.dir {
		return nil, &os.PathError{Op: "list", Path: name, Err: errNotDir}
	}
	names := make([]string, 0, len(n.children))
	for child := range n.children {
		names = append(names, child)
	}
	return names, nil
}

func (fs *FS) Stat(name string) (vfs.FileInfo, error) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	n, err := fs.find("stat", name)
	if err != nil {
		return nil, err
	}
	return n.info(path.Base(name)), nil
}

func (*FS) PathBase(name string) string    { return path.Base(name) }
func (*FS) PathJoin(elem ...string) string { return path.Join(elem...) }
func (*FS) PathDir(name string) string     { return path.Dir(name) }
func (*FS) Unwrap() vfs.FS                 { return nil }
func (*FS) GetDiskUsage(string) (vfs.DiskUsage, error) {
	return vfs.DiskUsage{}, vfs.ErrUnsupported
}
