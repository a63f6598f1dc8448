package main

import (
	"strings"
	"testing"
	"time"
)

func TestQEMU(t *testing.T) {
	for _, c := range []struct{ disk, network, address, want string }{
		{"vm1", "unix", "/run/a,b.sock", "driver=nbd,node-name=plinth-vm1,export=vm1,server.type=unix,server.path=/run/a,,b.sock,reconnect-delay=2,discard=unmap"},
		{"a.b", "tcp", "[::1]:10809", "driver=nbd,node-name=plinth-a.b,export=a.b,server.type=inet,server.host=::1,server.port=10809,reconnect-delay=2,discard=unmap"},
		{"a", "vsock", "10809", "driver=nbd,node-name=plinth-a,export=a,server.type=vsock,server.cid=2,server.port=10809,reconnect-delay=2,discard=unmap"},
		{"vm1@tue,since=mon", "unix", "/s", "driver=nbd,node-name=plinth-vm1-tue-since-m-b45746cb,export=vm1@tue,,since=mon,server.type=unix,server.path=/s,reconnect-delay=2,read-only=on"},
	} {
		if got := qemuBlockdev(c.disk, c.network, c.address, 1500*time.Millisecond); got != c.want {
			t.Errorf("%s\n%s, want\n%s", c.disk, got, c.want)
		}
	}
	long := strings.Repeat("x", 128)
	if a, b := qemuNode(long), qemuNode(long[:127]+"y"); len(a) > nodeBytesMax || len(b) > nodeBytesMax || a == b {
		t.Errorf("nodes %s and %s", a, b)
	}
	if a, b := qemuNode("vm1@mon"), qemuNode("vm1-mon"); a == b || len(a) > nodeBytesMax || strings.Contains(a, "@") {
		t.Errorf("nodes %s and %s", a, b)
	}
	for text, want := range map[string]string{"a=b,c:1": "a=b,c:1", "a b": "'a b'", "it's": `'it'\''s'`, "": "''"} {
		if got := shellQuote(text); got != want {
			t.Errorf("%q: %s", text, got)
		}
	}
}
