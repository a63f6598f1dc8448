package nbd

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"time"
)

// Options are a Server's tunables. The zero value is right; a number that is
// zero or negative means its default.
type Options struct {
	// Logger gets a line per connection and per violation of the protocol.
	// Default: slog.Default().
	Logger *slog.Logger
	// Errno translates errors of devices that do not use this package's
	// sentinels. 0 means "not known", and the built-in table decides.
	// Default: nil.
	Errno func(error) Errno
	// TLS lets clients start TLS with STARTTLS; LoadTLS and WatchTLS make one. It is not
	// changed. Default: nil, no TLS.
	TLS *tls.Config
	// TLSRequired refuses clients that do not start TLS, those on unix sockets
	// apart, which the socket's permissions let in. It needs TLS.
	TLSRequired bool
	// Allow says whether a client may see and use an export, by its canonical
	// name; Grants has one. It is called at once and often. Default: nil, all
	// may use all.
	Allow func(p Peer, export string) bool
	// Others are protocols of the caller's own that a client may go over to in the
	// handshake, by the number of an option that is none of this protocol's, without
	// data. When it is acknowledged the function has the connection, from the next byte
	// on, until it returns; the server closes c then, and earlier where it stops, and ends
	// ctx. Client.Change is the other end. Default: none.
	Others map[uint32]func(ctx context.Context, p Peer, c net.Conn)
	// ConnectionsMax bounds the connections of all listeners together; further
	// ones are closed at once. Default: 1024.
	ConnectionsMax int
	// HandshakeTimeout bounds the time from accept to transmission.
	// Default: 10 s.
	HandshakeTimeout time.Duration
	// RequestsMax bounds the requests in flight on one connection; further
	// ones are left unread. Default: 128, what the Linux client sends.
	RequestsMax int
	// BytesInFlightMax bounds the payload buffers of one connection; further
	// requests are left unread, but a single request always goes.
	// Default: 64 MiB.
	BytesInFlightMax int64
	// RequestTimeout ends the context of a device call, up to a sixteenth
	// later; what the device then returns is answered, EIO as a rule. One that
	// does not return within a sixteenth more is answered EIO, and if it may
	// still change the export, no other change is taken until it returns.
	// Default: 2 min.
	RequestTimeout time.Duration
}

const (
	connectionsMaxDefault   = 1024
	handshakeTimeoutDefault = 10 * time.Second
	requestsMaxDefault      = 128
	bytesInFlightMaxDefault = 64 << 20
	requestTimeoutDefault   = 2 * time.Minute
)

func (o Options) withDefaults() Options {
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.TLS != nil {
		o.TLS = o.TLS.Clone()
		o.TLS.DynamicRecordSizingDisabled = true // replies are written at once
	}
	if o.ConnectionsMax <= 0 {
		o.ConnectionsMax = connectionsMaxDefault
	}
	if o.HandshakeTimeout <= 0 {
		o.HandshakeTimeout = handshakeTimeoutDefault
	}
	if o.RequestsMax <= 0 {
		o.RequestsMax = requestsMaxDefault
	}
	if o.BytesInFlightMax <= 0 {
		o.BytesInFlightMax = bytesInFlightMaxDefault
	}
	if o.RequestTimeout <= 0 {
		o.RequestTimeout = requestTimeoutDefault
	}
	return o
}
