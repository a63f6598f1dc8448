package nbd

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"

	"plinth/nbd/internal/wire"
)

// How transmission ends in good order.
var (
	errDisconnected = errors.New("client disconnected")
	errDrained      = errors.New("drained")
)

// transmission serves the requests of one connection: the reader (run) takes
// them off the wire, workers call the device, replies go out in the order in
// which they are ready.
type transmission struct {
	conn   *conn
	socket *socket // below in, perhaps under TLS; nil: unknown
	in     ahead
	r      *bufio.Reader // over in
	device Device
	limits limits
	// Abilities of the device; nil: none.
	tryRead  TryReader
	tryWrite TryWriter
	extents  Extenter
	prefetch Prefetcher
	fastZero FastZeroer
	numbers  Numberer

	log     *slog.Logger
	errors  errorLog
	shared  *exportState
	overdue sync.Mutex // held while requests are answered for their device
	window  *window
	replies *replies

	ctx    context.Context // the parent of device calls'
	cancel context.CancelFunc
	slice  slice // the reader's

	queue   *queue
	calls   atomic.Int32   // of the device that are to come or under way
	workers sync.WaitGroup // as they are needed, as long as the connection lives
	alone   alone
}

func newTransmission(c *conn, s *session, from io.Reader, log *slog.Logger) *transmission {
	o := c.server.opts
	t := &transmission{conn: c, in: ahead{from, readBufferBytes}, device: s.export.Device, shared: s.shared, log: log}
	t.socket, _ = c.Conn.(*socket)
	t.r = bufio.NewReaderSize(&t.in, readBufferBytes)
	t.limits = limits{
		size: s.info.Size, readOnly: s.info.ReadOnly, cache: s.info.Cache, fastZero: s.info.FastZero,
		form: s.form, contexts: s.contexts,
	}
	t.tryRead, _ = t.device.(TryReader)
	t.tryWrite, _ = t.device.(TryWriter)
	t.extents, _ = t.device.(Extenter)
	t.prefetch, _ = t.device.(Prefetcher)
	t.fastZero, _ = t.device.(FastZeroer)
	t.numbers, _ = t.device.(Numberer)
	t.window = newWindow(o.RequestsMax, o.BytesInFlightMax, c.wakeReader)
	t.replies = newReplies(c.stream, t.window, s.form)
	t.ctx, t.cancel = context.WithCancel(c.server.ctx)
	// One more: its request may be answered and its place taken.
	t.queue = newQueue(o.RequestsMax+1, func() { t.workers.Go(t.worker) })
	t.alone.readEnd = make(chan error, 1)
	return t
}

// run serves until the client disconnects (errDisconnected), shutdown has
// drained the connection (errDrained), or the connection fails. When it
// returns no device call is under way, and every reply is written or lost.
func (t *transmission) run() error {
	stop := make(chan struct{})
	var others sync.WaitGroup
	others.Go(func() { t.watch(stop) })
	others.Go(t.replies.writer)
	err := t.read()
	if errors.Is(err, errHandedOver) {
		err = <-t.alone.readEnd
	}
	t.conn.server.patience.forget(t)
	t.queue.close()
	t.workers.Wait()
	close(stop)
	t.replies.end()
	others.Wait()
	t.replies.flush()
	t.cancel()
	return err
}

// read is the loop of the reader. It ends with the connection's requests, or with
// errHandedOver.
func (t *transmission) read() error {
	for {
		err := t.next()
		switch {
		case err == nil:
			continue
		case errors.Is(err, errDisconnected) || errors.Is(err, errDrained) || errors.Is(err, errHandedOver):
		default:
			t.cancel() // nobody waits for the answers
		}
		return err
	}
}

func (t *transmission) next() error {
	h, err := t.header()
	if err != nil {
		return err
	}
	if h.Type == wire.CmdDisc {
		return errDisconnected
	}
	return t.accept(h)
}

func (t *transmission) header() (h wire.Request, err error) {
	n, magic := wire.RequestBytes, wire.MagicRequest
	if t.limits.form == formExtended {
		n, magic = wire.ExtendedRequestBytes, wire.MagicExtendedRequest
	}
	if t.r.Buffered() < n {
		t.replies.flush() // about to block
		if t.socket != nil {
			t.socket.eager = t.window.empty() // else the processor is for workers
		}
	}
	b, err := t.r.Peek(n)
	if err != nil {
		return h, t.readError(err)
	}
	if n == wire.RequestBytes {
		h = wire.DecodeRequest(b)
	} else {
		h = wire.DecodeExtendedRequest(b)
	}
	t.r.Discard(n)
	switch {
	case h.Magic != magic:
		return h, fmt.Errorf("request magic %#x: the stream is out of step", h.Magic)
	// The compact form has 32 bits of length: reading past is worth a try.
	case magic == wire.MagicExtendedRequest && h.Payload() > PayloadBytesMax && h.Type != wire.CmdDisc:
		return h, fmt.Errorf("payload of %d bytes, at most %d", h.Payload(), PayloadBytesMax)
	}
	return h, nil
}

// readError tells the deadline that shutdown sets from a broken connection.
func (t *transmission) readError(err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return errDrained
	}
	return fmt.Errorf("read request: %w", err)
}

// grow takes notice of a device that has grown, when a request wants more than
// the connection was told of: a client may have learned it elsewhere.
func (t *transmission) grow(h *wire.Request) {
	if size := uint64(t.limits.size); h.Offset > size || h.Length > size-h.Offset {
		t.limits.size = max(t.limits.size, t.device.Size())
	}
}

