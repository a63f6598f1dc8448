package client

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"

	"plinth/nbd/internal/wire"
)

// Entry is an export as LIST shows it.
type Entry struct {
	Name, Description string
}

// List returns the exports that the server shows.
func List(ctx context.Context, network, addr string, o Options) ([]Entry, error) {
	conn, err := dial(ctx, network, addr, o.withDefaults())
	if err != nil {
		return nil, err
	}
	return ListConn(ctx, conn, o)
}

// ListConn is List over conn, on which nothing was exchanged yet and which it
// closes.
func ListConn(ctx context.Context, conn net.Conn, o Options) ([]Entry, error) {
	var entries []Entry
	err := query(ctx, conn, o, func(s *session) error {
		return s.option(wire.OptList, nil, func(typ uint32, payload []byte) error {
			e, err := parseEntry(typ, payload)
			entries = append(entries, e)
			return err
		})
	})
	if err != nil {
		return nil, fmt.Errorf("list exports at %s: %w", conn.RemoteAddr(), err)
	}
	return entries, nil
}

// parseEntry reads one reply to LIST: name length 4, name, description.
func parseEntry(typ uint32, payload []byte) (Entry, error) {
	if typ != wire.RepServer || len(payload) < 4 {
		return Entry{}, fmt.Errorf("%w: reply type %#x of %d bytes", ErrProtocol, typ, len(payload))
	}
	n, rest := binary.BigEndian.Uint32(payload), payload[4:]
	if uint64(n) > uint64(len(rest)) {
		return Entry{}, fmt.Errorf("%w: name of %d bytes in %d", ErrProtocol, n, len(payload))
	}
	return Entry{Name: string(rest[:n]), Description: string(rest[n:])}, nil
}

// Describe asks for an export without opening it.
func Describe(ctx context.Context, network, addr, export string, o Options) (Info, error) {
	conn, err := dial(ctx, network, addr, o.withDefaults())
	if err != nil {
		return Info{}, err
	}
	return DescribeConn(ctx, conn, export, o)
}

// DescribeConn is Describe over conn, like ListConn.
func DescribeConn(ctx context.Context, conn net.Conn, export string, o Options) (Info, error) {
	var info Info
	err := query(ctx, conn, o, func(s *session) (err error) {
		info, err = s.ask(wire.OptInfo, export)
		return err
	})
	if err != nil {
		return Info{}, fmt.Errorf("describe export %q at %s: %w", export, conn.RemoteAddr(), err)
	}
	return info, nil
}

// query runs f in a handshake, ends it with ABORT, and closes conn.
func query(ctx context.Context, conn net.Conn, o Options, f func(*session) error) error {
	defer conn.Close()
	_, err := negotiate(ctx, conn, o.withDefaults(), func(s *session) error {
		if err := f(s); err != nil {
			return err
		}
		// The answer is already there: a server that hangs up instead of
		// acknowledging ABORT is within its rights.
		_ = s.option(wire.OptAbort, nil, func(uint32, []byte) error { return nil })
		return nil
	})
	return err
}
