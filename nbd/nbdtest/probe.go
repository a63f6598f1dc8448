package nbdtest

import (
	"context"

	"plinth/nbd"
)

// Call is a call to a device. The fields that the call does not have are zero.
type Call struct {
	Op           string // read, write, trim, zero, flush
	Off, N       int64  // bytes
	MayTrim, FUA bool
}

// Probe is a device without TryReadAt whose calls go through Before first,
// which may note them, hold them up, or fail them.
type Probe struct {
	nbd.Device
	Before func(ctx context.Context, c Call) error
}

// ReadAt calls Before, then the device.
func (d *Probe) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := d.Before(ctx, Call{Op: "read", Off: off, N: int64(len(p))}); err != nil {
		return err
	}
	return d.Device.ReadAt(ctx, p, off)
}

// WriteAt calls Before, then the device.
func (d *Probe) WriteAt(ctx context.Context, p []byte, off int64, fua bool) error {
	if err := d.Before(ctx, Call{Op: "write", Off: off, N: int64(len(p)), FUA: fua}); err != nil {
		return err
	}
	return d.Device.WriteAt(ctx, p, off, fua)
}

// Trim calls Before, then the device.
func (d *Probe) Trim(ctx context.Context, off, n int64, fua bool) error {
	if err := d.Before(ctx, Call{Op: "trim", Off: off, N: n, FUA: fua}); err != nil {
		return err
	}
	return d.Device.Trim(ctx, off, n, fua)
}

// Zero calls Before, then the device.
func (d *Probe) Zero(ctx context.Context, off, n int64, mayTrim, fua bool) error {
	if err := d.Before(ctx, Call{Op: "zero", Off: off, N: n, MayTrim: mayTrim, FUA: fua}); err != nil {
		return err
	}
	return d.Device.Zero(ctx, off, n, mayTrim, fua)
}

// Flush calls Before, then the device.
func (d *Probe) Flush(ctx context.Context) error {
	if err := d.Before(ctx, Call{Op: "flush"}); err != nil {
		return err
	}
	return d.Device.Flush(ctx)
}
