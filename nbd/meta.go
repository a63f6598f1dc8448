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
	contextDirty // of exports with a bitmap
)

// contexts are what a client has selected, in the order of its replies, each
// once.
type contexts []metaContext

// contextName is a metadata context that an export has.
type contextName struct {
	id   metaContext
	name string
	// wildcards are the queries that find it besides its name.
	wildcards []string
}

// metaContexts are those that the export has, in the order of replies.
func (e ExportInfo) metaContexts() []contextName {
	all := []contextName{
		{contextAllocation, wire.ContextAllocation, []string{"base:"}},
		{contextDepth, wire.ContextDepth, []string{"qemu:"}},
	}
	if e.Bitmap != "" && len(e.Bitmap) <= BitmapBytesMax {
		all = append(all, contextName{contextDirty, wire.ContextDirtyPrefix + e.Bitmap, []string{"qemu:", wire.ContextDirtyPrefix}})
	}
	return all
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

// find returns those of an export's contexts that the queries ask for. Listing
// knows wildcards, and no query at all asks for everything.
func (q metaRequest) find(of []contextName, list bool) (found []contextName) {
	for _, c := range of {
		wild := func(query string) bool { return slices.Contains(c.wildcards, query) }
		if slices.Contains(q.queries, c.name) || list && (len(q.queries) == 0 || slices.ContainsFunc(q.queries, wild)) {
			found = append(found, c)
		}
	}
	return found
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
	info, err := h.describe(ctx, q.export)
	if err != nil {
		h.fail(opt, q.export, err)
		return
	}
	var selected contexts
	for _, c := range q.find(info.metaContexts(), list) {
		selected = append(selected, c.id)
		if list {
			c.id = 0 // reserved there
		}
		h.reply(opt, wire.RepMetaContext, append(binary.BigEndian.AppendUint32(nil, uint32(c.id)), c.name...))
	}
	if !list {
		h.contexts, h.contextsOf = selected, info.Name
	}
	h.reply(opt, wire.RepAck, nil)
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
