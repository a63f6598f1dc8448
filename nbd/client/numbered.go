package client

import (
	"context"
	"fmt"

	"plinth/nbd"
	"plinth/nbd/internal/wire"
)

// NumberMax bounds the numbers of changes.
const NumberMax = 1<<(64-slotBits) - 1

// NumberOf returns the number in a cookie that a client has sent.
func NumberOf(cookie uint64) uint64 { return cookie >> slotBits }

// Numbered returns the export for one change, a WriteAt, Trim or Zero, which is one
// request that has the number, 1 to NumberMax, in its cookie: for servers that know it by
// that when it is sent again (nbd.Numberer).
func (c *Client) Numbered(number uint64) nbd.Device { return numbered{c, number} }

type numbered struct {
	*Client
	number uint64
}

func (n numbered) change(ctx context.Context, q question) error {
	if n.info.Form != Extended || len(q.write) > int(n.info.PayloadBytesMax) || q.flags&wire.CmdFlagFUA != 0 && n.info.Flags&wire.FlagSendFUA == 0 {
		return fmt.Errorf("numbered %s: %w", opName(q.cmd), ErrUnsupported) // it would be several requests
	}
	q.number = n.number
	return n.call(ctx, q)
}

func fuaFlag(fua bool) uint16 {
	if fua {
		return wire.CmdFlagFUA
	}
	return 0
}

func (n numbered) WriteAt(ctx context.Context, p []byte, off int64, fua bool) error {
	return n.change(ctx, question{cmd: wire.CmdWrite, flags: fuaFlag(fua), off: off, n: int64(len(p)), write: p})
}

func (n numbered) Trim(ctx context.Context, off, bytes int64, fua bool) error {
	return n.change(ctx, question{cmd: wire.CmdTrim, flags: fuaFlag(fua), off: off, n: bytes})
}

func (n numbered) Zero(ctx context.Context, off, bytes int64, mayTrim, fua bool) error {
	flags := fuaFlag(fua)
	if !mayTrim {
		flags |= wire.CmdFlagNoHole
	}
	return n.change(ctx, question{cmd: wire.CmdWriteZeroes, flags: flags, off: off, n: bytes})
}
