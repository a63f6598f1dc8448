package wire

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	mrand "math/rand/v2"
	"net"
	"sync"
	"time"

	"plinth/datanode"
)

// link keeps one connection to the node: one path, for small calls or for bulk.
type link struct {
	client           *Client
	network, address string
	bulk             bool

	mu   sync.Mutex
	conn *conn // nil while there is none
}

func (l *link) current() *conn {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.conn
}

func (l *link) set(c *conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.conn = c
}

// run connects, again and again, until the client ends.
func (l *link) run() {
	c := l.client
	defer c.tasks.Done()
	pause := time.Duration(0)
	for c.Err() == nil {
		conn, err := l.connect()
		if err == nil {
			began := time.Now()
			c.join(l, conn)
			err = conn.run(nil, l.receive)
			c.part(l, conn, err)
			if time.Since(began) > c.opts.BackOffMax {
				pause = 0
			}
		} else {
			c.failed(l, err)
		}
		pause = min(max(2*pause, backOffMin), c.opts.BackOffMax)
		select {
		case <-c.life.Done():
		case <-time.After(pause - time.Duration(mrand.Int64N(int64(pause/2)))):
		}
	}
}

// receive takes a frame from the node.
func (l *link) receive(h header, f *frame) error {
	c := l.client
	switch h.kind {
	case kindReply, kindError:
	case kindGoodbye:
		var why datanode.Error
		_, err := decode(f.message(), &why, mistake)
		f.release()
		if err != nil {
			return err
		}
		return fmt.Errorf("the node says goodbye: %w", &why)
	default:
		f.release()
		return fmt.Errorf("frame of kind %d from a node", h.kind)
	}
	if int(h.slot) >= len(c.slots) {
		f.release()
		return fmt.Errorf("reply in slot %d", h.slot)
	}
	s := &c.slots[h.slot]
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.taken || s.seq != h.seq {
		f.release() // to a call that was sent twice
		return nil
	}
	c.answer(s, result{head: h, reply: f})
	return nil
}

// connect makes a connection and joins the client's session.
func (l *link) connect() (*conn, error) {
	c := l.client
	ctx, cancel := context.WithTimeout(c.life, handshakeWait)
	defer cancel()
	nc, err := c.opts.Dial(ctx, l.network, l.address)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = nc.SetDeadline(time.Unix(1, 0)) })
	raw := newStream(nc, c.opts.Keepalive.WriteWait)
	conn, err := l.greet(ctx, tls.Client(raw, c.tls), raw)
	if err == nil && !stop() {
		err = ctx.Err()
	}
	if err != nil {
		stop()
		if conn != nil {
			conn.end(err)
		}
		_ = nc.Close()
		return nil, err
	}
	return conn, nil
}

// greet is the handshake.
func (l *link) greet(ctx context.Context, t *tls.Conn, raw *stream) (*conn, error) {
	c := l.client
	if err := t.HandshakeContext(ctx); err != nil {
		return nil, refused(err)
	}
	c.mu.Lock()
	h := hello{
		versions: c.opts.versions, features: features, pool: c.opts.Pool, session: c.session, previous: c.previous,
		fresh: c.fresh, bulk: l.bulk, name: c.opts.Node,
	}
	c.mu.Unlock()
	if err := putGreeting(t, helloMagic, &h, visitHello); err != nil {
		return nil, err
	}
	var w welcome
	if err := getGreeting(t, welcomeMagic, &w, visitWelcome); err != nil {
		return nil, refused(err)
	}
	peer, err := peerOf(t, c.opts.Cluster)
	switch {
	case err != nil:
		return nil, err
	case peer.Role != RoleDataNode:
		return nil, datanode.Errorf(datanode.ErrForbidden, "the peer is %s, no data node", peer)
	case c.opts.Node != "" && peer.Name != c.opts.Node:
		return nil, datanode.Errorf(datanode.ErrWrongCluster, "the peer is %s, not node %s", peer, c.opts.Node)
	case c.restarted(w.boot, peer):
		return nil, datanode.ErrRestarted
	case w.refusal.Code == datanode.CodeOutcome:
		c.lost(h.session)
		return nil, &w.refusal
	case w.refusal.Code != 0 || w.refusal.Text != "":
		return nil, datanode.Errorf(&w.refusal, "the node refuses this client")
	case w.version < h.versions.low || w.version > h.versions.high:
		return nil, datanode.Errorf(datanode.ErrVersion, "the node chose version %d of %d to %d", w.version, h.versions.low, h.versions.high)
	case c.opts.Pool != [16]byte{} && w.pool != c.opts.Pool:
		return nil, datanode.Errorf(datanode.ErrWrongCluster, "the node is of pool %x, not of pool %x", w.pool, c.opts.Pool)
	case w.slots < 2 || w.slots > slotsMax || w.bytes < 1<<20:
		return nil, datanode.Errorf(datanode.ErrInvalid, "the node offers %d slots and %d bytes", w.slots, w.bytes)
	}
	if err := c.welcomed(&h, &w, peer); err != nil {
		return nil, err
	}
	release, err := c.opts.Guard.watch(t)
	if err != nil {
		return nil, err
	}
	conn := newConn(t, raw, peer, l.bulk, c.opts.Keepalive)
	conn.session, conn.stop = h.session, func() { release() }
	return conn, nil
}

// refused marks what the other end says of this side's certificate, which it
// does as an alert of TLS.
func refused(err error) error {
	var alert *net.OpError
	if errors.As(err, &alert) && alert.Op == "remote error" {
		return datanode.Errorf(datanode.ErrForbidden, "the node refuses the certificate: %v", err)
	}
	return err
}

