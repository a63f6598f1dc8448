package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"plinth/internal/handover"
)

const (
	// firstPassed is the descriptor of the first socket that systemd passes on.
	firstPassed = 3
	// passedMax bounds them.
	passedMax = 64
)

// passedSockets returns the listening sockets that systemd has opened for this
// process (sd_listen_fds(3)), none without it. They outlive the process: who
// connects while it restarts waits and is not refused.
func passedSockets() ([]net.Listener, error) {
	if os.Getenv("LISTEN_PID") != strconv.Itoa(os.Getpid()) {
		return nil, nil
	}
	n, err := strconv.Atoi(os.Getenv("LISTEN_FDS"))
	if err != nil || n < 0 || n > passedMax {
		return nil, fmt.Errorf("LISTEN_FDS is %q: at most %d sockets", os.Getenv("LISTEN_FDS"), passedMax)
	}
	var out []net.Listener
	for fd := firstPassed; fd < firstPassed+n; fd++ {
		unix.CloseOnExec(fd)
		f := os.NewFile(uintptr(fd), fmt.Sprintf("socket %d", fd-firstPassed))
		l, err := handover.FileListener(f)
		err = errors.Join(err, f.Close()) // l has a descriptor of its own
		if l != nil {
			out = append(out, l)
		}
		if err != nil {
			return nil, fmt.Errorf("%s of systemd's: %w", f.Name(), err)
		}
	}
	return out, nil
}

// notifyReady tells systemd that disks are served (sd_notify(3)), if it waits
// for that.
func notifyReady() error {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return nil
	}
	conn, err := net.Dial("unixgram", path)
	if err != nil {
		return err
	}
	_, err = conn.Write([]byte("READY=1"))
	return errors.Join(err, conn.Close())
}
