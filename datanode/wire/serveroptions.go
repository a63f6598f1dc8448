package wire

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"time"
)

// ServerOptions says how a node is served. TLS, Cluster and Name are needed;
// the rest of the zero value is right.
type ServerOptions struct {
	// TLS has the node's certificate and the authorities for clients. It is made
	// strict: TLS 1.3, client certificates required. Its callbacks serve for
	// certificates that change and for revocation.
	TLS *tls.Config
	// Cluster is what certificates must name, and Name this node.
	Cluster, Name string
	// Guard cuts clients whose certificates are withdrawn; nil for none.
	Guard Guard
	// Allow says which roles may do which calls; nil: hosts all, admins ReadCalls.
	Allow map[Role]CallSet
	// SessionTimeout is how long a session lives without a connection; 30 s if 0.
	// It is longer than a handshake may take.
	SessionTimeout time.Duration
	// HandlersMax bounds the calls that run at a time, 256 if 0, and
	// SessionHandlersMax those of one session, 64 if 0.
	HandlersMax, SessionHandlersMax int
	// SessionsMax bounds sessions, 256 if 0, and ConnsMax connections, 1024 if 0.
	SessionsMax, ConnsMax int
	// RequestBytesMax and ReplyBytesMax bound the requests and the replies to reads
	// that are in memory, over all sessions; 512 MiB if 0.
	RequestBytesMax, ReplyBytesMax int64
	Keepalive                      Keepalive
	// Logger gets what an operator should know; slog.Default if nil.
	Logger *slog.Logger

	versions versions // a test's; zero for this package's
}

// handshakeWait is how long a handshake may take, TLS included.
const handshakeWait = 10 * time.Second

func (o ServerOptions) filled() ServerOptions {
	if o.Allow == nil {
		o.Allow = map[Role]CallSet{RoleHost: AllCalls, RoleAdmin: ReadCalls}
	}
	if o.SessionTimeout == 0 {
		o.SessionTimeout = 30 * time.Second
	}
	for _, v := range []struct {
		field *int
		usual int
	}{{&o.HandlersMax, 256}, {&o.SessionHandlersMax, 64}, {&o.SessionsMax, 256}, {&o.ConnsMax, 1024}} {
		if *v.field == 0 {
			*v.field = v.usual
		}
	}
	for _, field := range []*int64{&o.RequestBytesMax, &o.ReplyBytesMax} {
		if *field == 0 {
			*field = 512 << 20
		}
	}
	o.Keepalive = o.Keepalive.filled()
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.versions == (versions{}) {
		o.versions = versions{VersionMin, VersionMax}
	}
	return o
}

// Validate returns an error for options out of bounds.
func (o ServerOptions) Validate() error {
	o = o.filled()
	self := Identity{o.Cluster, RoleDataNode, o.Name}
	switch {
	case o.Cluster == "" || o.Name == "" || len(self.String()) > nameBytesMax:
		return errors.New("a server of the wire needs the names of its cluster and its node")
	case o.SessionTimeout <= handshakeWait:
		return fmt.Errorf("sessions of %v: they must be longer than a handshake, %v", o.SessionTimeout, handshakeWait)
	case o.HandlersMax < 0 || o.SessionHandlersMax < 0 || o.SessionsMax < 0 || o.ConnsMax < 0:
		return errors.New("a negative bound")
	case o.RequestBytesMax < sessionBytes || o.ReplyBytesMax < sessionReplyBytes:
		return fmt.Errorf("memory for %d bytes of requests and %d of replies: one session takes %d", o.RequestBytesMax, o.ReplyBytesMax, sessionBytes)
	}
	return o.Keepalive.validate()
}
