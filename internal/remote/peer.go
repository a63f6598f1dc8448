package remote

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"

	"plinth/datanode/wire"
	"plinth/internal/forward"
	"plinth/internal/host"
	"plinth/internal/id"
	"plinth/nbd"
)

// PeerOptions say where other hosts reach this one, to serve their clients the disks
// that it has.
type PeerOptions struct {
	// Listen is the address to listen on, HOST:PORT. Default: none, and clients cannot
	// follow a disk that moves to this host or from it.
	Listen string
	// Address is what others are told, HOST:PORT. Default: where it listens, and where
	// that is everywhere, this machine's address on the way to the data node.
	Address string
}

// peerServer serves this agent's disks to other hosts. nil serves nobody.
type peerServer struct {
	listener net.Listener
	told     string
	server   *nbd.Server // once it serves
	work     sync.WaitGroup
}

// listenPeers opens the listener. nodes are the data node's addresses.
func listenPeers(o PeerOptions, nodes []string) (*peerServer, error) {
	if o.Listen == "" {
		return nil, nil
	}
	l, err := net.Listen("tcp", o.Listen)
	if err != nil {
		return nil, fmt.Errorf("serve other hosts: %w: choose another address with --peer-listen", err)
	}
	p := &peerServer{listener: l, told: o.Address}
	if p.told == "" {
		p.told = reachedAt(l.Addr().String(), nodes)
	}
	return p, nil
}

// reachedAt returns where others reach a listener.
func reachedAt(listener string, nodes []string) string {
	host, port, err := net.SplitHostPort(listener)
	if ip := net.ParseIP(host); err != nil || ip != nil && !ip.IsUnspecified() {
		return listener
	}
	for _, n := range nodes {
		network, address := wire.SplitPath(n)
		if network != "tcp" {
			continue
		}
		c, err := net.Dial("udp", address) // which sends nothing: it asks for the route
		if err != nil {
			continue
		}
		host, _, err := net.SplitHostPort(c.LocalAddr().String())
		if _ = c.Close(); err == nil {
			return net.JoinHostPort(host, port)
		}
	}
	return net.JoinHostPort("127.0.0.1", port) // the data node is on this machine
}

func (p *peerServer) address() string {
	if p == nil {
		return ""
	}
	return p.told
}

// serve begins to serve an agent whose first session has begun.
func (p *peerServer) serve(a *Agent) {
	if p == nil {
		return
	}
	p.server = nbd.NewServer(forward.NewExports(peers{a}), nbd.Options{
		Logger: a.log.With("to", "peers"), Errno: host.Errno, TLS: a.tls, TLSRequired: true,
		Others: a.flash(),
	})
	p.work.Go(func() {
		if err := p.server.Serve(a.life, p.listener); err != nil {
			a.log.Error("other hosts are served no more", "err", err)
		}
	})
}

// close ends connections; their hosts look for the disks elsewhere.
func (p *peerServer) close() {
	if p == nil {
		return
	}
	if p.server != nil {
		p.server.Close()
	}
	_ = p.listener.Close() // a server that served has closed it
	p.work.Wait()
}

// peers are the disks that this process serves, for other hosts: forward.Disks.
type peers struct{ agent *Agent }

// peerName is how hosts name a disk to each other, or with a suffix a snapshot: by its
// number, as a disk may be renamed.
func peerName(d id.Disk, suffix string) string { return strconv.FormatUint(uint64(d), 16) + suffix }

func parsePeerName(name string) (d id.Disk, suffix string, err error) {
	number, snapshot, is := strings.Cut(name, "@")
	n, err := strconv.ParseUint(number, 16, 63)
	if err != nil {
		return 0, "", fmt.Errorf("%w: peers name disks by their numbers, not %.100q", nbd.ErrUnknownExport, name)
	}
	if is {
		suffix = "@" + snapshot
	}
	return id.Disk(n), suffix, nil
}

// Open implements forward.Disks.
func (p peers) Open(ctx context.Context, name string) (nbd.Export, func(error) bool, func(), error) {
	d, suffix, err := parsePeerName(name)
	if err != nil {
		return nbd.Export{}, nil, nil, err
	}
	s := p.agent.now.Load()
	at, err := s.host.Here(ctx, d, suffix)
	if err != nil {
		if s.broken() || errors.Is(err, host.ErrClosed) {
			err = fmt.Errorf("%w: %w", nbd.ErrShutdown, err)
		}
		return nbd.Export{}, nil, nil, nbdError(err)
	}
	e := at.Export
	e.Name = name
	of := here{s}
	return e, func(err error) bool { return gone(of, err) }, at.Release, nil
}
