package client

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"plinth/nbd"
	"plinth/nbd/internal/wire"
)

var (
	// ErrClosed is returned by every call on a connection that has ended. Dial
	// again.
	ErrClosed = errors.New("nbd client: connection closed")
	// ErrUnsupported is returned for a request that the server did not offer, and by
	// Change where it does not know the protocol.
	ErrUnsupported = errors.New("nbd client: not offered by the server")
	// ErrProtocol is wrapped when the server breaks the protocol.
	ErrProtocol = errors.New("nbd client: server broke the protocol")
)

// Error is a server's refusal of a request.
type Error struct {
	Op     string
	Off, N int64 // bytes
	Errno  nbd.Errno
}

func (e *Error) Error() string {
	return fmt.Sprintf("nbd %s of %d bytes at %d: %v", e.Op, e.N, e.Off, e.Errno)
}

// Unwrap returns the Errno.
func (e *Error) Unwrap() error { return e.Errno }

// Options are a Client's tunables. The zero value is right.
type Options struct {
	// InFlightMax bounds the requests in flight, up to 65,536; further calls wait.
	// Default (0): 128.
	InFlightMax int
	// HandshakeTimeout bounds the handshake, beside the context.
	// Default (0): 10 s.
	HandshakeTimeout time.Duration
	// Form is the form to ask for; a server may have a lesser one only.
	// Default (0): Simple.
	Form Form
	// TLS starts TLS before anything else, and gives up where the server will
	// not; ServerName must be set, or InsecureSkipVerify. Default: nil, no TLS.
	TLS *tls.Config
	// Export returns the export's name once TLS has begun, for NewClient. Default: nil,
	// the one given.
	Export func() string
	// Contexts are the metadata contexts to select. Default: base:allocation.
	Contexts []string
}

const (
	inFlightMaxDefault      = 128
	handshakeTimeoutDefault = 10 * time.Second
	bufferBytes             = 256 << 10
)

func (o Options) withDefaults() Options {
	if o.InFlightMax <= 0 {
		o.InFlightMax = inFlightMaxDefault
	}
	if o.HandshakeTimeout <= 0 {
		o.HandshakeTimeout = handshakeTimeoutDefault
	}
	o.InFlightMax = min(o.InFlightMax, 1<<slotBits)
	if o.Contexts == nil {
		o.Contexts = []string{wire.ContextAllocation}
	}
	return o
}

// Client is a connection in transmission.
type Client struct {
	conn net.Conn
	info Info
	// contexts are the selected ones by number.
	contexts map[uint32]string
	r        *bufio.Reader // the receiver's

	// free holds the numbers of the slots that are not in flight.
	free  chan int
	slots []slot

	// gone is closed when the receiver has ended; err says why and is set
	// before.
	gone chan struct{}
	err  error

	send sender
	once sync.Once
}

var (
	_ nbd.Device   = (*Client)(nil)
	_ nbd.Extenter = (*Client)(nil)
)

// Dial connects to addr ("tcp", "unix" or "vsock", whose address is CID:PORT, or
// PORT for the host's), and opens export. The context and HandshakeTimeout bound
// the dialling and the handshake.
func Dial(ctx context.Context, network, addr, export string, o Options) (*Client, error) {
	conn, err := dial(ctx, network, addr, o.withDefaults())
	if err != nil {
		return nil, err
	}
	return NewClient(ctx, conn, export, o)
}

