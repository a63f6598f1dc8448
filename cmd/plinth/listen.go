package main

import (
	"errors"
	"fmt"
	"iter"
	"net"
	"strings"

	"plinth/internal/api"
	"plinth/internal/handover"
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

// listenNBD opens the sockets of NBD, unless a predecessor or systemd has passed
// some.
func (s *server) listenNBD() error {
	if len(s.sockets) > 0 {
		s.describe()
		return nil
	}
	passed, err := passedSockets()
	if err != nil {
		return err
	}
	for _, l := range passed {
		if err := s.add(l, false); err != nil {
			return err
		}
	}
	if len(passed) > 0 {
		s.describe()
		return nil
	}
	for text := range s.addresses() {
		l, err := listenAddress(text)
		if err == nil {
			err = s.add(l, true)
		}
		if err != nil {
			return fmt.Errorf("serve NBD: %w: choose another address with --nbd", err)
		}
	}
	l, err := api.ListenUnix(s.nbdSocket)
	if err == nil {
		err = s.add(l, true)
	}
	if err != nil {
		return fmt.Errorf("serve NBD: %w: choose another path with --nbd-socket", err)
	}
	s.describe()
	return nil
}

// add takes over a listener of NBD; owned as for handover.NewSocket.
func (s *server) add(l net.Listener, owned bool) error {
	socket, err := handover.NewSocket(l, owned)
	if err != nil {
		return errors.Join(err, l.Close())
	}
	s.sockets = append(s.sockets, socket)
	return nil
}

// describe says where the listeners are, which is known only now for a port that
// the kernel chose.
func (s *server) describe() {
	s.nbdSocket = ""
	var addresses []string
	for _, l := range s.sockets {
		if a, ok := l.Addr().(*net.UnixAddr); ok {
			s.nbdSocket = a.Name
		} else {
			addresses = append(addresses, addressOf(l))
		}
	}
	s.nbdAddr = strings.Join(addresses, ",")
}

// closeSockets closes those that are not handed over.
func (s *server) closeSockets() error {
	var errs []error
	for _, l := range s.sockets {
		errs = append(errs, l.Close())
	}
	return errors.Join(errs...)
}
