package client

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/pojntfx/go-nbd/pkg/protocol"

	"plinth/nbd"
	"plinth/nbd/internal/wire"
	"plinth/nbd/vsock"
)

// Info is what a server says of an export.
type Info struct {
	Name               string
	Description        string
	Size               int64  // bytes
	Flags              uint16 // transmission flags
	MinBlockSize       uint32 // bytes; 1 unless the server says otherwise
	PreferredBlockSize uint32 // bytes; 4096 unless the server says otherwise
	PayloadBytesMax    uint32 // of one read or write
	Form               Form   // negotiated before
}

// ReadOnly reports that the server refuses writes.
func (i Info) ReadOnly() bool { return i.Flags&wire.FlagReadOnly != 0 }

// MultiConn reports that several connections may share the export.
func (i Info) MultiConn() bool { return i.Flags&wire.FlagCanMultiConn != 0 }

// OptionError is a server's refusal of an option.
type OptionError struct {
	Option, Type uint32
	Message      string
}

func (e *OptionError) Error() string {
	return fmt.Sprintf("server refused option %d: error %d: %.256q", e.Option, e.Type&^wire.RepError, e.Message)
}

// Is makes an unknown export errors.Is nbd.ErrUnknownExport, a server that stops
// nbd.ErrShutdown, and an option that the server does not know ErrUnsupported.
func (e *OptionError) Is(target error) bool {
	return e.Type == wire.RepErrUnknown && target == nbd.ErrUnknownExport ||
		e.Type == wire.RepErrUnsup && target == ErrUnsupported ||
		e.Type == wire.RepErrShutdown && target == nbd.ErrShutdown
}

const (
	// replyBytesMax bounds an option reply: two strings and some numbers.
	replyBytesMax = 4 * wire.StringBytesMax
	// repliesMax and repliesBytesMax bound the replies to one option, LIST
	// entries foremost, in number and in all.
	repliesMax      = 1 << 16
	repliesBytesMax = 16 << 20
)

// session is a connection in the handshake.
type session struct {
	conn net.Conn
	r    *bufio.Reader

	noZeroes bool
	form     Form
	contexts map[uint32]string
}

// dial connects to addr.
func dial(ctx context.Context, network, addr string, o Options) (conn net.Conn, err error) {
	ctx, cancel := context.WithTimeout(ctx, o.HandshakeTimeout)
	defer cancel()
	if network == vsock.Network {
		conn, err = vsock.Dial(ctx, addr)
	} else {
		conn, err = new(net.Dialer).DialContext(ctx, network, addr)
	}
	if err != nil {
		return nil, fmt.Errorf("dial nbd server: %w", err)
	}
	return conn, nil
}

