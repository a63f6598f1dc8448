package wire

import (
	"bufio"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// burstBytes is the most that is written at a time: a small frame that comes
	// meanwhile waits for no more.
	burstBytes = 256 << 10
	// readBytes is the buffer below TLS, which would read record by record.
	readBytes = 64 << 10
)

// stream is the connection below TLS. It gathers what TLS writes until flush,
// and notes when something was read.
type stream struct {
	net.Conn
	in        *bufio.Reader
	writeWait time.Duration // longest time in which a burst must go out

	mu     sync.Mutex
	out    []byte
	direct bool // during the handshake: nothing is gathered

	heard   atomic.Int64 // when something was read last, or a read began
	reading atomic.Bool  // false while this side does not want to read
}

func newStream(c net.Conn, writeWait time.Duration) *stream {
	s := &stream{Conn: c, writeWait: writeWait, direct: true}
	s.in = bufio.NewReaderSize(heedful{s}, readBytes)
	s.heard.Store(time.Now().UnixNano())
	return s
}

// heedful reads the socket and notes when.
type heedful struct{ s *stream }

func (h heedful) Read(p []byte) (int, error) {
	h.s.heard.Store(time.Now().UnixNano())
	h.s.reading.Store(true)
	defer h.s.reading.Store(false)
	n, err := h.s.Conn.Read(p)
	if n > 0 {
		h.s.heard.Store(time.Now().UnixNano())
	}
	return n, err
}

func (s *stream) Read(p []byte) (int, error) { return s.in.Read(p) }

func (s *stream) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.direct {
		return s.Conn.Write(p)
	}
	if len(s.out)+len(p) > burstBytes {
		if err := s.flushLocked(); err != nil {
			return 0, err
		}
	}
	s.out = append(s.out, p...)
	return len(p), nil
}

// gather begins to gather.
func (s *stream) gather() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.direct = false
}

// flush writes what was gathered.
func (s *stream) flush() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.flushLocked()
}

func (s *stream) flushLocked() error {
	if len(s.out) == 0 {
		return nil
	}
	if err := s.Conn.SetWriteDeadline(time.Now().Add(s.writeWait)); err != nil {
		return err
	}
	_, err := s.Conn.Write(s.out)
	s.out = s.out[:0]
	return err
}
