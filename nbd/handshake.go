package nbd

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"

	"github.com/pojntfx/go-nbd/pkg/protocol"

	"plinth/nbd/internal/wire"
)

const (
	// optionsMax bounds the options of a handshake. Clients that list a server
	// ask INFO for every export.
	optionsMax = 1 << 14
	// optionBytesMax bounds an option's data: a string and some numbers. What
	// is longer is read past and answered TOO_BIG.
	optionBytesMax = 4 * wire.StringBytesMax
)

// errAborted ends a handshake that the client gave up in good form.
var errAborted = errors.New("client aborted")

// errNotAllowed is what Options.Allow refuses.
var errNotAllowed = errors.New("not allowed")

// handshake is the negotiation of one connection: fixed newstyle, up to the
// reply that enters transmission.
type handshake struct {
	server *Server
	conn   *conn
	peer   Peer
	r      *bufio.Reader
	w      *bufio.Writer

	noZeroes   bool
	form       form
	contexts   contexts
	contextsOf string // the canonical name of the export they were selected for
}

// session is what a handshake leads to.
type session struct {
	export  Export
	info    ExportInfo // as the client was told
	shared  *exportState
	release func()

	form     form
	contexts contexts

	// other is the protocol that the client has gone over to; there is no export then.
	other func(context.Context, Peer, net.Conn)
}

// run negotiates until the client has chosen an export, or another protocol. On error nothing is
// left open. Blocking is bounded by the connection's deadline.
func (h *handshake) run(ctx context.Context) (*session, error) {
	h.w.Write(encode(protocol.NegotiationNewstyleHeader{
		OldstyleMagic:  wire.MagicInit,
		OptionMagic:    wire.MagicOption,
		HandshakeFlags: wire.HandshakeFixedNewstyle | wire.HandshakeNoZeroes,
	}))
	if err := h.w.Flush(); err != nil {
		return nil, fmt.Errorf("greet: %w", err)
	}
	var b [4]byte
	if _, err := io.ReadFull(h.r, b[:]); err != nil {
		return nil, fmt.Errorf("read client flags: %w", err)
	}
	flags := binary.BigEndian.Uint32(b[:])
	if flags&^(wire.ClientFixedNewstyle|wire.ClientNoZeroes) != 0 {
		return nil, fmt.Errorf("unknown client flags %#x", flags)
	}
	h.noZeroes = flags&wire.ClientNoZeroes != 0
	for range optionsMax {
		s, err := h.next(ctx)
		if s != nil || err != nil {
			return s, err
		}
	}
	return nil, fmt.Errorf("more than %d options", optionsMax)
}

// next answers one option. A nil session without error means that another
// option may follow.
func (h *handshake) next(ctx context.Context) (*session, error) {
	var b [wire.OptionHeaderBytes]byte
	if _, err := io.ReadFull(h.r, b[:]); err != nil {
		return nil, fmt.Errorf("read option: %w", err)
	}
	if magic := binary.BigEndian.Uint64(b[:]); magic != wire.MagicOption {
		return nil, fmt.Errorf("option magic %#x", magic)
	}
	opt, n := binary.BigEndian.Uint32(b[8:]), binary.BigEndian.Uint32(b[12:])
	data, err := h.data(n)
	if err != nil {
		return nil, fmt.Errorf("read option %d: %w", opt, err)
	}
	s, err := h.option(ctx, opt, n, data)
	if err == nil {
		err = h.w.Flush()
	}
	if err != nil {
		if s != nil {
			s.release()
		}
		return nil, fmt.Errorf("option %d: %w", opt, err)
	}
	return s, nil
}

// data reads an option's n bytes. It returns nil for more than optionBytesMax,
// which are read past.
func (h *handshake) data(n uint32) ([]byte, error) {
	if n > optionBytesMax {
		_, err := io.CopyN(io.Discard, h.r, int64(n))
		return nil, err
	}
	data := make([]byte, n)
	_, err := io.ReadFull(h.r, data)
	return data, err
}

func (h *handshake) option(ctx context.Context, opt, n uint32, data []byte) (*session, error) {
	tooBig := n > optionBytesMax
	other := h.server.opts.Others[opt]
	switch {
	case opt == wire.OptAbort:
		h.reply(opt, wire.RepAck, nil)
		h.w.Flush() // the client need not wait for it
		return nil, errAborted
	case h.tlsMissing() && opt == wire.OptExportName:
		return nil, errors.New("EXPORT_NAME without TLS, which is required")
	case h.tlsMissing() && opt != wire.OptStartTLS:
		h.reply(opt, wire.RepErrTLSReqd, []byte("start TLS first"))
	case opt == wire.OptExportName:
		return h.exportName(ctx, data, tooBig)
	case h.server.stopping():
		h.reply(opt, wire.RepErrShutdown, []byte("server is shutting down"))
	case other == nil && !known(opt):
		h.reply(opt, wire.RepErrUnsup, []byte("unknown option"))
	case tooBig:
		h.reply(opt, wire.RepErrTooBig, fmt.Appendf(nil, "more than %d bytes of data", optionBytesMax))
	case other != nil && len(data) > 0:
		h.reply(opt, wire.RepErrInvalid, []byte("the option takes no data"))
	case other != nil:
		h.reply(opt, wire.RepAck, nil)
		return &session{other: other, release: func() {}}, nil
	case opt == wire.OptStartTLS:
		return nil, h.startTLS(ctx, data)
	case opt == wire.OptList:
		h.list(ctx, data)
	case opt == wire.OptStructuredReply || opt == wire.OptExtendedHeaders:
		h.setForm(opt, data)
	case opt == wire.OptListMetaContext || opt == wire.OptSetMetaContext:
		h.meta(ctx, opt, data)
	default:
		return h.info(ctx, opt, data), nil
	}
	return nil, nil
}

