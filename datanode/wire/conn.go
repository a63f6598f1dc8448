package wire

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"plinth/datanode"
)

// queueFramesMax bounds the frames that wait to be written on a connection. A
// peer that asks for more than its slots allow is cut off.
const queueFramesMax = 4 * slotsMax

// stagingBytes is how much is gathered above TLS: small frames share a record.
const stagingBytes = 16 << 10

var errQueue = errors.New("peer asks for more than it takes")

// conn is a connection after its handshake: any goroutine sends frames, and one
// writes them; run reads.
type conn struct {
	tls  *tls.Conn
	raw  *stream
	peer Identity
	bulk bool
	keep Keepalive
	stop func() // called at the end, if set before run
	// session is the one that a client's connection was made for.
	session [16]byte

	mu      sync.Mutex
	queue   []*frame
	spare   []*frame
	pinging bool
	err     error // why it ended
	wake    chan struct{}
	ended   chan struct{}
	writer  sync.WaitGroup
	staging []byte
}

// Keepalive says when a peer counts as dead.
type Keepalive struct {
	// PingEvery is how long a connection may be silent before its end says that it
	// lives; 1 s if 0.
	PingEvery time.Duration
	// DeadAfter is after what silence the other end hangs up; 5 s if 0.
	DeadAfter time.Duration
	// WriteWait is how long 256 KiB may take to be written; 30 s if 0.
	WriteWait time.Duration
}

func (k Keepalive) filled() Keepalive {
	if k.PingEvery == 0 {
		k.PingEvery = time.Second
	}
	if k.DeadAfter == 0 {
		k.DeadAfter = 5 * time.Second
	}
	if k.WriteWait == 0 {
		k.WriteWait = 30 * time.Second
	}
	return k
}

func (k Keepalive) validate() error {
	if k.PingEvery < 0 || k.WriteWait < 0 || k.DeadAfter < 2*k.PingEvery {
		return fmt.Errorf("pings every %v and dead after %v: silence must be at least two pings long", k.PingEvery, k.DeadAfter)
	}
	return nil
}

func newConn(t *tls.Conn, raw *stream, peer Identity, bulk bool, keep Keepalive) *conn {
	raw.gather()
	return &conn{
		tls: t, raw: raw, peer: peer, bulk: bulk, keep: keep,
		wake: make(chan struct{}, 1), ended: make(chan struct{}), staging: make([]byte, 0, stagingBytes),
	}
}

// send has a frame written, and holds it until then. It reports false when the
// connection has ended. It does not block.
func (c *conn) send(f *frame) bool {
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return false
	}
	if len(c.queue) >= queueFramesMax {
		c.mu.Unlock()
		c.end(errQueue)
		return false
	}
	f.hold()
	c.queue = append(c.queue, f)
	c.mu.Unlock()
	select {
	case c.wake <- struct{}{}:
	default:
	}
	return true
}

// end breaks the connection off, for a reason; the first one counts.
func (c *conn) end(why error) {
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return
	}
	c.err = why
	queue := c.queue
	c.queue = nil
	close(c.ended)
	c.mu.Unlock()
	if c.stop != nil {
		c.stop()
	}
	_ = c.raw.Conn.Close() // the peer learns it from TLS, which sees no end of its own
	for _, f := range queue {
		f.release()
	}
}

// reason says why the connection ended.
func (c *conn) reason() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// run starts the writer, calls each for every frame that comes, and returns when
// the connection has ended and nothing of it runs. Each takes the frame over; an
// error of it ends the connection. before, if set, is asked before the memory for
// a message is taken, and says what is done when it is given back.
func (c *conn) run(before func(header) (func(*frame), error), each func(header, *frame) error) error {
	c.writer.Add(2)
	go c.write()
	go c.watch()
	c.end(c.read(before, each))
	c.writer.Wait()
	return c.reason()
}

func (c *conn) read(before func(header) (func(*frame), error), each func(header, *frame) error) error {
	in := bufio.NewReaderSize(c.tls, 32<<10)
	for {
		f, h, err := readFrame(in, before)
		if err != nil {
			return err
		}
		if h.kind == kindPing {
			f.release()
			continue
		}
		if err := each(h, f); err != nil {
			return err
		}
	}
}

