package wire

import (
	"bufio"
	"crypto/rand"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"net"
	"os"
	"testing"
	"time"

	"plinth/datanode"
)

// crude is a client that says what a test wants.
type crude struct {
	*testing.T
	t  *tls.Conn
	in *bufio.Reader
}

func newCrude(t *testing.T, b *bench, h hello) *crude {
	t.Helper()
	o := b.ca.config(t, Identity{testCluster, RoleAdmin, "crude"})
	o.ServerName, o.NextProtos, o.InsecureSkipVerify = testNode, []string{protocol}, true
	c, err := tls.Dial("tcp", b.v.address, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	h.versions = versions{1, 1}
	if err := putGreeting(c, helloMagic, &h, visitHello); err != nil {
		t.Fatal(err)
	}
	var w welcome
	if err := getGreeting(c, welcomeMagic, &w, visitWelcome); err != nil || w.refusal.Code != 0 {
		t.Fatalf("%+v, %v", w, err)
	}
	return &crude{t, c, bufio.NewReader(c)}
}

func newID() (id [16]byte) {
	_, _ = rand.Read(id[:])
	return id
}

func (c *crude) say(h header, body ...byte) {
	c.Helper()
	b := make([]byte, headerBytes)
	h.put(b)
	if _, err := c.t.Write(append(b, body...)); err != nil {
		c.Fatal(err)
	}
}

// status asks for the status, as call seq of a slot.
func (c *crude) status(slot uint16, seq uint64) {
	c.Helper()
	c.say(header{length: timeoutBytes, kind: kindRequest, call: Status, slot: slot, seq: seq}, 0, 0, 0, 0)
}

// hear returns the next frame that is no ping.
func (c *crude) hear() (header, []byte, error) {
	for {
		f, h, err := readFrame(c.in, nil)
		if err != nil {
			return h, nil, err
		}
		if h.kind != kindPing {
			return h, f.message(), nil
		}
	}
}

func (c *crude) wants(k kind, slot uint16, seq uint64) []byte {
	c.Helper()
	h, body, err := c.hear()
	if err != nil || h.kind != k || h.slot != slot || h.seq != seq {
		c.Fatalf("got %+v, %v; want kind %d in slot %d, number %d", h, err, k, slot, seq)
	}
	return body
}

// Whoever breaks the rules is cut off, and nobody else notices.
func TestRuleBreakersAreCutOff(t *testing.T) {
	b := newBench(t, ServerOptions{}, ClientOptions{})
	for name, breach := range map[string]func(c *crude){
		"a slot that there is not":   func(c *crude) { c.status(slotsMax, 1) },
		"a cancel of such a slot":    func(c *crude) { c.say(header{kind: kindCancel, slot: slotsMax, seq: 1}) },
		"a request without deadline": func(c *crude) { c.say(header{kind: kindRequest, call: Status, seq: 1}) },
		"an unknown call":            func(c *crude) { c.say(header{length: 4, kind: kindRequest, call: callTop, seq: 1}, 0, 0, 0, 0) },
		"a reply":                    func(c *crude) { c.say(header{kind: kindReply, call: Status, seq: 1}) },
		"an unknown kind":            func(c *crude) { c.say(header{kind: 99}) },
		"too long a frame":           func(c *crude) { c.say(header{length: FrameBytesMax, kind: kindRequest, call: Append}) },
		"another call under the same number": func(c *crude) {
			c.status(0, 1)
			c.wants(kindReply, 0, 1)
			c.say(header{length: timeoutBytes, kind: kindRequest, call: RegistryList, seq: 1}, 0, 0, 0, 0)
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCrude(t, b, hello{session: newID(), fresh: true})
			breach(c)
			if h, _, err := c.hear(); err == nil {
				t.Errorf("the server answers with %+v", h)
			}
		})
	}
	if _, err := b.c.Status(t.Context()); err != nil {
		t.Error(err)
	}
}

