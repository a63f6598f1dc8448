package interop

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// Three processes serve one after another, while a QEMU that reconnects writes
// and others connect all the time: no request fails, nobody is refused, and
// what was written is there.
func TestTakeOver(t *testing.T) {
	h := newJobHouse(t, true)
	h.do(t, "blockdev-add", arguments{
		"node-name": "disk", "driver": "nbd", "export": "vm", "reconnect-delay": 60,
		"server": arguments{"type": "unix", "path": h.socket},
	})
	l := h.load(t, "disk")
	ctx, cancel := context.WithCancel(t.Context())
	var callers sync.WaitGroup
	for network, address := range map[string]string{"unix": h.socket, "tcp": h.tcp} {
		callers.Go(func() {
			for ; ctx.Err() == nil; time.Sleep(2 * time.Millisecond) {
				c, err := net.Dial(network, address)
				if err != nil {
					t.Errorf("a connection to %s was refused: %v", address, err)
					return
				}
				c.Close()
			}
		})
	}
	for range 2 {
		old := h.site
		began := time.Now()
		h.site = start(t, old.data, append(small, "--take-over")...)
		t.Logf("took over in %v", time.Since(began))
		if h.tcp != old.tcp || h.socket != old.socket || h.api != old.api {
			t.Errorf("serves on %s, %s and %s, was %s, %s and %s", h.tcp, h.socket, h.api, old.tcp, old.socket, old.api)
		}
		select {
		case <-old.done:
		case <-time.After(stopTime):
			t.Fatalf("the old process stays\n%s", old.said)
		}
		if old.err != nil || strings.Contains(old.said.String(), "level=ERROR") || !strings.Contains(old.said.String(), "handed over") {
			t.Fatalf("the old process ended with %v\n%s", old.err, old.said)
		}
		l.await(t, 200)
	}
	cancel()
	callers.Wait()
	l.pause()
	h.equalDisk(t, h.model)
	h.end(t)
	if _, err := os.Stat(h.socket); err == nil {
		t.Error("its socket is left")
	}
}

// Without the flag a second process is refused and told of it; with it, and
// nobody there, it starts as always, also where another died. Without the root key
// it does not ask, and who does not answer is left alone.
func TestTakeOverRefused(t *testing.T) {
	data := filepath.Join(tempDir(t), "data")
	s := start(t, data, append(small, "--take-over")...)
	_, complaint, code := plinth(t, nil, append([]string{"up", "--data", data}, small...)...)
	oneLine(t, complaint, code, "another process has")
	oneLine(t, complaint, code, "--take-over")
	key := filepath.Join(data, "root.key")
	if err := os.Rename(key, key+".away"); err != nil {
		t.Fatal(err)
	}
	_, complaint, code = plinth(t, nil, append([]string{"up", "--data", data, "--take-over"}, small...)...)
	oneLine(t, complaint, code, "take over: ")
	if err := os.Rename(key+".away", key); err != nil {
		t.Fatal(err)
	}
	run(t, "nbdinfo", s.uri("unix", "vm1")) // it goes on
	s.kill()
	s = start(t, data, append(small, "--take-over")...)
	s.stop(t)

	l, err := net.Listen("unix", filepath.Join(data, "up.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, complaint, code = plinth(t, nil, append([]string{"up", "--data", data, "--take-over"}, small...)...)
	oneLine(t, complaint, code, "up.sock: it does not answer: stop it")
}
