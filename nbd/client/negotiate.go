package client

import (
	"context"
	"errors"
	"fmt"
	"net"
)

// Negotiate opens export over conn, on which nothing was exchanged yet, and
// leaves conn in transmission, with simple replies, to whoever goes on with it:
// the Linux kernel, which knows no others. On error conn is closed. Bounds as for
// Dial.
func Negotiate(ctx context.Context, conn net.Conn, export string, o Options) (Info, error) {
	var info Info
	s, err := negotiate(ctx, conn, o.withDefaults(), func(s *session) (err error) {
		info, err = s.open(export)
		return err
	})
	if err == nil && s.r.Buffered() > 0 {
		err = errors.Join(fmt.Errorf("%w: bytes after the handshake", ErrProtocol), conn.Close())
	}
	if err != nil {
		return Info{}, fmt.Errorf("open export %q at %s: %w", export, conn.RemoteAddr(), err)
	}
	return info, nil
}
