package client

import (
	"context"
	"encoding/binary"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	"plinth/nbd"
	"plinth/nbd/internal/wire"
)

// Form is how requests and replies look.
type Form int

// The forms, each with what the one before it cannot do.
const (
	Simple     Form = iota // no holes, no block status
	Structured             // lengths below 4 GiB
	Extended
)

// Status is what one metadata context says of a range, from its start on.
type Status struct {
	Context string
	Runs    []Run
}

// Run is a run of bytes of one status, whose bits the context defines.
type Run struct {
	N      uint64 // bytes
	Status uint64
}

// contextsMax bounds the contexts that are selected or listed.
const contextsMax = 64

// negotiateForm asks for the form wanted, then for lesser ones.
func (s *session) negotiateForm(want Form) error {
	for _, f := range []struct {
		form Form
		opt  uint32
	}{{Extended, wire.OptExtendedHeaders}, {Structured, wire.OptStructuredReply}} {
		if f.form > want {
			continue
		}
		err := s.option(f.opt, nil, func(typ uint32, _ []byte) error {
			return fmt.Errorf("%w: reply type %#x", ErrProtocol, typ)
		})
		if err == nil {
			s.form = f.form
			return nil
		}
		if !refused(err) {
			return err
		}
	}
	return nil
}

// selectContexts asks for contexts; those that the server has not are left out.
func (s *session) selectContexts(export string, names []string) error {
	s.contexts = map[uint32]string{}
	if s.form == Simple || len(names) == 0 {
		return nil
	}
	err := s.metaContexts(wire.OptSetMetaContext, export, names, func(id uint32, name string) {
		s.contexts[id] = name
	})
	if refused(err) {
		err = nil
	}
	return err
}

func (s *session) metaContexts(opt uint32, export string, queries []string, each func(uint32, string)) error {
	data := binary.BigEndian.AppendUint32(nil, uint32(len(export)))
	data = binary.BigEndian.AppendUint32(append(data, export...), uint32(len(queries)))
	for _, q := range queries {
		data = append(binary.BigEndian.AppendUint32(data, uint32(len(q))), q...)
	}
	n := 0
	return s.option(opt, data, func(typ uint32, payload []byte) error {
		if n++; typ != wire.RepMetaContext || len(payload) < 5 || n > contextsMax {
			return fmt.Errorf("%w: reply type %#x of %d bytes", ErrProtocol, typ, len(payload))
		}
		each(binary.BigEndian.Uint32(payload), string(payload[4:]))
		return nil
	})
}

// Form returns the form in use.
func (c *Client) Form() Form { return c.info.Form }

// BlockStatus returns what the selected contexts say of [off, off+n), or of a
// part of it from off on. one asks for a single run of each. only, if there are
// any, limits the answer to some contexts; it takes extended headers.
func (c *Client) BlockStatus(ctx context.Context, off, n int64, one bool, only ...string) ([]Status, error) {
	var out []Status
	q := question{cmd: wire.CmdBlockStatus, off: off, n: n, status: &out}
	if one {
		q.flags = wire.CmdFlagReqOne
	}
	if len(c.contexts) == 0 || len(only) > 0 && c.info.Flags&wire.FlagBlockStatusPayload == 0 {
		return nil, fmt.Errorf("block status: %w", ErrUnsupported)
	}
	if c.info.Form != Extended && n > math.MaxUint32 {
		q.n = math.MaxUint32
	}
	if len(only) > 0 {
		q.effect = n
		q.write = binary.BigEndian.AppendUint64(nil, uint64(n))
		for _, name := range only {
			id, err := c.context(name)
			if err != nil {
				return nil, err
			}
			q.write = binary.BigEndian.AppendUint32(q.write, id)
		}
		q.n = int64(len(q.write))
	}
	if err := c.call(ctx, q); err != nil {
		return nil, err
	}
	return out, nil
}

func (c *Client) context(name string) (uint32, error) {
	for id, have := range c.contexts {
		if have == name {
			return id, nil
		}
	}
	return 0, fmt.Errorf("block status of %q: %w", name, ErrUnsupported)
}

// Extents is nbd.Extenter by the context base:allocation. A server or a form
// without it has one extent that is data.
func (c *Client) Extents(ctx context.Context, off, n int64, each func(nbd.Extent) bool) error {
	if _, err := c.context(wire.ContextAllocation); err != nil {
		each(nbd.Extent{N: n})
		return nil
	}
	return c.statuses(ctx, off, n, wire.ContextAllocation, func(n int64, status uint64) bool {
		return each(nbd.Extent{N: n, Hole: status&uint64(wire.StateHole) != 0, Zero: status&uint64(wire.StateZero) != 0})
	})
}

// statuses calls each for the runs of one selected context that cover
// [off, off+n).
func (c *Client) statuses(ctx context.Context, off, n int64, name string, each func(n int64, status uint64) bool) error {
	for n > 0 {
		statuses, err := c.BlockStatus(ctx, off, n, false)
		if err != nil {
			return err
		}
		i := slices.IndexFunc(statuses, func(s Status) bool { return s.Context == name })
		if i < 0 {
			return fmt.Errorf("%w: no status in context %q", ErrProtocol, name)
		}
		for _, r := range statuses[i].Runs {
			k := int64(min(r.N, uint64(max(n, 0))))
			if k == 0 || !each(k, r.Status) {
				return nil
			}
			off, n = off+k, n-k
		}
	}
	return nil
}

// Bitmap is nbd.Changer's: the name of the first dirty bitmap among the selected
// contexts.
func (c *Client) Bitmap() string {
	names := slices.Sorted(maps.Values(c.contexts))
	i := slices.IndexFunc(names, func(name string) bool { return strings.HasPrefix(name, wire.ContextDirtyPrefix) })
	if i < 0 {
		return ""
	}
	return strings.TrimPrefix(names[i], wire.ContextDirtyPrefix)
}

// Changes is nbd.Changer's. Without a bitmap it fails with ErrUnsupported.
func (c *Client) Changes(ctx context.Context, off, n int64, each func(n int64, dirty bool) bool) error {
	name := wire.ContextDirtyPrefix + c.Bitmap()
	if _, err := c.context(name); err != nil {
		return err
	}
	return c.statuses(ctx, off, n, name, func(n int64, status uint64) bool {
		return each(n, status&uint64(wire.StateDirty) != 0)
	})
}

// Prefetch asks the server to make reads of the range fast.
func (c *Client) Prefetch(ctx context.Context, off, n int64) error {
	if c.info.Flags&wire.FlagSendCache == 0 {
		return fmt.Errorf("cache: %w", ErrUnsupported)
	}
	return c.ranges(ctx, wire.CmdCache, 0, off, n)
}

// ZeroFast is Zero that fails with nbd.ENOTSUP where it would not be faster
// than writing.
func (c *Client) ZeroFast(ctx context.Context, off, n int64, mayTrim bool) error {
	if c.info.Flags&wire.FlagSendFastZero == 0 {
		return fmt.Errorf("fast zero: %w", ErrUnsupported)
	}
	flags := wire.CmdFlagFastZero
	if !mayTrim {
		flags |= wire.CmdFlagNoHole
	}
	return c.ranges(ctx, wire.CmdWriteZeroes, flags, off, n)
}
