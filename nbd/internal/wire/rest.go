package wire

import (
	"bufio"
	"net"
)

// Rest is a connection behind its handshake, of which R may have read some already.
type Rest struct {
	net.Conn
	R *bufio.Reader
}

func (r *Rest) Read(p []byte) (int, error) { return r.R.Read(p) }
