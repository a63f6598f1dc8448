// Package interop tests server and client with programs that others wrote:
// libnbd's tools, QEMU's, fio and nbdkit. It holds tests only. A missing
// program is a failure.
package interop
