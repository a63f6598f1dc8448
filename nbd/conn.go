package nbd

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"plinth/nbd/internal/wire"
)

const (
	// readBufferBytes takes many small requests in one system call.
	readBufferBytes = 256 << 10
	// socketBufferBytes lets long replies go without waiting for the client at
	// each piece. More costs more: what lies there leaves the processor's cache.
	socketBufferBytes = 512 << 10
	// lingerTime bounds the wait for the client to hang up after our last
	// word, so that the kernel does not discard it with a reset.
	lingerTime = time.Second
)

// conn is one accepted connection, owned by the goroutine of run.
type conn struct {
	server   *Server
	net.Conn // as accepted, a socket if it can be

	// stream is what is read and written: the connection, or TLS on it. Owned
	// by run.
	stream net.Conn

	mu         sync.Mutex
	draining   bool
	handshaken bool
	window     *window // set with handshaken; nil: another protocol has the connection
}

// run serves the connection to its end and closes it.
func (c *conn) run() {
	defer c.Close()
	log := c.server.opts.Logger.With("remote", c.RemoteAddr().String())
	c.limit()
	ctx, cancel := context.WithTimeout(c.server.ctx, c.server.opts.HandshakeTimeout)
	c.stream = c.Conn
	h := &handshake{
		server: c.server, conn: c, peer: Peer{Addr: c.RemoteAddr()},
		r: bufio.NewReader(c), w: bufio.NewWriter(c),
	}
	s, err := h.run(ctx)
	cancel()
	if err != nil {
		if errors.Is(err, errAborted) || errors.Is(err, io.EOF) {
			log.Debug("nbd: handshake ended", "reason", err)
		} else {
			log.Warn("nbd: handshake failed", "err", err)
		}
		return
	}
	defer s.release()
	if h.peer.TLS {
		log = log.With("certificate", h.peer.Names)
	}
	if s.other != nil {
		log.Info("nbd: has gone over to another protocol")
		c.goOver(s.other, h)
		return
	}
	log = log.With("export", s.info.Name)
	log.Info("nbd: attached", "bytes", s.info.Size, "readonly", s.info.ReadOnly, "tls", h.peer.TLS)

	setSocketBuffer(c.Conn)
	t := newTransmission(c, s, h.r, log)
	c.begin(t.window)
	err = t.run()
	switch {
	case errors.Is(err, errDisconnected):
		c.notify()
		log.Info("nbd: detached")
	case errors.Is(err, errDrained):
		c.linger()
		log.Info("nbd: detached by shutdown")
	default:
		log.Warn("nbd: connection lost", "err", err)
	}
}

// goOver has another protocol go on with the connection.
func (c *conn) goOver(other func(context.Context, Peer, net.Conn), h *handshake) {
	ctx, cancel := context.WithCancel(c.server.ctx)
	defer cancel()
	c.begin(nil)
	other(ctx, h.peer, &wire.Rest{Conn: c.stream, R: h.r})
}

// setSocketBuffer enlarges a unix socket's buffer; the other way the client's
// counts. TCP sizes its own, and would stop to if told.
func setSocketBuffer(nc net.Conn) {
	s, ok := nc.(*socket)
	if !ok {
		return
	}
	if u, ok := s.Conn.(*net.UnixConn); ok {
		u.SetWriteBuffer(socketBufferBytes)
	}
}

// limit begins the time limit of the handshake, unless drain has set its own.
func (c *conn) limit() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.draining {
		c.SetDeadline(time.Now().Add(c.server.opts.HandshakeTimeout))
	}
}

// begin ends the time limit of the handshake.
func (c *conn) begin(w *window) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.SetDeadline(time.Time{})
	c.handshaken, c.window = true, w
	if c.draining {
		c.drainWindow()
	}
}

// drainWindow ends what came after the handshake; mu is held.
func (c *conn) drainWindow() {
	if c.window == nil {
		c.Close()
		return
	}
	c.window.drain()
}

// drain has the connection end soon: a handshake within lingerTime, a
// transmission when all that it accepted is answered, another protocol at once. It
// does not wait.
func (c *conn) drain() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.draining {
		return
	}
	c.draining = true
	if c.handshaken {
		c.drainWindow()
	} else {
		c.SetDeadline(time.Now().Add(lingerTime))
	}
}

// wakeReader makes the reader's next or current read of the socket fail.
func (c *conn) wakeReader() { c.SetReadDeadline(time.Unix(1, 0)) }

// notify tells a client under TLS that nothing was cut off.
func (c *conn) notify() {
	if s, ok := c.stream.(*tlsStream); ok {
		c.SetWriteDeadline(time.Now().Add(lingerTime))
		s.Conn.CloseWrite()
	}
}

// linger tells the client that nothing more comes, and waits a little for it
// to hang up.
func (c *conn) linger() {
	c.SetWriteDeadline(time.Now().Add(lingerTime))
	half, ok := c.stream.(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil {
		return
	}
	c.SetReadDeadline(time.Now().Add(lingerTime))
	io.Copy(io.Discard, c.Conn)
}