// tlsMissing reports that TLS must come before anything else.
func (h *handshake) tlsMissing() bool {
	return h.server.opts.TLSRequired && !h.peer.TLS && !h.peer.local()
}

func known(opt uint32) bool {
	switch opt {
	case wire.OptStartTLS, wire.OptList, wire.OptInfo, wire.OptGo, wire.OptStructuredReply, wire.OptExtendedHeaders,
		wire.OptListMetaContext, wire.OptSetMetaContext:
		return true
	}
	return false
}

// setForm answers STRUCTURED_REPLY and EXTENDED_HEADERS. The latter has no way
// back.
func (h *handshake) setForm(opt uint32, data []byte) {
	switch {
	case len(data) > 0:
		h.reply(opt, wire.RepErrInvalid, []byte("the option takes no data"))
		return
	case opt == wire.OptExtendedHeaders:
		h.form = formExtended
	case h.form == formExtended:
		h.reply(opt, wire.RepErrExtHeaderReqd, []byte("extended headers are negotiated"))
		return
	default:
		h.form = formStructured
	}
	h.reply(opt, wire.RepAck, nil)
}

// exportName answers EXPORT_NAME, which has no way to say no but to hang up.
func (h *handshake) exportName(ctx context.Context, data []byte, tooBig bool) (*session, error) {
	switch {
	case tooBig:
		return nil, fmt.Errorf("export name of more than %d bytes", optionBytesMax)
	case h.server.stopping():
		return nil, ErrShutdown
	case h.form == formExtended:
		return nil, errors.New("EXPORT_NAME with extended headers")
	}
	if err := checkName(data); err != nil {
		return nil, err
	}
	s, err := h.open(ctx, string(data))
	if err != nil {
		return nil, fmt.Errorf("open export %q: %w", data, err)
	}
	h.w.Write(exportNameReply(s.info, h.form, h.noZeroes))
	return s, nil
}

func (h *handshake) list(ctx context.Context, data []byte) {
	if len(data) > 0 {
		h.reply(wire.OptList, wire.RepErrInvalid, []byte("LIST takes no data"))
		return
	}
	exports, err := h.server.exports.List(ctx)
	if err != nil {
		h.fail(wire.OptList, "", err)
		return
	}
	allow := h.server.opts.Allow
	for _, e := range exports {
		if allow != nil && !allow(h.peer, e.Name) {
			continue
		}
		h.reply(wire.OptList, wire.RepServer, serverReply(e))
	}
	h.reply(wire.OptList, wire.RepAck, nil)
}

// info answers INFO and GO. Only a GO that succeeds returns a session.
func (h *handshake) info(ctx context.Context, opt uint32, data []byte) *session {
	q, err := parseInfoRequest(data)
	if err != nil {
		h.reply(opt, wire.RepErrInvalid, []byte(err.Error()))
		return nil
	}
	var s *session
	var info ExportInfo
	if opt == wire.OptGo {
		if s, err = h.open(ctx, q.name); err == nil {
			info = s.info
		}
	} else {
		info, err = h.describe(ctx, q.name)
	}
	if err != nil {
		h.fail(opt, q.name, err)
		return nil
	}
	for _, payload := range infoReplies(info, q, h.form, len(h.contexts) > 0 && h.contextsOf == info.Name) {
		h.reply(opt, wire.RepInfo, payload)
	}
	h.reply(opt, wire.RepAck, nil)
	return s
}

// describe describes an export that the client may use.
func (h *handshake) describe(ctx context.Context, name string) (ExportInfo, error) {
	info, err := h.server.exports.Describe(ctx, name)
	if err == nil && !h.allowed(info.Name) {
		err = errNotAllowed
	}
	return info, err
}

// open opens an export that the client may use; others are not touched. The
// session has what was negotiated before it: contexts that were selected for
// another export are none.
func (h *handshake) open(ctx context.Context, name string) (*session, error) {
	if h.server.opts.Allow != nil {
		if _, err := h.describe(ctx, name); err != nil {
			return nil, err
		}
	}
	s, err := h.server.open(ctx, name)
	if err != nil {
		return nil, err
	}
	if !h.allowed(s.info.Name) { // the name means another one by now
		s.release()
		return nil, errNotAllowed
	}
	if s.form = h.form; h.contextsOf == s.info.Name {
		s.contexts = h.contexts
	}
	return s, nil
}

// fail answers an option that Exports refused. What went wrong inside stays
// inside: the client is told where to look.
func (h *handshake) fail(opt uint32, name string, err error) {
	switch {
	case errors.Is(err, ErrUnknownExport):
		h.reply(opt, wire.RepErrUnknown, fmt.Appendf(nil, "no export %.256q", name))
	case errors.Is(err, errNotAllowed):
		h.reply(opt, wire.RepErrPolicy, fmt.Appendf(nil, "export %.256q is not for this client", name))
	case errors.Is(err, ErrShutdown):
		h.reply(opt, wire.RepErrShutdown, []byte("export is shutting down"))
	default:
		h.server.opts.Logger.Error("nbd: export cannot be offered", "export", name, "option", opt, "err", err)
		h.reply(opt, wire.RepErrUnknown, []byte("export is not available now: see the server's log"))
	}
}

// reply buffers one option reply; next flushes, and meets a write's error
// then (a bufio.Writer keeps it).
func (h *handshake) reply(opt, typ uint32, data []byte) {
	h.w.Write(encode(protocol.NegotiationReplyHeader{
		ReplyMagic: wire.MagicOptionReply, ID: opt, Type: typ, Length: uint32(len(data)),
	}))
	h.w.Write(data)
}