// negotiate exchanges the greeting and runs f. The connection has a deadline
// and is closed if ctx ends meanwhile, or on error. The session's reader may
// hold bytes that follow the handshake.
func negotiate(ctx context.Context, conn net.Conn, o Options, f func(*session) error) (*session, error) {
	s := &session{conn: conn, r: bufio.NewReader(conn)}
	err := conn.SetDeadline(time.Now().Add(o.HandshakeTimeout))
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	if err == nil {
		err = s.greet()
	}
	if err == nil && o.TLS != nil {
		err = s.startTLS(ctx, o.TLS)
	}
	if err == nil {
		err = f(s)
	}
	if !stop() {
		err = ctx.Err() // which is why anything else failed
	}
	if err == nil {
		err = conn.SetDeadline(time.Time{})
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return s, nil
}

func (s *session) greet() error {
	var g protocol.NegotiationNewstyleHeader
	if err := s.read(&g); err != nil {
		return err
	}
	if g.OldstyleMagic != wire.MagicInit || g.OptionMagic != wire.MagicOption {
		return fmt.Errorf("%w: magic %#x %#x is not newstyle", ErrProtocol, g.OldstyleMagic, g.OptionMagic)
	}
	if g.HandshakeFlags&wire.HandshakeFixedNewstyle == 0 {
		return fmt.Errorf("%w: not fixed newstyle", ErrProtocol)
	}
	flags := wire.ClientFixedNewstyle
	if s.noZeroes = g.HandshakeFlags&wire.HandshakeNoZeroes != 0; s.noZeroes {
		flags |= wire.ClientNoZeroes
	}
	return binary.Write(s.conn, binary.BigEndian, flags)
}

// startTLS puts the rest of the connection under TLS.
func (s *session) startTLS(ctx context.Context, config *tls.Config) error {
	err := s.option(wire.OptStartTLS, nil, func(typ uint32, _ []byte) error {
		return fmt.Errorf("%w: reply type %#x", ErrProtocol, typ)
	})
	if err != nil {
		return err
	}
	if s.r.Buffered() > 0 {
		return fmt.Errorf("%w: data before TLS", ErrProtocol)
	}
	c := tls.Client(s.conn, config)
	if err := c.HandshakeContext(ctx); err != nil {
		return fmt.Errorf("start TLS: %w", err)
	}
	s.conn, s.r = c, bufio.NewReader(c)
	return nil
}

// open enters transmission with GO, or with EXPORT_NAME where the server does
// not know GO.
func (s *session) open(name string) (Info, error) {
	info, err := s.ask(wire.OptGo, name)
	if refused(err) && s.form != Extended {
		info, err = s.exportName(name)
	}
	info.Form = s.form
	return info, err
}

// refused reports a server that does not know an option.
func refused(err error) bool {
	var e *OptionError
	return errors.As(err, &e) && e.Type == wire.RepErrUnsup
}

// check judges what the server said, and bounds the payload by what every
// server must take.
func (i Info) check() (Info, error) {
	if i.Flags&wire.FlagHasFlags == 0 || i.Size < 0 || i.PayloadBytesMax == 0 || i.MinBlockSize == 0 {
		return Info{}, fmt.Errorf("%w: impossible export %+v", ErrProtocol, i)
	}
	i.PayloadBytesMax = min(i.PayloadBytesMax, wire.PayloadBytesMax)
	return i, nil
}

// newInfo is what holds of an export that the server says nothing of.
func newInfo(name string) Info {
	return Info{Name: name, MinBlockSize: 1, PreferredBlockSize: 4096, PayloadBytesMax: wire.PayloadBytesMax}
}

// ask sends INFO or GO, asking for everything.
func (s *session) ask(opt uint32, name string) (Info, error) {
	wants := []uint16{wire.InfoName, wire.InfoDescription, wire.InfoBlockSize}
	data := binary.BigEndian.AppendUint32(nil, uint32(len(name)))
	data = append(data, name...)
	data = binary.BigEndian.AppendUint16(data, uint16(len(wants)))
	data, err := binary.Append(data, binary.BigEndian, wants)
	if err != nil {
		return Info{}, err
	}
	info := newInfo(name)
	seen := false
	err = s.option(opt, data, func(typ uint32, payload []byte) error {
		if typ != wire.RepInfo || len(payload) < 2 {
			return fmt.Errorf("%w: reply type %#x of %d bytes", ErrProtocol, typ, len(payload))
		}
		export, err := info.add(payload)
		seen = seen || export
		return err
	})
	if err != nil {
		return Info{}, err
	}
	if !seen {
		return Info{}, fmt.Errorf("%w: no size", ErrProtocol)
	}
	return info.check()
}

// add takes in one information reply and reports whether it was the EXPORT
// one. Unknown ones are ignored.
func (i *Info) add(payload []byte) (export bool, err error) {
	typ, rest := binary.BigEndian.Uint16(payload), payload[2:]
	switch typ {
	case wire.InfoExport:
		if len(rest) != 10 {
			return false, fmt.Errorf("%w: EXPORT information of %d bytes", ErrProtocol, len(rest))
		}
		i.Size = int64(binary.BigEndian.Uint64(rest))
		i.Flags = binary.BigEndian.Uint16(rest[8:])
		return true, nil
	case wire.InfoName:
		i.Name = string(rest)
	case wire.InfoDescription:
		i.Description = string(rest)
	case wire.InfoBlockSize:
		if len(rest) != 12 {
			return false, fmt.Errorf("%w: BLOCK_SIZE information of %d bytes", ErrProtocol, len(rest))
		}
		i.MinBlockSize = binary.BigEndian.Uint32(rest)
		i.PreferredBlockSize = binary.BigEndian.Uint32(rest[4:])
		i.PayloadBytesMax = binary.BigEndian.Uint32(rest[8:])
	}
	return false, nil
}

func (s *session) exportName(name string) (Info, error) {
	if err := s.sendOption(wire.OptExportName, []byte(name)); err != nil {
		return Info{}, err
	}
	b := make([]byte, 10)
	if !s.noZeroes {
		b = make([]byte, 10+wire.ExportNamePadBytes)
	}
	if _, err := io.ReadFull(s.r, b); err != nil {
		return Info{}, fmt.Errorf("EXPORT_NAME: %w", err)
	}
	info := newInfo(name)
	info.Size, info.Flags = int64(binary.BigEndian.Uint64(b)), binary.BigEndian.Uint16(b[8:])
	return info.check()
}

// option sends an option and hands every reply before the final ACK to each.
func (s *session) option(opt uint32, data []byte, each func(typ uint32, payload []byte) error) error {
	if err := s.sendOption(opt, data); err != nil {
		return err
	}
	left := uint32(repliesBytesMax)
	for range repliesMax {
		var h protocol.NegotiationReplyHeader
		if err := s.read(&h); err != nil {
			return err
		}
		if h.ReplyMagic != wire.MagicOptionReply || h.ID != opt || h.Length > min(replyBytesMax, left) {
			return fmt.Errorf("%w: option reply %+v", ErrProtocol, h)
		}
		left -= h.Length
		payload := make([]byte, h.Length)
		if _, err := io.ReadFull(s.r, payload); err != nil {
			return err
		}
		switch {
		case h.Type == wire.RepAck:
			return nil
		case h.Type&wire.RepError != 0:
			return &OptionError{Option: opt, Type: h.Type, Message: string(payload)}
		}
		if err := each(h.Type, payload); err != nil {
			return err
		}
	}
	return fmt.Errorf("%w: more than %d replies to option %d", ErrProtocol, repliesMax, opt)
}

func (s *session) sendOption(opt uint32, data []byte) error {
	var b bytes.Buffer
	h := protocol.NegotiationOptionHeader{OptionMagic: wire.MagicOption, ID: opt, Length: uint32(len(data))}
	if err := binary.Write(&b, binary.BigEndian, h); err != nil {
		return err
	}
	b.Write(data)
	_, err := s.conn.Write(b.Bytes())
	return err
}

func (s *session) read(v any) error { return binary.Read(s.r, binary.BigEndian, v) }