// readFrame reads one frame. The memory for it is taken before its bytes are
// there; before bounds how much of it there is.
func readFrame(in *bufio.Reader, before func(header) (func(*frame), error)) (*frame, header, error) {
	b, err := in.Peek(headerBytes)
	if err != nil {
		if err == io.EOF && len(b) > 0 {
			err = io.ErrUnexpectedEOF
		}
		return nil, header{}, err
	}
	h, err := parseHeader(b)
	if err != nil {
		return nil, h, err
	}
	var after func(*frame)
	if before != nil {
		if after, err = before(h); err != nil {
			return nil, h, err
		}
	}
	f := newFrame(headerBytes + int(h.length))
	f.done = after
	if _, err := io.ReadFull(in, f.buf); err != nil {
		f.release()
		return nil, h, err
	}
	return f, h, nil
}

// write is the one writer: what has come while it wrote goes out together.
func (c *conn) write() {
	defer c.writer.Done()
	for {
		select {
		case <-c.wake:
		case <-c.ended:
			return
		}
		for {
			c.mu.Lock()
			batch := c.queue
			ping := c.pinging
			c.pinging = false
			if c.err != nil || len(batch) == 0 && !ping {
				c.mu.Unlock()
				break
			}
			c.queue, c.spare = c.spare[:0], nil
			c.mu.Unlock()
			err := c.writeBatch(batch, ping)
			for i, f := range batch {
				f.release()
				batch[i] = nil
			}
			c.mu.Lock()
			c.spare = batch[:0]
			c.mu.Unlock()
			if err != nil {
				c.end(err)
				return
			}
		}
	}
}

func (c *conn) writeBatch(batch []*frame, ping bool) error {
	if ping {
		var b [headerBytes]byte
		header{kind: kindPing}.put(b[:])
		c.staging = append(c.staging, b[:]...)
	}
	for _, f := range batch {
		from := 0
		for _, s := range f.splices {
			if err := c.stage(f.buf[from:s.off]); err != nil {
				return err
			}
			if err := c.stage(s.data); err != nil {
				return err
			}
			from = s.off
		}
		if err := c.stage(f.buf[from:]); err != nil {
			return err
		}
	}
	if err := c.stage(nil); err != nil {
		return err
	}
	return c.raw.flush()
}

// stage writes to TLS by way of a buffer, or past it what is larger. Nothing
// empties the buffer.
func (c *conn) stage(p []byte) error {
	if len(p) > 0 && len(c.staging)+len(p) <= stagingBytes {
		c.staging = append(c.staging, p...)
		return nil
	}
	if len(c.staging) > 0 {
		_, err := c.tls.Write(c.staging)
		c.staging = c.staging[:0]
		if err != nil {
			return err
		}
	}
	if len(p) > 0 && len(p) <= stagingBytes {
		c.staging = append(c.staging, p...)
		return nil
	}
	if len(p) > 0 {
		_, err := c.tls.Write(p)
		return err
	}
	return nil
}

// watch sends pings, and ends a connection on which nothing was heard for long.
func (c *conn) watch() {
	defer c.writer.Done()
	tick := time.NewTicker(c.keep.PingEvery)
	defer tick.Stop()
	for {
		select {
		case <-c.ended:
			return
		case <-tick.C:
		}
		if silence := time.Since(time.Unix(0, c.raw.heard.Load())); c.raw.reading.Load() && silence > c.keep.DeadAfter {
			c.end(fmt.Errorf("nothing heard for %v: %w", silence.Round(time.Millisecond), errDead))
			return
		}
		c.mu.Lock()
		c.pinging = true
		c.mu.Unlock()
		select {
		case c.wake <- struct{}{}:
		default:
		}
	}
}

var errDead = errors.New("the peer does not answer")

// goodbye says why to the peer, waits shortly for it to be written, and ends.
func (c *conn) goodbye(why *datanode.Error) {
	f := composeError(header{kind: kindGoodbye}, why)
	written := make(chan struct{})
	f.done = func(*frame) { close(written) }
	c.send(f)
	f.release()
	select {
	case <-written:
	case <-c.ended:
	case <-time.After(goodbyeWait):
	}
	c.end(why)
}

// goodbyeWait is how long a parting word may take to leave.
const goodbyeWait = time.Second
