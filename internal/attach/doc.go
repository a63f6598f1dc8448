// Package attach makes disks block devices of this machine's kernel, through the
// generic netlink interface of its NBD driver (Linux 5.14 or newer, root).
//
// A device is /dev/nbdN: N is its index. The kernel does the transmission; this
// package does the handshakes, hands the sockets over, and as a keeper hands over
// new ones when connections die. The kernel remembers what a device is attached to
// as its backend, a word of ours (identity) that names the disk and not the
// server's address, so a device never changes its disk, whoever keeps it.
//
// Two times bound an outage. A request that was sent over a connection that died
// is sent again after Options.RequestTimeout: the kernel looks no sooner. Requests
// while no connection is alive wait for up to Options.DeadTimeout, and then fail.
//
// Each keeper is one goroutine and one more that waits for the kernel's
// messages; both end with Keep. Of several keepers of one device one works and
// the others are refused (ErrKept). Without a keeper a device works until its
// connections die.
//
// A disk that was made larger is larger in the kernel after Attach, or the next
// reconnection. Servers without our growing of open connections would refuse what
// lies beyond the old size.
package attach
