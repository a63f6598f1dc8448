package attach

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/mdlayher/genetlink"
	"github.com/mdlayher/netlink"
)

// The driver's interface: include/uapi/linux/nbd-netlink.h of Linux.
const (
	familyName    = "nbd"
	familyVersion = 1
	groupName     = "nbd_mc_group"

	cmdConnect     = 1
	cmdDisconnect  = 2
	cmdReconfigure = 3
	cmdLinkDead    = 4

	attrIndex       = 1
	attrSize        = 2
	attrBlockSize   = 3
	attrTimeout     = 4
	attrServerFlags = 5
	attrSockets     = 7
	attrDeadTimeout = 8
	attrBackend     = 10

	attrSocketItem = 1
	attrSocketFD   = 1
)

// driver is a connection to the kernel's NBD driver.
type driver struct {
	conn   *genetlink.Conn
	family genetlink.Family
}

func openDriver() (*driver, error) {
	conn, err := genetlink.Dial(nil)
	if err != nil {
		return nil, fmt.Errorf("netlink: %w", err)
	}
	family, err := conn.GetFamily(familyName)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			err = ErrNoDriver
		}
		return nil, errors.Join(err, conn.Close())
	}
	return &driver{conn, family}, nil
}

func (d *driver) Close() error { return d.conn.Close() }

// request is what a command says of a device; what is zero is left out.
type request struct {
	index       *uint32
	size        int64 // bytes
	blockSize   uint32
	timeout     uint64 // seconds
	deadTimeout uint64 // seconds
	flags       uint16
	sockets     []int
	backend     string
}

func (r *request) encode() ([]byte, error) {
	e := netlink.NewAttributeEncoder()
	if r.index != nil {
		e.Uint32(attrIndex, *r.index)
	}
	for _, a := range []struct {
		attr  uint16
		value uint64
	}{
		{attrSize, uint64(r.size)}, {attrBlockSize, uint64(r.blockSize)}, {attrTimeout, r.timeout},
		{attrServerFlags, uint64(r.flags)}, {attrDeadTimeout, r.deadTimeout},
	} {
		if a.value != 0 {
			e.Uint64(a.attr, a.value)
		}
	}
	if len(r.sockets) > 0 {
		e.Nested(attrSockets, func(list *netlink.AttributeEncoder) error {
			for _, fd := range r.sockets {
				list.Nested(attrSocketItem, func(item *netlink.AttributeEncoder) error {
					item.Uint32(attrSocketFD, uint32(fd))
					return nil
				})
			}
			return nil
		})
	}
	if r.backend != "" {
		e.String(attrBackend, r.backend)
	}
	return e.Encode()
}

// do sends a command, waits for its acknowledgement, and returns the device that
// an answer names, if one does.
func (d *driver) do(command uint8, r request) (index uint32, err error) {
	data, err := r.encode()
	if err != nil {
		return 0, err
	}
	m := genetlink.Message{Header: genetlink.Header{Command: command, Version: familyVersion}, Data: data}
	answers, err := d.conn.Execute(m, d.family.ID, netlink.Request|netlink.Acknowledge)
	if err != nil {
		return 0, err
	}
	for _, a := range answers {
		if i, ok := indexOf(a); ok {
			index = i
		}
	}
	return index, nil
}

// indexOf returns the device that a message is about.
func indexOf(m genetlink.Message) (uint32, bool) {
	d, err := netlink.NewAttributeDecoder(m.Data)
	if err != nil {
		return 0, false
	}
	for d.Next() {
		if d.Type() == attrIndex {
			index := d.Uint32()
			return index, d.Err() == nil
		}
	}
	return 0, false
}

// joinDeaths makes deaths return messages.
func (d *driver) joinDeaths() error {
	for _, g := range d.family.Groups {
		if g.Name == groupName {
			return d.conn.JoinGroup(g.ID)
		}
	}
	return fmt.Errorf("%w: it has no group %s", ErrNoDriver, groupName)
}

// deaths blocks until connections have died and reports whether some may have
// been of a device. It ends with an error when the driver is closed.
func (d *driver) deaths(index uint32) (bool, error) {
	messages, _, err := d.conn.Receive()
	if err != nil {
		return false, err
	}
	for _, m := range messages {
		if i, ok := indexOf(m); ok && m.Header.Command == cmdLinkDead && i == index {
			return true, nil
		}
	}
	return false, nil
}