// Connections that say nothing do not keep out those who are in, and take no more
// places than there are for handshakes.
func TestHandshakesAreBounded(t *testing.T) {
	b := newBench(t, ServerOptions{}, ClientOptions{BackOffMax: backOffMin})
	var silent []net.Conn
	for range handshakesMax {
		c, err := net.Dial("tcp", b.v.address)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		silent = append(silent, c)
	}
	more, err := net.Dial("tcp", b.v.address)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = more.Close() }()
	_ = more.SetDeadline(time.Now().Add(handshakeWait / 2))
	if n, err := more.Read(make([]byte, 1)); n != 0 || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("one connection more gave %d bytes, %v", n, err)
	}
	if _, err := b.c.Status(t.Context()); err != nil {
		t.Error(err)
	}
	for _, c := range silent {
		_ = c.Close()
	}
	b.proxy.cut() // and those who come back are let in
	if _, err := b.c.Status(t.Context()); err != nil {
		t.Error(err)
	}
}

// A request that makes no sense gets an error and costs nothing else; calls that
// are older than what the slot has seen are passed over, and one that was
// cancelled before it came is not begun.
func TestSlotsOfAServer(t *testing.T) {
	b := newBench(t, ServerOptions{}, ClientOptions{})
	session := newID()
	c := newCrude(t, b, hello{session: session, fresh: true})
	c.say(header{length: timeoutBytes + 3, kind: kindRequest, call: RegistryGet, slot: 1, seq: 1}, make([]byte, timeoutBytes+3)...)
	var e datanode.Error
	if _, bad := decode(c.wants(kindError, 1, 1), &e, mistake); bad != nil || e.Code != datanode.CodeInvalid {
		t.Errorf("a bad request gave %+v, %v", e, bad)
	}
	c.status(2, 5)
	c.wants(kindReply, 2, 5)
	c.status(2, 4)
	c.status(2, 6)
	c.wants(kindReply, 2, 6)

	c.say(header{kind: kindCancel, slot: 3, seq: 1})
	c.wants(kindError, 3, 1)
	c.status(3, 1)
	if _, bad := decode(c.wants(kindError, 3, 1), &e, mistake); bad != nil || e.Code != datanode.CodeTimeout {
		t.Errorf("a call that was cancelled before it came gave %+v, %v", e, bad)
	}

	// Another connection of the session is answered for what was asked on the first.
	again := newCrude(t, b, hello{session: session})
	again.status(3, 1)
	again.wants(kindError, 3, 1)
	// The session's successor is let in when it is over, and the session is not.
	next := newCrude(t, b, hello{session: newID(), previous: session, fresh: true})
	next.status(0, 1)
	next.wants(kindReply, 0, 1)
	if h, _, err := again.hear(); err != nil || h.kind != kindGoodbye {
		t.Errorf("the end of a session is told by %+v, %v", h, err)
	}
	if _, _, err := again.hear(); err == nil {
		t.Errorf("the connection goes on: %v", err)
	}
}

// A reply that is too large for what is kept is not kept: whoever asks again is
// told that the outcome is unknown, and what was called is not called again.
func TestKeptRepliesAreBounded(t *testing.T) {
	s := &Server{opts: ServerOptions{}.filled()}
	x := newSession(s, newID(), Identity{})
	for i := range x.places {
		p := &x.places[i]
		*p = place{seq: 1, state: running, call: Lookup}
		f := newFrame(64 << 10)
		binary.LittleEndian.PutUint32(f.buf, uint32(len(f.buf)-headerBytes))
		x.settle(p, f, true)
	}
	kept := 0
	for i := range x.places {
		if x.places[i].reply != nil {
			kept++
		}
	}
	if kept != keptBytesMax/(64<<10) || x.kept != keptBytesMax {
		t.Errorf("%d replies of %d bytes are kept", kept, x.kept)
	}
	for i := range x.places {
		x.forget(&x.places[i])
	}
	if x.kept != 0 {
		t.Errorf("%d bytes are kept of nothing", x.kept)
	}
}
