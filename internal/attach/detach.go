package attach

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
)

// Detach ends the attachment of a disk to a device, after what was written to the
// device is on stable media. A device that is mounted, or used by another device, is
// ErrInUse and stays attached; force detaches it all the same, and does not wait
// for writes: they fail.
func Detach(device Device, force bool) error {
	backend, err := device.backend()
	if err != nil {
		return err
	}
	if !strings.HasPrefix(backend, backendPrefix) {
		return fmt.Errorf("%v: %w", device, ErrNotAttached)
	}
	d, err := openDriver()
	if err != nil {
		return err
	}
	defer d.Close()
	if !force {
		f, err := settle(device)
		if err != nil {
			return err
		}
		defer f.Close()
	}
	if _, err := d.do(cmdDisconnect, request{index: (*uint32)(&device)}); err != nil {
		return fmt.Errorf("detach %v: %w", device, err)
	}
	return nil
}

// settle returns the device, held for nobody else to mount, with all writes done.
func settle(device Device) (*os.File, error) {
	f, err := os.OpenFile(device.String(), os.O_RDONLY|os.O_EXCL, 0)
	if errors.Is(err, syscall.EBUSY) {
		return nil, fmt.Errorf("%v: %w: unmount it first", device, ErrInUse)
	}
	if err != nil {
		return nil, err
	}
	if err := f.Sync(); err != nil {
		return nil, errors.Join(fmt.Errorf("sync %v: %w", device, err), f.Close())
	}
	return f, nil
}
