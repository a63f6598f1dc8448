package nbd

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"

	"plinth/nbd/internal/wire"
)

// metaContext is a metadata context's number on the wire.
type metaContext uint32

const (
	contextAllocation metaContext = 1 + iota
	contextDepth
)

// contexts are what a client has selected, in the order of its replies, each
// once.
type contexts []metaContext

// metaContexts are all there are.
var metaContexts = []struct {
	id        metaContext
	name      string
	namespace string // with its colon: the query that finds all of it
}{
	{contextAllocation, wire.ContextAllocation, "base:"},
	{contextDepth, wire.ContextDepth, "qemu:"},
}

// status is an extent's status in a context.
func (c metaContext) status(e Extent) uint32 {
	var s uint32
	switch c {
	case contextAllocation:
		if e.Hole {
			s |= wire.StateHole
		}
		if e.Zero {
			s |= wire.StateZero
		}
	case contextDepth: // 0: not allocated at all; 1: in the export itself
		if !e.Hole {
			s = 1
		}
	}
	return s
}

// metaRequest is the data of LIST_META_CONTEXT and SET_META_CONTEXT.
type metaRequest struct {
	export  string
	queries []string
}

// parseMetaRequest reads: name length 4, name, number of queries 4, and for
// each its length 4 and text.
func parseMetaRequest(data []byte) (q metaRequest, err error) {
	name, rest, err := cutString(data)
	if err != nil {
		return q, err
	}
	if len(rest) < 4 {
		return q, fmt.Errorf("%d bytes of data after the name, need 4", len(rest))
	}
	q.export = name
	count := binary.BigEndian.Uint32(rest)
	rest = rest[4:]
	if uint64(count) > uint64(len(rest)/4) {
		return q, fmt.Errorf("%d queries in %d bytes", count, len(rest))
	}
	for range count {
		var query string
		if query, rest, err = cutString(rest); err != nil {
			return q, err
		}
		q.queries = append(q.queries, query)
	}
	if len(rest) > 0 {
		return q, fmt.Errorf("%d bytes behind the last query", len(rest))
	}
	return q, nil
}

// cutString takes a string with its length of 4 bytes off data.
func cutString(data []byte) (s string, rest []byte, err error) {
	if len(data) < 4 {
		return "", nil, fmt.Errorf("%d bytes of data, need 4", len(data))
	}
	n := binary.BigEndian.Uint32(data)
	if uint64(n) > uint64(len(data)-4) {
		return "", nil, fmt.Errorf("string of %d bytes in %d bytes of data", n, len(data)-4)
	}
	if err := checkName(data[4 : 4+n]); err != nil {
		return "", nil, err
	}
	return string(data[4 : 4+n]), data[4+n:], nil
}

// find returns the contexts that the queries ask for. Listing knows wildcards,
// and no query at all asks for everything.
func (q metaRequest) find(list bool) contexts {
	var out contexts
	for _, c := range metaContexts {
		if slices.Contains(q.queries, c.name) || list && (len(q.queries) == 0 || slices.Contains(q.queries, c.namespace)) {
			out = append(out, c.id)
		}
	}
	return out
}

// meta answers LIST_META_CONTEXT and SET_META_CONTEXT. A SET replaces what was
// selected before, by failing too.
func (h *handshake) meta(ctx context.Context, opt uint32, data []byte) {
	list := opt == wire.OptListMetaContext
	if !list {
		h.contexts = nil
	}
	if h.form == formSimple {
		h.reply(opt, wire.RepErrInvalid, []byte("structured replies come first"))
		return
	}
	q, err := parseMetaRequest(data)
	if err != nil {
		h.reply(opt, wire.RepErrInvalid, []byte(err.Error()))
		return
	}
	info, err := h.server.exports.Describe(ctx, q.export)
	if err == nil && !h.allowed(info.Name) {
		err = errNotAllowed
	}
	if err != nil {
		h.fail(opt, q.export, err)
		return
	}
	found := q.find(list)
	for _, id := range found {
		c := metaContexts[id-1]
		if list {
			id = 0 // reserved there
		}
		h.reply(opt, wire.RepMetaContext, append(binary.BigEndian.AppendUint32(nil, uint32(id)), c.name...))
	}
	if !list {
		h.contexts, h.contextsOf = found, info.Name
	}
	h.reply(opt, wire.RepAck, nil)
}

// extentsMax bounds the extents of one answer, statusBytes is what it is
// charged for: the extents and their descriptors in every context.
const (
	extentsMax  = 4 << 10
	statusBytes = extentsMax * (24 + 2*16)
)

// collect asks the device for the extents of a BLOCK_STATUS. The device may say
// less than was asked, neighbours that are alike become one.
func (t *transmission) collect(r *request) error {
	left := int64(r.Length)
	if t.extents == nil {
		r.extents = []Extent{{N: left}}
		return nil
	}
	extents := make([]Extent, 0, 16)
	err := t.extents.Extents(r.ctx, int64(r.Offset), left, func(e Extent) bool {
		if e.N = min(e.N, left); e.N <= 0 {
			return left > 0
		}
		switch k := len(extents); {
		case k > 0 && extents[k-1].Hole == e.Hole && extents[k-1].Zero == e.Zero:
			extents[k-1].N += e.N
		case k > 0 && r.has(wire.CmdFlagReqOne), k == extentsMax:
			return false
		default:
			extents = append(extents, e)
		}
		left -= e.N
		return left > 0
	})
	if err == nil && len(extents) == 0 {
		err = fmt.Errorf("no extent at %d", r.Offset)
	}
	r.extents = extents
	return err
}

// filter reads the payload of a BLOCK_STATUS: effect length 8, and the numbers
// of the contexts wanted, 4 bytes each. It judges it and the range. An error is
// the connection's.
func (t *transmission) filter(h *wire.Request) (wanted contexts, errno Errno, err error) {
	var b [8 + 4*8]byte
	n := int(h.Length)
	if n < 8+4 || n > len(b) || n%4 != 0 || n > 8+4*len(t.limits.contexts) {
		return nil, EINVAL, t.skip(n)
	}
	if err := t.readFull(b[:n]); err != nil {
		return nil, 0, err
	}
	h.Length = binary.BigEndian.Uint64(b[:])
	for p := b[8:n]; len(p) > 0; p = p[4:] {
		c := metaContext(binary.BigEndian.Uint32(p))
		if slices.Contains(wanted, c) || !slices.Contains(t.limits.contexts, c) {
			return nil, EINVAL, nil
		}
		wanted = append(wanted, c)
	}
	t.grow(h)
	return wanted, checkRange(h, &t.limits), nil
}