// accept takes a request in: bad ones are answered at once, others go to a
// worker, or are answered inline where the device can or nobody would wait. One
// that comes after shutdown began ends the connection (errDrained) without an
// answer: clients that reconnect send it again, and to those that do not it is the
// same.
func (t *transmission) accept(h wire.Request) error {
	t.grow(&h)
	errno := check(&h, &t.limits)
	if errno == 0 && isChange(h.Type) && t.shared.stuck.Load() > 0 {
		errno = EIO
	}
	follows, asked := int(h.Payload()), t.limits.contexts
	if errno == 0 && h.Type == wire.CmdBlockStatus && payloadFollows(&h) {
		var err error
		if asked, errno, err = t.filter(&h); err != nil {
			return err
		}
		follows = 0
	}
	held := 0
	if errno == 0 {
		held = payloadHeld(&h)
	}
	r := t.acquire(&h, held)
	r.Request = h
	if r.refused {
		t.window.release([]*request{r})
		return errDrained
	}
	if errno != 0 {
		r.errno = errno
		err := t.skip(follows)
		t.answer(r)
		return err
	}
	done, err := t.fill(r, held)
	if err != nil {
		t.window.release([]*request{r})
		return err
	}
	if done || t.tryInline(r) {
		t.answer(r)
		return nil
	}
	r.contexts = asked
	if t.isAlone(r) {
		return t.serveAlone(r)
	}
	t.dispatch(r)
	return nil
}

// acquire takes a request from the window, charged for what it will hold.
func (t *transmission) acquire(h *wire.Request, held int) *request {
	var n int64
	switch {
	case held > 0:
		n = bufferBytes(held)
	case h.Type == wire.CmdBlockStatus:
		n = statusBytes
	}
	if r := t.window.tryAcquire(n); r != nil {
		return r
	}
	t.replies.flush() // about to block
	defer t.watchHangUp()()
	return t.window.acquire(n)
}

// skip reads past the payload of a refused write, whatever its length: that
// costs no memory, and the client gets its error.
func (t *transmission) skip(n int) error {
	if t.r.Buffered() < n {
		t.replies.flush() // about to block
	}
	if _, err := t.r.Discard(n); err != nil {
		return t.readError(err)
	}
	return nil
}

// ahead is what the read buffer is filled from, max bytes at a time.
type ahead struct {
	io.Reader
	max int
}

func (a *ahead) Read(p []byte) (int, error) { return a.Reader.Read(p[:min(len(p), a.max)]) }

const (
	// longBytes is a payload whose end goes past the read buffer, which saves
	// copying it once more.
	longBytes = 64 << 10
	// aheadBytesLong is how much is read with the header that follows a long
	// payload: another one probably comes behind it.
	aheadBytesLong = 4 << 10
)

// fill gives r its buffer of n bytes, and a write its payload. It reports a write
// that is done already.
func (t *transmission) fill(r *request, n int) (done bool, err error) {
	switch {
	case n == 0:
		return false, nil
	case r.Type == wire.CmdWrite && n > inlineWriteMax && t.tryWrite != nil && !r.fua():
		return t.pour(r)
	}
	r.buf = getBuffer(n)
	if r.Type == wire.CmdWrite {
		err = t.readFull(r.buf.data())
	}
	return false, err
}

// pour hands a long write to a device that takes it at once, piece by piece: what
// was read last is in the processor's cache yet. When the device takes no more
// the rest is left in r.
func (t *transmission) pour(r *request) (done bool, err error) {
	piece := getBuffer(inlineWriteMax)
	defer piece.put()
	for r.poured < r.Length {
		rest := r.Length - r.poured
		p := piece.data()[:min(rest, inlineWriteMax)]
		if err := t.readFull(p); err != nil {
			return false, err
		}
		if !t.tryWrite.TryWriteAt(p, int64(r.Offset+r.poured)) {
			r.buf = getBuffer(int(rest))
			return false, t.readFull(r.buf.data()[copy(r.buf.data(), p):])
		}
		r.poured += uint64(len(p))
	}
	return true, nil
}

// readFull fills b from the wire.
func (t *transmission) readFull(b []byte) error {
	if t.r.Buffered() < len(b) {
		t.replies.flush() // about to block
	}
	n := len(b)
	if n >= longBytes {
		n = min(n, t.r.Buffered())
	}
	_, err := io.ReadFull(t.r, b[:n])
	if t.in.max = readBufferBytes; len(b) >= longBytes {
		t.in.max = aheadBytesLong
		if err == nil {
			_, err = io.ReadFull(t.in.Reader, b[n:])
		}
	}
	if err != nil {
		return t.readError(err)
	}
	return nil
}

// What is tried on the reader's goroutine is bounded, writes by the piece: handing
// less to another processor costs more than the copy.
const (
	inlineReadMax  = 1 << 20
	inlineWriteMax = 256 << 10
)

func (t *transmission) tryInline(r *request) bool {
	switch {
	case r.buf == nil:
		return false
	case r.Type == wire.CmdRead:
		return t.tryRead != nil && r.buf.n <= inlineReadMax && t.tryRead.TryReadAt(r.buf.data(), int64(r.Offset))
	}
	return t.tryWrite != nil && r.buf.n <= inlineWriteMax && !r.fua() && t.tryWrite.TryWriteAt(r.buf.data(), int64(r.Offset+r.poured))
}

// answer queues a reply on the reader's goroutine. It is written when the
// input runs dry.
func (t *transmission) answer(r *request) {
	if t.replies.push(r) {
		t.replies.flush()
	}
}
