package nbd

import (
	"net"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// hangUpTime is how often a reader that waits for room looks whether its client
// has hung up.
const hangUpTime = 250 * time.Millisecond

// watchHangUp ends the device calls of the connection if its client hangs up
// before stop is called: for a reader that does not read meanwhile and so would not
// notice. Such a client may have sent its requests again over another connection,
// and what waits here would be done after them.
func (t *transmission) watchHangUp() (stop func()) {
	var mu sync.Mutex // guards timer, nil once stopped
	var timer *time.Timer
	mu.Lock()
	defer mu.Unlock()
	timer = time.AfterFunc(hangUpTime, func() {
		mu.Lock()
		defer mu.Unlock()
		switch {
		case timer == nil:
		case hungUp(t.conn.Conn):
			t.cancel()
		default:
			timer.Reset(hangUpTime)
		}
	})
	return func() {
		mu.Lock()
		defer mu.Unlock()
		timer.Stop()
		timer = nil
	}
}

// hungUp reports whether the peer sends no more, also before everything that it
// sent is read.
func hungUp(nc net.Conn) bool { return polled(nc, unix.POLLRDHUP) }

// sentMore reports whether something waits to be read.
func sentMore(nc net.Conn) bool { return polled(nc, unix.POLLIN) }

// polled reports one of some events of a connection. What cannot tell says no.
func polled(nc net.Conn, events int16) bool {
	if over, ok := nc.(interface{ NetConn() net.Conn }); ok { // TLS
		nc = over.NetConn()
	}
	sc, ok := nc.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return false
	}
	is := false
	err = raw.Control(func(fd uintptr) {
		fds := []unix.PollFd{{Fd: int32(fd), Events: events}}
		n, err := unix.Poll(fds, 0)
		is = err == nil && n > 0
	})
	return err == nil && is
}
