package peerflash

import (
	"bufio"
	"net"
	"sync"
	"time"

	"plinth/internal/id"
)

const (
	// requestsMax bounds the requests under way on one connection: flash answers so
	// many at once, and more would only wait.
	requestsMax = 32
	// lentMax bounds those of all connections, and so, by BytesMax, what replies take.
	lentMax = 64
	// servedIdleMax ends a connection on which nothing is asked for: longer than idleMax,
	// after which who asks ends it.
	servedIdleMax = 3 * time.Minute
	// takenMax bounds how long a reply waits to be taken.
	takenMax = 2 * time.Second
)

// Server serves a host's flash to others. [NewServer] makes one.
type Server struct {
	lend  func(fp id.Fingerprint, dst []byte) (sealed []byte, ok bool)
	slots chan struct{}
}

// NewServer returns a server of what lend has. lend appends the sealed chunk to dst, if
// it is there and there is time for it now, and does not wait; any number of calls may
// run at once.
func NewServer(lend func(fp id.Fingerprint, dst []byte) (sealed []byte, ok bool)) *Server {
	return &Server{lend, make(chan struct{}, lentMax)}
}

// serving is one connection.
type serving struct {
	*Server
	conn net.Conn
	own  chan struct{}

	mu sync.Mutex // of who writes
}

// Serve answers what is asked for on a connection, until it ends, and closes it.
func (s *Server) Serve(conn net.Conn) {
	c := &serving{Server: s, conn: conn, own: make(chan struct{}, requestsMax)}
	var work sync.WaitGroup
	defer work.Wait()
	defer conn.Close() // which ends them
	for r := bufio.NewReader(conn); ; {
		_ = conn.SetReadDeadline(time.Now().Add(servedIdleMax)) // or else the read says it
		q, err := readRequest(r)
		if err != nil {
			return
		}
		if !c.begin() {
			c.write(beginReply(nil, q))
			continue
		}
		work.Go(func() {
			defer c.end()
			c.answer(q)
		})
	}
}

// begin reports whether there is room for one more request; end is then due.
func (c *serving) begin() bool {
	select {
	case c.own <- struct{}{}:
	default:
		return false
	}
	select {
	case c.slots <- struct{}{}:
		return true
	default:
		<-c.own
		return false
	}
}

func (c *serving) end() {
	<-c.slots
	<-c.own
}

// replyBytesKept is the longest reply whose memory is used again: more than a full one of
// chunks of 4 KiB.
const replyBytesKept = 512 << 10

var replies = sync.Pool{New: func() any { return new([]byte) }}

func (c *serving) answer(q *request) {
	buf := replies.Get().(*[]byte)
	defer func() {
		if cap(*buf) <= replyBytesKept {
			replies.Put(buf)
		}
	}()
	b := beginReply((*buf)[:0], q)
	first := len(b)
	for i, fp := range q.names {
		before := len(b)
		with, ok := c.lend(fp, b)
		n := len(with) - before
		if len(with)-first > BytesMax {
			break // of what is still asked for less than a chunk would fit
		}
		if ok && n > 0 && n%id.Unit == 0 && n/id.Unit < 1<<16 {
			setLength(with, i, n)
			before = len(with)
		}
		b = with[:before]
	}
	*buf = b
	c.write(b)
}

// write sends a reply. One that is not taken ends the connection.
func (c *serving) write(b []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	err := c.conn.SetWriteDeadline(time.Now().Add(takenMax))
	if err == nil {
		_, err = c.conn.Write(b)
	}
	if err != nil {
		_ = c.conn.Close()
	}
}