// restarted ends the client if the node is another process than it was. A node
// that refuses the connection early does not say.
func (c *Client) restarted(boot [16]byte, peer Identity) bool {
	c.mu.Lock()
	is := c.known && boot != [16]byte{} && boot != c.boot
	c.mu.Unlock()
	if is {
		c.opts.Logger.Warn("data node was restarted", "node", peer.Name)
		c.perish(datanode.ErrRestarted)
	}
	return is
}

// welcomed notes what the node has said of itself and of the session.
func (c *Client) welcomed(h *hello, w *welcome, peer Identity) error {
	c.mu.Lock()
	switch {
	case c.dead != nil:
		c.mu.Unlock()
		return c.dead
	case c.session != h.session:
		c.mu.Unlock()
		return errors.New("the session was given up meanwhile")
	case !c.fresh && w.instance != c.instance:
		c.mu.Unlock()
		c.lost(h.session)
		return datanode.ErrOutcome
	}
	if !c.known {
		c.known, c.boot, c.name, c.features = true, w.boot, peer.Name, w.features
		c.prepare(int(w.slots), int64(w.bytes))
	}
	c.fresh, c.instance = false, w.instance
	c.mu.Unlock()
	return nil
}

// lost begins a new session where the node has given up the one before. Calls
// that change something and that it may have carried out fail.
func (c *Client) lost(session [16]byte) {
	c.renewing.Lock()
	defer c.renewing.Unlock()
	c.mu.Lock()
	if c.session != session || c.dead != nil {
		c.mu.Unlock()
		return
	}
	c.opts.Logger.Warn("data node has given up the session", "node", c.name)
	c.previous, c.fresh = c.session, true
	_, _ = rand.Read(c.session[:]) // never fails
	c.mu.Unlock()
	for _, l := range c.links {
		if conn := l.current(); conn != nil {
			conn.end(errors.New("the node has given up the session"))
		}
	}
	c.eachSlot(func(s *slot) {
		s.conn = nil
		switch {
		case s.waiter == nil: // nothing of it will happen any more
			c.answer(s, result{})
		case s.unsettled():
			c.breaks()
			c.answer(s, result{err: datanode.Errorf(datanode.ErrOutcome, "%s: the node has given up the session", s.call)})
		}
		s.sent = false
	})
}

// join takes a new connection into use: calls that have none are sent.
func (c *Client) join(l *link, conn *conn) {
	c.renewing.Lock()
	defer c.renewing.Unlock()
	c.mu.Lock()
	if c.dead != nil || c.session != conn.session {
		c.mu.Unlock()
		conn.end(errors.New("the session has ended"))
		return
	}
	l.set(conn)
	c.up++
	if c.up == 1 {
		select {
		case <-c.cut:
			c.cut = make(chan struct{})
		default:
		}
	}
	c.closeFirst()
	c.mu.Unlock()
	c.resend()
}

// part notes the end of a connection; others take its calls over.
func (c *Client) part(l *link, conn *conn, why error) {
	c.mu.Lock()
	joined := l.current() == conn
	if joined {
		l.set(nil)
		c.up--
		if c.up == 0 {
			c.downFrom = time.Now()
		}
	}
	c.last = fmt.Errorf("%s: %w", l.address, why)
	closed := c.dead != nil
	c.mu.Unlock()
	if !closed {
		c.opts.Logger.Info("connection to a data node has ended", "node", c.name, "path", l.address, "bulk", l.bulk, "err", why)
	}
	c.eachSlot(func(s *slot) {
		if s.conn == conn {
			s.conn = nil
		}
	})
	c.resend()
}

// resend sends the calls that have no connection, if there is one.
func (c *Client) resend() {
	c.eachSlot(func(s *slot) {
		if s.conn == nil {
			if to := c.pick(s.bulk); to != nil {
				s.transmit(to)
			}
		}
	})
}

// failed notes an attempt that failed.
func (c *Client) failed(l *link, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last = fmt.Errorf("%s: %w", l.address, err)
	if c.known || c.dead != nil {
		return
	}
	for _, final := range []*datanode.Error{datanode.ErrForbidden, datanode.ErrWrongCluster, datanode.ErrVersion, datanode.ErrBusy} {
		if errors.Is(err, final) {
			c.dead = datanode.AsError(c.last)
			c.closeFirst()
		}
	}
}

// pick returns a connection for a call: small ones take the first path that
// works, bulk takes one after the other, and either takes the other's if there
// is no other.
func (c *Client) pick(bulk bool) *conn {
	offset := 0
	if bulk {
		offset = int(c.turn.Add(1)) * 2
	}
	var any *conn
	for i := range c.links {
		l := c.links[(i+offset)%len(c.links)]
		conn := l.current()
		switch {
		case conn == nil:
		case l.bulk == bulk:
			return conn
		case any == nil:
			any = conn
		}
	}
	return any
}

// watch lets callers go who have waited too long for a connection.
func (c *Client) watch() {
	defer c.tasks.Done()
	tick := time.NewTicker(max(c.opts.UnreachableAfter/16, time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case <-c.life.Done():
			return
		case <-tick.C:
		}
		c.mu.Lock()
		late := c.known && c.up == 0 && time.Since(c.downFrom) > c.opts.UnreachableAfter
		if late {
			c.breaks()
			c.closeCut()
		}
		c.mu.Unlock()
		if late {
			c.eachSlot(func(s *slot) {
				switch {
				case s.waiter == nil:
				case s.unsettled():
					c.desert(s, datanode.Errorf(datanode.ErrOutcome, "%s: data node %s cannot be reached", s.call, c.name))
				default:
					c.desert(s, datanode.Errorf(datanode.ErrUnreachable, "%s: node %s", s.call, c.name))
				}
			})
		}
	}
}
