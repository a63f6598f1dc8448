package shelf

import (
	"errors"
	"io/fs"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// The errors of Create, Open, Recover, ReplaceSpindle and AddSpindle. All are for an operator, and their
// text says what to do; calls return *datanode.Error.
var (
	// ErrNoNode: the directory has no data node. Create one, or name another.
	ErrNoNode = errors.New("no data node")
	// ErrExists: Create was given a directory that is not empty.
	ErrExists = errors.New("directory is in use")
	// ErrForeign: the directory belongs to another program or another pool.
	ErrForeign = errors.New("not this pool's data node")
	// ErrNewer: a newer program made the node. Run that one.
	ErrNewer = errors.New("made by a newer program")
	// ErrDamaged: the node's superblock is damaged.
	ErrDamaged = errors.New("superblock of the data node is damaged")
	// ErrLocked: another process has the node open. Stop it, or leave it be.
	ErrLocked = errors.New("data node is in use")
	// ErrTooLarge: the file system has not the room that the sizes promise.
	ErrTooLarge = errors.New("sizes exceed the file system")
	// ErrNeedsRecover: index or registry is missing or old. Run plinth recover.
	ErrNeedsRecover = errors.New("index or registry is missing or old")
	// ErrMember: the node is one of several of its pool. plinth datanode serves it.
	ErrMember = errors.New("the data node is one of several of its pool, which plinth datanode and plinth host serve")
	// ErrLogMissing: the log is missing, and with it acknowledged writes. Put it
	// back; what is lost can only be accepted knowingly.
	ErrLogMissing = errors.New("log is missing")
	// ErrNotReplaced: ReplaceSpindle was given something else than a new drive in place
	// of one that does not serve. Nothing is changed.
	ErrNotReplaced = errors.New("the spindle is not replaced")
	// ErrNotAdded: AddSpindle was given something else than a new drive, or there is no
	// room. Nothing is changed.
	ErrNotAdded = errors.New("the spindle is not added")
)

func isNotExist(err error) bool { return errors.Is(err, fs.ErrNotExist) }

// exists reports whether the file system has a file or directory of that path.
func exists(fs vfs.FS, path string) (bool, error) {
	_, err := fs.Stat(path)
	if isNotExist(err) {
		return false, nil
	}
	return err == nil, err
}
