// Package guest boots virtual machines for tests: a Debian kernel and a shell
// script in an initramfs, under QEMU's software emulation. So the kernel's NBD
// client and its file systems can be tested on machines without that driver,
// without KVM and without root.
//
// A guest is described by Options, runs from Start until it powers itself off or
// Kill, and ends with the status of its script. Its console is kept, and Await
// waits for words on it: that is how a test and a script take turns. The machine's
// loopback is 10.0.2.2 inside (Host).
//
// The kernel is Debian's package, fetched once into a cache of the user and
// unpacked and decompressed there, never installed. Programs come from this machine with the
// libraries that ldd names.
//
// One goroutine reads a guest's console; it ends with the guest. A guest whose
// Timeout is over is killed.
package guest
