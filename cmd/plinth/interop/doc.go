// Package interop tests the program as its users meet it: the built binary, its
// command line, and its disks under programs that others wrote (libnbd's tools,
// QEMU's, fio, file system checkers). It holds tests only. A missing program is
// a failure.
package interop