// NewClient opens export over conn, on which nothing was exchanged yet, and
// takes conn over: it is closed on error too. Bounds as for Dial.
func NewClient(ctx context.Context, conn net.Conn, export string, o Options) (*Client, error) {
	o = o.withDefaults()
	var info Info
	s, err := negotiate(ctx, conn, o, func(s *session) (err error) {
		if o.Export != nil {
			export = o.Export()
		}
		if err = s.negotiateForm(o.Form); err == nil {
			err = s.selectContexts(export, o.Contexts)
		}
		if err == nil {
			info, err = s.open(export)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open export %q at %s: %w", export, conn.RemoteAddr(), err)
	}
	c := &Client{
		conn: s.conn,
		info: info,

		contexts: s.contexts,

		r:     bufio.NewReaderSize(s.r, bufferBytes),
		free:  make(chan int, o.InFlightMax),
		slots: make([]slot, o.InFlightMax),
		gone:  make(chan struct{}),
		send:  sender{w: bufio.NewWriterSize(s.conn, bufferBytes)},
	}
	for i := range c.slots {
		c.slots[i].done = make(chan error, 1)
		c.free <- i
	}
	go c.receive() // ends with the connection; Close waits for it
	return c, nil
}

// Info returns what the server said of the export.
func (c *Client) Info() Info { return c.info }

// Size returns the export's size in bytes.
func (c *Client) Size() int64 { return c.info.Size }

// ReadAt fills p from off. Reads longer than the server takes are split.
func (c *Client) ReadAt(ctx context.Context, p []byte, off int64) error {
	for len(p) > 0 {
		n := min(len(p), int(c.info.PayloadBytesMax))
		if err := c.call(ctx, question{cmd: wire.CmdRead, off: off, n: int64(n), read: p[:n]}); err != nil {
			return err
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// WriteAt writes p at off, split like reads. fua: on stable media on return;
// where the server offers no FUA a flush follows instead.
func (c *Client) WriteAt(ctx context.Context, p []byte, off int64, fua bool) error {
	flags, flush := c.fua(fua)
	for len(p) > 0 {
		n := min(len(p), int(c.info.PayloadBytesMax))
		if err := c.call(ctx, question{cmd: wire.CmdWrite, flags: flags, off: off, n: int64(n), write: p[:n]}); err != nil {
			return err
		}
		p, off = p[n:], off+int64(n)
	}
	return c.after(ctx, flush)
}

// Trim hints that n bytes at off are not needed. Longer ranges than a request
// can name are split.
func (c *Client) Trim(ctx context.Context, off, n int64, fua bool) error {
	if c.info.Flags&wire.FlagSendTrim == 0 {
		return fmt.Errorf("trim: %w", ErrUnsupported)
	}
	flags, flush := c.fua(fua)
	if err := c.ranges(ctx, wire.CmdTrim, flags, off, n); err != nil {
		return err
	}
	return c.after(ctx, flush)
}

// Zero makes n bytes at off read as zeros; mayTrim lets the server give their
// space back.
func (c *Client) Zero(ctx context.Context, off, n int64, mayTrim, fua bool) error {
	if c.info.Flags&wire.FlagSendWriteZeroes == 0 {
		return fmt.Errorf("write zeroes: %w", ErrUnsupported)
	}
	flags, flush := c.fua(fua)
	if !mayTrim {
		flags |= wire.CmdFlagNoHole
	}
	if err := c.ranges(ctx, wire.CmdWriteZeroes, flags, off, n); err != nil {
		return err
	}
	return c.after(ctx, flush)
}

// Flush returns when every write completed before it is on stable media.
func (c *Client) Flush(ctx context.Context) error {
	if c.info.Flags&wire.FlagSendFlush == 0 {
		return fmt.Errorf("flush: %w", ErrUnsupported)
	}
	return c.call(ctx, question{cmd: wire.CmdFlush})
}

// rangeBytesMax is the longest trim or zero sent at once in compact requests:
// below 4 GiB, and at a border where the next one is aligned too.
const rangeBytesMax = 1 << 30

func (c *Client) ranges(ctx context.Context, cmd, flags uint16, off, n int64) error {
	for n > 0 {
		k := n
		if c.info.Form != Extended {
			k = min(n, rangeBytesMax)
		}
		if err := c.call(ctx, question{cmd: cmd, flags: flags, off: off, n: k}); err != nil {
			return err
		}
		off, n = off+k, n-k
	}
	return nil
}

func (c *Client) fua(want bool) (flags uint16, flush bool) {
	switch {
	case !want:
		return 0, false
	case c.info.Flags&wire.FlagSendFUA != 0:
		return wire.CmdFlagFUA, false
	}
	return 0, true
}

func (c *Client) after(ctx context.Context, flush bool) error {
	if !flush {
		return nil
	}
	return c.Flush(ctx)
}

// Disconnect says goodbye: the server finishes what is in flight and hangs up.
// It returns when it has, or when ctx ends; then the connection is cut.
func (c *Client) Disconnect(ctx context.Context) error {
	defer c.Close()
	if err := c.send.request(c.info.Form, 0, &question{cmd: wire.CmdDisc}); err != nil {
		return fmt.Errorf("disconnect: %w", err)
	}
	select {
	case <-c.gone:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Close cuts the connection. Calls in flight fail with ErrClosed. It returns
// when no goroutine of the client is left, and may be called again.
func (c *Client) Close() error {
	c.once.Do(func() { c.conn.Close() })
	<-c.gone
	return nil
}
