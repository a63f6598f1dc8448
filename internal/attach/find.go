package attach

import (
	"path/filepath"
	"strings"
)

// Find returns the device that a disk of this name is attached to, whatever
// server the disk is on.
func Find(disk string) (Device, bool, error) {
	return search(func(backend string) bool { return strings.HasPrefix(backend, backendOf(disk, "")) })
}

// backendOf is what the kernel is told of a disk. The description names the disk by
// its pool and its number there, which is never used twice.
func backendOf(name, description string) string { return backendPrefix + name + ", " + description }

// search returns the first device whose backend is wanted.
func search(wanted func(backend string) bool) (Device, bool, error) {
	paths, err := filepath.Glob(filepath.Join(sysBlock, "nbd*"))
	if err != nil {
		return 0, false, err
	}
	for _, p := range paths {
		d, err := ParseDevice(filepath.Base(p))
		if err != nil {
			continue // not one of the driver's names
		}
		backend, err := d.backend()
		if err != nil || wanted(backend) {
			return d, err == nil, err
		}
	}
	return 0, false, nil
}
