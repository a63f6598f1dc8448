package rack

import (
	"context"
	"errors"
	"fmt"

	"plinth/datanode"
	"plinth/internal/id"
	"plinth/internal/stripe"
)

const layoutsKey = datanode.LayoutsKey

// Tell has a node that knows nothing of its pool know what it is there, in its own
// registry. It may be repeated. ErrConflict if the node knows something else.
func (m *Membership) Tell(ctx context.Context, n id.Node, own datanode.RegistryNode, layouts *stripe.Layouts) error {
	txn := &datanode.RegistryTxn{
		Compares: []datanode.Compare{{Key: datanode.MemberKey}},
		Puts:     []datanode.Put{{Key: datanode.MemberKey, Value: m.Marshal(n)}},
	}
	if m.Registry == nil || *m.Registry != n { // or else they are put with the pool
		txn.Puts = append(txn.Puts, datanode.Put{Key: layoutsKey, Value: layouts.Marshal()})
	}
	_, err := own.RegistryCommit(ctx, txn)
	if !errors.Is(err, datanode.ErrConflict) {
		return err
	}
	number, has, err := ReadMember(ctx, own)
	if err == nil && (has == nil || number != n || !has.Same(m)) {
		err = datanode.Errorf(datanode.ErrConflict, "data node %s is being made part of another pool's nodes", m.Nodes[n].Name)
	}
	return err
}

// ReadMember reads what a node's own registry says that it is: nil for none of several.
func ReadMember(ctx context.Context, own datanode.RegistryNode) (id.Node, *Membership, error) {
	reply, err := own.RegistryGet(ctx, &datanode.RegistryGetRequest{Key: datanode.MemberKey})
	if errors.Is(err, datanode.ErrNotFound) {
		return 0, nil, nil
	}
	if err != nil {
		return 0, nil, err
	}
	return ParseMember(reply.Value)
}

// Part is what one node of several is to its pool.
type Part struct {
	Name    string // of its certificate
	Layouts *stripe.Layouts
	row     NodeRow
}

// ReadPart reads a node's part in its own registry. Layouts has no lists until the pool
// is made.
func ReadPart(ctx context.Context, own datanode.RegistryNode) (*Part, error) {
	number, m, err := ReadMember(ctx, own)
	if err != nil {
		return nil, err
	}
	if m == nil {
		return nil, datanode.Errorf(datanode.ErrNotFound, "the data node is not one of several")
	}
	row := m.Nodes[number]
	p := &Part{Name: row.Name, row: row}
	reply, err := own.RegistryGet(ctx, &datanode.RegistryGetRequest{Key: layoutsKey})
	switch {
	case errors.Is(err, datanode.ErrNotFound):
		p.Layouts = &stripe.Layouts{Geometry: m.Geometry}
	case err != nil:
		return nil, err
	default:
		if p.Layouts, err = stripe.UnmarshalLayouts(reply.Value); err != nil {
			return nil, fmt.Errorf("the data node's layouts: %w", err)
		}
	}
	return p, nil
}

// Keeps tells whether the node has a segment in its index of which a fragment lies on that
// spindle of the node. What lies where its layout was another one once is garbage.
func (p *Part) Keeps(s id.Segment, index uint8, on id.Spindle) bool {
	if p.Layouts.Kind(s.Layout()) == stripe.Free {
		return false
	}
	list, own := p.Layouts.Lists[s.Layout()], p.row.Numbers()
	if n, ok := own.Global(on); !ok || int(index) >= len(list) || list[index] != n {
		return false
	}
	return own.Has(list[0])
}
