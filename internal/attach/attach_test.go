package attach

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mdlayher/genetlink"

	"plinth/nbd"
	"plinth/nbd/memory"
	"plinth/nbd/nbdtest"
)

// What the kernel is told, attribute by attribute, as netlink lays them out in
// this machine's byte order: length, type, value, padding to 4 bytes.
func TestEncode(t *testing.T) {
	attr := func(typ uint16, value []byte) []byte {
		b := binary.NativeEndian.AppendUint16(nil, uint16(4+len(value)))
		b = append(binary.NativeEndian.AppendUint16(b, typ), value...)
		return append(b, make([]byte, -len(b)&3)...)
	}
	u32 := func(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }
	u64 := func(v uint64) []byte { return binary.NativeEndian.AppendUint64(nil, v) }
	const nested = 0x8000
	index := uint32(0)
	r := request{
		index: &index, size: 1 << 46, blockSize: 512, timeout: 15, deadTimeout: 600, flags: 0x16d, sockets: []int{7, 9},
		backend: "plinth: vm1, plinth disk 1",
	}
	item := func(fd uint32) []byte { return attr(attrSocketItem|nested, attr(attrSocketFD, u32(fd))) }
	want := bytes.Join([][]byte{
		attr(attrIndex, u32(0)), attr(attrSize, u64(1<<46)), attr(attrBlockSize, u64(512)), attr(attrTimeout, u64(15)),
		attr(attrServerFlags, u64(0x16d)), attr(attrDeadTimeout, u64(600)),
		attr(attrSockets|nested, append(item(7), item(9)...)), attr(attrBackend, []byte("plinth: vm1, plinth disk 1\x00")),
	}, nil)
	got, err := r.encode()
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%v\n%x, want\n%x", err, got, want)
	}
	if i, ok := indexOf(genetlink.Message{Data: got}); !ok || i != 0 {
		t.Errorf("index %d, %v", i, ok)
	}
	if _, ok := indexOf(genetlink.Message{Data: []byte{1, 2}}); ok {
		t.Error("two bytes have an index")
	}
	if got, err := (&request{}).encode(); err != nil || len(got) != 0 {
		t.Errorf("nothing to say: %x, %v", got, err)
	}
}

func TestParseDevice(t *testing.T) {
	for text, want := range map[string]Device{"/dev/nbd0": 0, "nbd15": 15, "/dev/nbd1048575": 1048575} {
		if got, err := ParseDevice(text); got != want || err != nil {
			t.Errorf("%s: %v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "/dev/nbd", "/dev/sda", "/dev/nbd0p1", "nbd-1", "nbd1048576", "3"} {
		if got, err := ParseDevice(text); err == nil {
			t.Errorf("%q is %v", text, got)
		}
	}
}

func TestValidate(t *testing.T) {
	var o Options
	if err := o.Validate(); err != nil || o.Connections == 0 || o.BlockSize == 0 || o.RequestTimeout == 0 || o.DeadTimeout == 0 {
		t.Errorf("%+v: %v", o, err)
	}
	for _, o := range []Options{
		{Connections: -1}, {Connections: connectionsMax + 1}, {BlockSize: 1024}, {RequestTimeout: time.Millisecond}, {DeadTimeout: -1}, {Network: "vsock"},
	} {
		if err := o.Validate(); err == nil {
			t.Errorf("%+v is valid", o)
		}
	}
	if got := seconds(1500 * time.Millisecond); got != 2 {
		t.Errorf("1.5 s are %d s", got)
	}
}

// Connections lead to the disk that is attached or nowhere.
func TestDial(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	exports := nbdtest.NewExports(
		nbd.Export{Name: "many", Description: "disk 1", Device: memory.New(1 << 20), MultiConn: true},
		nbd.Export{Name: "one", Description: "disk 2", Device: memory.New(1 << 20)},
	)
	server := nbd.NewServer(exports, nbd.Options{})
	served := make(chan error, 1)
	go func() { served <- server.Serve(context.Background(), l) }()
	t.Cleanup(func() {
		server.Close()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	for disk, want := range map[string]int{"many": 3, "one": 1} {
		a := &Attachment{opts: Options{Network: "unix", Address: path, Disk: disk, Connections: 3}}
		c, err := a.dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if len(c.conns) != want || len(c.fds) != want || c.info.Size != 1<<20 || !strings.HasPrefix(a.backend, "plinth: "+disk+", disk ") {
			t.Errorf("%s: %d connections, %+v, %q", disk, len(c.conns), c.info, a.backend)
		}
		c.close()
		a.backend = "plinth: " + disk + ", disk 7"
		if _, err := a.dial(t.Context()); err == nil || !strings.Contains(err.Error(), "disk 7") {
			t.Errorf("another disk of the same name: %v", err)
		}
	}
	a := &Attachment{opts: Options{Network: "unix", Address: path, Disk: "none", Connections: 3}}
	if _, err := a.dial(t.Context()); !errors.Is(err, nbd.ErrUnknownExport) {
		t.Errorf("no such disk: %v", err)
	}
}
