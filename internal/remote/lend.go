package remote

import (
	"context"
	"crypto/tls"
	"net"

	"plinth/internal/forward"
	"plinth/internal/id"
	"plinth/internal/keyring"
	"plinth/internal/peerflash"
	"plinth/nbd"
)

// peerTLS returns what connections between hosts use. The pool's keys are the same in all
// sessions.
func (a *Agent) peerTLS(keys *keyring.Pool) (*tls.Config, error) {
	a.makeTLS.Do(func() { a.tls, a.tlsErr = forward.TLS(keys, a.opts.Name, a.opts.speaks) })
	return a.tls, a.tlsErr
}

// dialFlash is host.Options.DialFlash.
func (a *Agent) dialFlash(ctx context.Context, keys *keyring.Pool, address string) (net.Conn, error) {
	config, err := a.peerTLS(keys)
	if err != nil {
		return nil, err
	}
	return peerflash.Dial(ctx, address, config)
}

// flash serves the flash cache of the session of the moment to other hosts.
func (a *Agent) flash() map[uint32]func(context.Context, nbd.Peer, net.Conn) {
	lend := a.opts.lend
	if lend == nil {
		lend = func(fp id.Fingerprint, dst []byte) ([]byte, bool) { return a.now.Load().host.Lend(fp, dst) }
	}
	server := peerflash.NewServer(lend)
	return map[uint32]func(context.Context, nbd.Peer, net.Conn){
		peerflash.Option: func(_ context.Context, p nbd.Peer, c net.Conn) {
			if p.TLS { // by which it has proved to be of this pool
				server.Serve(c)
			}
		},
	}
}
