package client

import (
	"context"
	"fmt"
	"net"

	"plinth/nbd/internal/wire"
)

// Change has the server of conn, on which nothing was exchanged yet, go over to
// another protocol, by an option that it knows (nbd.Options.Others), and returns the
// connection to go on with: conn itself, or TLS on it. On error conn is closed; where
// the server does not know the option that is ErrUnsupported. Bounds as for Dial.
func Change(ctx context.Context, conn net.Conn, option uint32, o Options) (net.Conn, error) {
	s, err := negotiate(ctx, conn, o.withDefaults(), func(s *session) error {
		return s.option(option, nil, func(typ uint32, _ []byte) error {
			return fmt.Errorf("%w: reply type %#x", ErrProtocol, typ)
		})
	})
	if err != nil {
		return nil, fmt.Errorf("change the protocol at %s: %w", conn.RemoteAddr(), err)
	}
	return &wire.Rest{Conn: s.conn, R: s.r}, nil
}
