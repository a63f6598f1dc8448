// Package standalone runs everything on one machine: a data node and a host
// agent in one process, in one directory.
//
// The directory holds host/ (disposable), datanode/, and by default the root
// key, root.key. [Open] makes what is not there yet; interrupted while it
// does, it goes on the next time. The lock of the data node's directory stands
// for the lease of every disk: two processes cannot serve one directory.
package standalone

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/cockroachdb/pebble/v2/vfs"

	"plinth/datanode/shelf"
	"plinth/internal/host"
	"plinth/internal/keyring"
	"plinth/internal/stripe"
	"plinth/internal/vfsx"
)

// Options say where and how. Dir is needed; the rest of the zero value is right.
type Options struct {
	Dir string
	// FS holds everything but the root key. Default: the operating system's.
	FS vfs.FS
	// Keys say where the root key is; its file by default is root.key in Dir.
	Keys host.RootSource
	// Geometry of a new pool; default: by the number of spindles. An existing pool
	// must have it, if it is given.
	Geometry stripe.Geometry
	// Node says how a new data node is made; PoolID, FS, Logger and Width are
	// filled in.
	Node shelf.Options
	Host host.Options
	// Logger is node's and host's; default: slog.Default().
	Logger *slog.Logger
}

// Site is a running data node with its agent.
type Site struct {
	Node *shelf.Shelf
	Host *host.Host
	// NewRootKey is the root key's file, if this Open made it.
	NewRootKey string
}

// Open opens the pool in the directory, or makes one. Errors are for an
// operator, those of shelf, keyring and host.
func Open(ctx context.Context, opts Options) (*Site, error) {
	return run(ctx, opts, shelf.Open, true)
}

// Recover opens a pool whose data node's index or registry is lost. When it
// returns, every disk has stated what it needs and the index is complete, unless
// a disk does not open: the error is then nil and the host's status says so.
func Recover(ctx context.Context, opts Options) (*Site, error) {
	s, err := run(ctx, opts, shelf.Recover, false)
	if err != nil {
		return nil, err
	}
	if err := s.Host.Sweep(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("state what the disks need: %w", err), s.Close())
	}
	return s, nil
}

type opener = func(ctx context.Context, dir string, opts shelf.Options) (*shelf.Shelf, error)

func run(ctx context.Context, opts Options, open opener, create bool) (*Site, error) {
	if opts.FS == nil {
		opts.FS = vfs.Default
	}
	if opts.Logger == nil {
		opts.Logger = slog.Default()
	}
	if opts.Keys.File == "" {
		opts.Keys.File = filepath.Join(opts.Dir, "root.key")
	}
	s := &Site{}
	if err := s.open(ctx, &opts, open, create); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func (s *Site) open(ctx context.Context, o *Options, open opener, create bool) error {
	dir := o.FS.PathJoin(o.Dir, "datanode")
	o.Node.FS, o.Node.Logger = o.FS, o.Logger
	id, err := shelf.PoolID(o.FS, dir)
	if errors.Is(err, shelf.ErrNoNode) && create {
		id, err = s.createNode(o, dir)
	}
	if err != nil {
		return err
	}
	o.Node.PoolID, o.Node.WidthOf = id, stripe.WidthOf
	if s.Node, err = open(ctx, dir, o.Node); err != nil {
		return err
	}
	root, err := host.FindPool(ctx, s.Node, &o.Keys, host.NewPool{Geometry: o.Geometry})
	if s.NewRootKey = o.Keys.Made; err != nil {
		return err
	}
	o.Host.FS, o.Host.Logger, o.Host.Geometry = o.FS, o.Logger, o.Geometry
	o.Host.Dir = o.FS.PathJoin(o.Dir, "host")
	o.Host.Sole, o.Host.MayReply = true, s.Node.Held
	o.Host.AcceptLostLog = o.Node.AcceptLostLog
	if err := o.FS.MkdirAll(o.Host.Dir, 0o700); err != nil {
		return err
	}
	if s.Host, err = host.Open(ctx, s.Node, root, o.Host); err != nil {
		return err
	}
	s.Node.SetLayoutVersion(s.Host.LayoutVersion())
	return nil
}

// createNode makes a data node for a new pool. The root key comes first: it is
// the one thing that must not be wanting.
func (s *Site) createNode(o *Options, dir string) ([16]byte, error) {
	g, err := stripe.ChooseGeometry(o.Geometry, o.spindles())
	if err != nil {
		return [16]byte{}, err
	}
	node := o.Node
	node.PoolID, node.Width = keyring.NewPoolID(), g.Width()
	if err := node.Validate(); err != nil {
		return [16]byte{}, err
	}
	if _, err := shelf.PoolID(o.FS, o.Dir); !errors.Is(err, shelf.ErrNoNode) {
		return [16]byte{}, errors.Join(fmt.Errorf("%s is itself a data node's directory: name the one above it", o.Dir), err)
	}
	for _, d := range []string{o.Dir, dir} {
		if err := vfsx.MakeDir(o.FS, d, 0o700); err != nil {
			return [16]byte{}, err
		}
	}
	if o.FS != vfs.Default { // or else it was made just now, unless it is elsewhere
		if err := os.MkdirAll(filepath.Dir(o.Keys.File), 0o700); err != nil {
			return [16]byte{}, err
		}
	}
	if _, err := o.Keys.New(); err != nil {
		return [16]byte{}, err
	}
	return node.PoolID, shelf.Create(dir, node)
}

func (o *Options) spindles() int {
	if o.Node.Spindles == 0 {
		return shelf.SpindlesDefault
	}
	return o.Node.Spindles
}

// Close stops the agent, then the node. It may be called again.
func (s *Site) Close() error {
	var errs []error
	if s.Host != nil {
		errs = append(errs, s.Host.Close())
	}
	if s.Node != nil {
		errs = append(errs, s.Node.Close())
	}
	return errors.Join(errs...)
}
