package handover

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"plinth/nbd/vsock"
)

// message describes the sockets that come with it, in their order.
type message struct {
	Sockets []description `json:"sockets"`
}

type description struct {
	Network string `json:"network"`
	// Address is a unix socket's path; of others it is informative.
	Address string `json:"address"`
	Owned   bool   `json:"owned"`
}

// parseMessage reads the description of n sockets.
func parseMessage(line []byte, n int) ([]description, error) {
	dec := json.NewDecoder(bytes.NewReader(line))
	dec.DisallowUnknownFields()
	var m message
	if err := dec.Decode(&m); err != nil {
		return nil, fmt.Errorf("description of sockets: %w", err)
	}
	if len(m.Sockets) != n || n > socketsMax {
		return nil, fmt.Errorf("%d sockets came with a description of %d", n, len(m.Sockets))
	}
	for _, d := range m.Sockets {
		switch {
		case d.Network != "tcp" && d.Network != "unix" && d.Network != vsock.Network:
			return nil, fmt.Errorf("a socket of network %q", d.Network)
		case d.Address == "":
			return nil, errors.New("a socket without an address")
		}
	}
	return m.Sockets, nil
}

// peer is the other side.
type peer struct {
	*net.UnixConn
	rest []byte // of what was read, after the last line
}

// send sends a line, with descriptors.
func (p *peer) send(line string, within time.Duration, files ...*os.File) error {
	if len(line) >= messageBytesMax || len(files) > socketsMax {
		return fmt.Errorf("%d bytes and %d sockets are too much for one message", len(line), len(files))
	}
	if err := p.SetDeadline(time.Now().Add(within)); err != nil {
		return err
	}
	var rights []byte
	if len(files) > 0 {
		fds := make([]int, len(files))
		for i, f := range files {
			raw, err := f.SyscallConn() // valid while files are: until the end of this call
			if err == nil {
				err = raw.Control(func(fd uintptr) { fds[i] = int(fd) })
			}
			if err != nil {
				return err
			}
		}
		rights = unix.UnixRights(fds...)
	}
	n, _, err := p.WriteMsgUnix([]byte(line+"\n"), rights, nil)
	if err == nil && n <= len(line) {
		err = io.ErrShortWrite
	}
	return err
}

// receive returns the next line, and the descriptors that came with it, which are
// the caller's. Whatever has some is awaited as a line by itself.
func (p *peer) receive(within time.Duration) (line string, files []*os.File, err error) {
	if err := p.SetDeadline(time.Now().Add(within)); err != nil {
		return "", nil, err
	}
	defer func() {
		if err != nil {
			closeFiles(files)
			files = nil
		}
	}()
	buf := append(make([]byte, 0, messageBytesMax), p.rest...)
	oob := make([]byte, unix.CmsgSpace(4*socketsMax))
	for len(buf) < cap(buf) {
		if i := bytes.IndexByte(buf, '\n'); i >= 0 {
			p.rest = buf[i+1:]
			return string(buf[:i]), files, nil
		}
		n, oobn, flags, _, err := p.ReadMsgUnix(buf[len(buf):cap(buf)], oob)
		more, ferr := received(oob[:oobn])
		files = append(files, more...)
		switch {
		case err != nil:
			return "", files, err
		case ferr != nil:
			return "", files, ferr
		case flags&unix.MSG_CTRUNC != 0 || len(files) > socketsMax:
			return "", files, fmt.Errorf("more than %d sockets in one message", socketsMax)
		case n == 0:
			return "", files, io.ErrUnexpectedEOF
		}
		buf = buf[:len(buf)+n]
	}
	return "", files, fmt.Errorf("a line of more than %d bytes", messageBytesMax)
}

// received takes the descriptors out of a control message.
func received(oob []byte) ([]*os.File, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	var files []*os.File
	for _, m := range messages {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			return files, err
		}
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "passed socket"))
		}
	}
	return files, nil
}

func closeFiles(files []*os.File) {
	for _, f := range files {
		_ = f.Close() // a copy of a descriptor: nothing is written
	}
}

// expect receives a line that must be this.
func (p *peer) expect(want string, within time.Duration) error {
	line, files, err := p.receive(within)
	closeFiles(files)
	if err == nil && line != want {
		err = fmt.Errorf("it says %.100q, not %q", line, want)
	}
	return err
}
