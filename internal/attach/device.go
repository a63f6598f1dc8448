package attach

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// sysBlock is where the kernel describes block devices.
const sysBlock = "/sys/block"

// Device is an NBD device of the kernel: N of /dev/nbdN.
type Device uint32

func (d Device) String() string { return "/dev/nbd" + strconv.FormatUint(uint64(d), 10) }

// ParseDevice reads "/dev/nbd3" or "nbd3".
func ParseDevice(text string) (Device, error) {
	digits, ok := strings.CutPrefix(strings.TrimPrefix(text, "/dev/"), "nbd")
	n, err := strconv.ParseUint(digits, 10, 20) // minors have 20 bits
	if !ok || err != nil {
		return 0, fmt.Errorf("device %q: write it as /dev/nbd0", text)
	}
	return Device(n), nil
}

// folder is the kernel's description of the device.
func (d Device) folder() string { return filepath.Join(sysBlock, filepath.Base(d.String())) }

// backend returns what the device is attached to: "" for nothing or for something
// that is not ours to know.
func (d Device) backend() (string, error) {
	b, err := os.ReadFile(filepath.Join(d.folder(), "backend"))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return strings.TrimSpace(string(b)), err
}

// bytes returns the size of the device as the kernel knows it.
func (d Device) bytes() (int64, error) {
	b, err := os.ReadFile(filepath.Join(d.folder(), "size"))
	if err != nil {
		return 0, err
	}
	sectors, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	return sectors << 9, err
}
