package host

import (
	"context"
	"fmt"

	"plinth/datanode"
	"plinth/internal/id"
	"plinth/internal/keyring"
	"plinth/internal/stripe"
)

// Format writes a new pool into an empty registry: its header (of
// keyring.CreatePool) and the layouts of its stripes over the node's spindles.
// ErrExists if there is one.
func Format(ctx context.Context, node datanode.RegistryNode, header []byte, g stripe.Geometry, spindles int) error {
	layouts, err := oneNode(g, spindles)
	if err != nil {
		return err
	}
	return FormatLayouts(ctx, node, header, layouts)
}

// oneNode makes the layouts of a pool of one node.
func oneNode(g stripe.Geometry, spindles int) (*stripe.Layouts, error) {
	all := make([]id.Spindle, spindles)
	for i := range all {
		all[i] = id.Spindle(i)
	}
	return stripe.MakeLayouts(g, all, 1)
}

// FormatLayouts is Format for layouts that are made already: over several nodes, of
// which the registry gets rows, too.
func FormatLayouts(ctx context.Context, node datanode.RegistryNode, header []byte, layouts *stripe.Layouts, rows ...datanode.Put) error {
	_, err := node.RegistryCommit(ctx, &datanode.RegistryTxn{
		Compares: []datanode.Compare{{Key: keyPool}, {Key: keyLayouts}},
		Puts:     append(rows, datanode.Put{Key: keyPool, Value: header}, datanode.Put{Key: keyLayouts, Value: layouts.Marshal()}),
	})
	if err != nil {
		return fmt.Errorf("create the pool: %w", err)
	}
	return nil
}

// PoolHeader returns what the registry says of the pool without any key: it
// tells which root key to ask for. ErrNoPool if there is none.
func PoolHeader(ctx context.Context, node datanode.RegistryNode) (keyring.PoolHeader, error) {
	value, _, err := catalog{node}.get(ctx, keyPool)
	if err != nil {
		return keyring.PoolHeader{}, err
	}
	if value == nil {
		return keyring.PoolHeader{}, ErrNoPool
	}
	return keyring.ParsePoolHeader(value)
}

// openPool reads and unwraps what a session needs of the pool.
func (c catalog) openPool(ctx context.Context, root *keyring.Root) (*keyring.Pool, *stripe.Layouts, error) {
	header, _, err := c.get(ctx, keyPool)
	if err != nil {
		return nil, nil, err
	}
	if header == nil {
		return nil, nil, ErrNoPool
	}
	pool, err := keyring.OpenPool(header, root)
	if err != nil {
		return nil, nil, err
	}
	layouts, err := c.layouts(ctx)
	return pool, layouts, err
}

func (c catalog) layouts(ctx context.Context) (*stripe.Layouts, error) {
	value, _, err := c.get(ctx, keyLayouts)
	if err != nil {
		return nil, err
	}
	return stripe.UnmarshalLayouts(value)
}

// Layouts returns the pool's stripe layouts, nil without a pool.
func Layouts(ctx context.Context, node datanode.RegistryNode) (*stripe.Layouts, error) {
	c := catalog{node}
	header, _, err := c.get(ctx, keyPool)
	if err != nil || header == nil {
		return nil, err
	}
	return c.layouts(ctx)
}

// LayoutVersion returns the version of the pool's stripe layouts, 0 without a
// pool: a data node that is opened without a host refuses writes under older ones.
func LayoutVersion(ctx context.Context, node datanode.RegistryNode) (uint64, error) {
	layouts, err := Layouts(ctx, node)
	if err != nil || layouts == nil {
		return 0, err
	}
	return layouts.Version, nil
}

// Geometry returns the form of the pool's stripes.
func (h *Host) Geometry() stripe.Geometry { return h.layouts().Geometry }
