package host

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"plinth/datanode"
	"plinth/internal/keyring"
	"plinth/internal/stripe"
)

// RootSource says where a pool's root key is.
type RootSource struct {
	// File has it, and is made for a new pool if it is not there.
	File string
	// Passphrase, if not empty, takes the place of the file.
	Passphrase []byte
	// Made is File once New has made it.
	Made string
}

// New returns the root key of a new pool: the passphrase's, the file's, or a new
// one in that file.
func (s *RootSource) New() (*keyring.Root, error) {
	if len(s.Passphrase) > 0 {
		return keyring.PassphraseRoot(s.Passphrase, keyring.NewKDFParams())
	}
	root, err := keyring.LoadRootFile(s.File)
	if !errors.Is(err, fs.ErrNotExist) {
		return root, err
	}
	s.Made = s.File
	return keyring.CreateRootFile(s.File)
}

// load returns the root key of a pool that is there.
func (s *RootSource) load(h keyring.PoolHeader) (*keyring.Root, error) {
	if h.Root == keyring.RootPassphrase {
		if len(s.Passphrase) == 0 {
			return nil, errors.New("the pool was made with a passphrase: give it in a file, with --passphrase-file")
		}
		return keyring.PassphraseRoot(s.Passphrase, h.KDF)
	}
	root, err := keyring.LoadRootFile(s.File)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: the pool cannot be read without its root key: put the file back, or say where it is with --root-key", err)
	}
	return root, err
}

// NewPool says how a pool is made.
type NewPool struct {
	// Geometry is that of its stripes over the spindles of one node; zero: what their
	// number allows.
	Geometry stripe.Geometry
	// Layouts, if not nil, are of several nodes, and Rows what the registry has of those.
	Layouts *stripe.Layouts
	Rows    []datanode.Put
}

// FindPool returns the root key of a node's pool. Where the registry has no pool
// yet it makes one. Errors: those of the root key's file, of the node,
// and ErrConflict where somebody else makes it at the same time.
func FindPool(ctx context.Context, node datanode.Node, keys *RootSource, n NewPool) (*keyring.Root, error) {
	header, err := PoolHeader(ctx, node)
	if err == nil {
		return keys.load(header)
	}
	if !errors.Is(err, ErrNoPool) {
		return nil, err
	}
	st, err := node.Status(ctx)
	if err != nil {
		return nil, err
	}
	if n.Layouts == nil {
		g, err := stripe.ChooseGeometry(n.Geometry, len(st.Spindles))
		if err == nil {
			n.Layouts, err = oneNode(g, len(st.Spindles))
		}
		if err != nil {
			return nil, err
		}
	}
	root, err := keys.New()
	if err != nil {
		return nil, err
	}
	bytes, _ := keyring.CreatePool(root, st.PoolID)
	return root, FormatLayouts(ctx, node, bytes, n.Layouts, n.Rows...)
}
