package main

import (
	"errors"
	"fmt"
	"iter"
	"net"
	"strings"

	"plinth/internal/api"
	"plinth/nbd/vsock"
)

// vsockPrefix begins the address of a VM socket in the value of --nbd.
const vsockPrefix = "vsock:"

// splitAddress returns network and address of HOST:PORT or vsock:[CID:]PORT.
func splitAddress(text string) (network, address string) {
	if address, ok := strings.CutPrefix(text, vsockPrefix); ok {
		return vsock.Network, address
	}
	return "tcp", text
}

// checkAddress finds what nobody could listen on.
func checkAddress(text string) error {
	network, address := splitAddress(text)
	if network == vsock.Network {
		return vsock.Check(address)
	}
	return api.CheckHostPort(address)
}

// addressOf is how --nbd has the address of a listener that is not a unix socket.
func addressOf(l net.Listener) string {
	if a := l.Addr(); a.Network() == vsock.Network {
		return vsockPrefix + a.String()
	}
	return l.Addr().String()
}

// listenAddress listens on HOST:PORT or vsock:[CID:]PORT.
func listenAddress(text string) (net.Listener, error) {
	network, address := splitAddress(text)
	if network == vsock.Network {
		return vsock.Listen(address)
	}
	return net.Listen("tcp", address)
}

// addresses are those of --nbd, one by one.
func (s *server) addresses() iter.Seq[string] {
	return func(yield func(string) bool) {
		for text := range strings.SplitSeq(s.nbdAddr, ",") {
			if text != "" && !yield(text) {
				return
			}
		}
	}
}

// listenNBD opens the sockets, or takes those that systemd has opened instead.
func (s *server) listenNBD() ([]net.Listener, error) {
	out, err := passedSockets()
	if err != nil {
		return nil, err
	}
	if len(out) > 0 {
		s.describe(out)
		return out, nil
	}
	for text := range s.addresses() {
		l, err := listenAddress(text)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("serve NBD: %w: choose another address with --nbd", err), closeAll(out))
		}
		out = append(out, l)
	}
	l, err := api.ListenUnix(s.nbdSocket)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("serve NBD: %w: choose another path with --nbd-socket", err), closeAll(out))
	}
	out = append(out, l)
	s.describe(out)
	return out, nil
}

// describe says where the listeners are, which is known only now for a port that
// the kernel chose.
func (s *server) describe(listeners []net.Listener) {
	s.nbdSocket = ""
	var addresses []string
	for _, l := range listeners {
		if a, ok := l.Addr().(*net.UnixAddr); ok {
			s.nbdSocket = a.Name
		} else {
			addresses = append(addresses, addressOf(l))
		}
	}
	s.nbdAddr = strings.Join(addresses, ",")
}

func closeAll(listeners []net.Listener) error {
	var errs []error
	for _, l := range listeners {
		errs = append(errs, l.Close())
	}
	return errors.Join(errs...)
}
