package interop

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// qmp is a QEMU that does what it is told.
type qmp struct {
	in       io.Writer
	out      *json.Decoder
	said     *strings.Builder // its complaints, complete when it has ended
	happened []event          // and not yet awaited
}

// event is what QEMU tells of a job; other events have no device.
type event struct {
	Name string `json:"event"`
	Data struct {
		Device string
		Error  string
	}
}

// startQEMU starts one without a machine that ends with the test.
func startQEMU(t *testing.T) *qmp {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), programTime)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", "-machine", "none", "-nodefaults", "-display", "none", "-qmp", "stdio")
	q := &qmp{said: new(strings.Builder)}
	cmd.Stderr = q.said
	var err error
	if q.in, err = cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		_ = cmd.Wait() // it was killed, if it has not quit
	})
	q.greet(t, out)
	return q
}

// dialQEMU connects to one that listens on a socket.
func dialQEMU(t *testing.T, socket string) *qmp {
	t.Helper()
	var c net.Conn
	var err error
	for deadline := time.Now().Add(programTime); ; time.Sleep(20 * time.Millisecond) {
		if c, err = net.Dial("unix", socket); err == nil {
			break
		} else if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { c.Close() })
	q := &qmp{in: c, said: new(strings.Builder)}
	q.greet(t, c)
	return q
}

func (q *qmp) greet(t *testing.T, out io.Reader) {
	t.Helper()
	q.out = json.NewDecoder(out)
	var greeting json.RawMessage
	if err := q.out.Decode(&greeting); err != nil {
		t.Fatalf("QMP: %v\n%s", err, q.said)
	}
	q.do(t, "qmp_capabilities", nil)
}

// arguments are a command's.
type arguments = map[string]any

// do runs a command, which must succeed, and returns what it does.
func (q *qmp) do(t *testing.T, command string, args arguments) json.RawMessage {
	t.Helper()
	request := arguments{"execute": command}
	if args != nil {
		request["arguments"] = args
	}
	text, err := json.Marshal(request)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Fprintf(q.in, "%s\n", text); err != nil {
		t.Fatalf("QMP: %v\n%s", err, q.said)
	}
	for {
		var m struct {
			event
			Return *json.RawMessage
			Error  *struct{ Desc string }
		}
		switch err := q.out.Decode(&m); {
		case err != nil:
			t.Fatalf("%s: %v\n%s", text, err, q.said)
		case m.Error != nil:
			t.Fatalf("%s: %s", text, m.Error.Desc)
		case m.Return != nil:
			return *m.Return
		}
		q.happened = append(q.happened, m.event)
	}
}

// wait returns when a job is there, and fails the test where it has an error.
func (q *qmp) wait(t *testing.T, name, job string) {
	t.Helper()
	for {
		for len(q.happened) > 0 {
			e := q.happened[0]
			q.happened = q.happened[1:]
			if e.Data.Device != job {
				continue
			}
			if e.Data.Error != "" || e.Name == "BLOCK_JOB_ERROR" {
				t.Fatalf("%s of %s: %s", e.Name, job, e.Data.Error)
			}
			if e.Name == name {
				return
			}
		}
		var e event
		if err := q.out.Decode(&e); err != nil {
			t.Fatalf("wait for %s: %v\n%s", name, err, q.said)
		}
		q.happened = append(q.happened, e)
	}
}

// addFile makes an image file a node.
func (q *qmp) addFile(t *testing.T, node, format, path string, more arguments) {
	t.Helper()
	options := arguments{"node-name": node, "driver": format, "file": arguments{"driver": "file", "filename": path}}
	for k, v := range more {
		options[k] = v
	}
	q.do(t, "blockdev-add", options)
}

// addDisk makes a disk of the site's a node.
func (q *qmp) addDisk(t *testing.T, node string, s *site, disk string) {
	t.Helper()
	q.do(t, "blockdev-add", arguments{
		"node-name": node, "driver": "nbd", "export": disk, "server": arguments{"type": "unix", "path": s.socket},
	})
}

// export serves a node over NBD, under its own name, for a load.
func (q *qmp) export(t *testing.T, socket, node string) {
	t.Helper()
	q.do(t, "nbd-server-start", arguments{"addr": arguments{"type": "unix", "data": arguments{"path": socket}}})
	q.do(t, "block-export-add", arguments{"type": "nbd", "id": "load", "node-name": node, "writable": true})
}
