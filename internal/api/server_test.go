package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"plinth/internal/host"
)

// wantError requires an error answer and returns its message.
func wantError(t *testing.T, what string, resp *http.Response, status int, code string) string {
	t.Helper()
	var reply errorReply
	dec := json.NewDecoder(resp.Body)
	dec.DisallowUnknownFields()
	if err := dec.Decode(&reply); err != nil {
		t.Errorf("%s: %v", what, err)
		return ""
	}
	if resp.StatusCode != status || reply.Error.Code != code || reply.Error.Message == "" || strings.Contains(reply.Error.Message, "\n") {
		t.Errorf("%s: status %d, %+v; want %d, %s", what, resp.StatusCode, reply.Error, status, code)
	}
	return reply.Error.Message
}

func TestBadRequests(t *testing.T) {
	s := newServer(t)
	big := `{"name":"` + strings.Repeat("n", bodyBytesMax) + `","bytes":4096}`
	for _, c := range []struct {
		method, path, body string
		status             int
		code, message      string
	}{
		{"POST", "/disks", "", 400, "bad_request", "EOF"},
		{"POST", "/disks", "{", 400, "bad_request", "unexpected EOF"},
		{"POST", "/disks", "[]", 400, "bad_request", "array"},
		{"POST", "/disks", `{"name":"a","bytes":4096}{}`, 400, "bad_request", "more than one"},
		{"POST", "/disks", `{"name":"a","bytes":4096,"size":1}`, 400, "bad_request", `unknown field "size"`},
		{"POST", "/disks", `{"name":"a","bytes":"4096"}`, 400, "bad_request", "string"},
		{"POST", "/disks", `{"name":"a","bytes":9223372036854775808}`, 400, "bad_request", "bytes"},
		{"POST", "/disks", `{"name":"a","bytes":4096,"chunk_bytes":-1}`, 400, "bad_request", "chunk_bytes"},
		{"POST", "/disks", big, 413, "too_large", "65536"},
		{"POST", "/disks", `{"name":"../a","bytes":4096}`, 400, "invalid", "letters"},
		{"POST", "/disks", `{"name":"a\nb","bytes":4096}`, 400, "invalid", "letters"},
		{"POST", "/disks", `{"name":"` + strings.Repeat("n", 129) + `","bytes":4096}`, 400, "invalid", "128"},
		{"POST", "/disks", `{"name":"a","bytes":0}`, 400, "invalid", "multiple of 4 KiB"},
		{"POST", "/disks", `{"name":"a","bytes":-4096}`, 400, "invalid", "multiple of 4 KiB"},
		{"POST", "/disks", `{"name":"a","bytes":1125899906846976}`, 400, "invalid", "1 PiB"},
		{"POST", "/disks", `{"name":"a","bytes":4096,"chunk_bytes":5000}`, 400, "invalid", "chunk"},
		{"POST", "/disks", `{"name":"a","bytes":4096,"cipher":"none"}`, 400, "invalid", "none"},
		{"POST", "/verify?repair=1", "", 400, "bad_request", "true or false"},
		{"PATCH", "/disks/a", `{}`, 400, "bad_request", "one of bytes, name, limits and host"},
		{"PATCH", "/disks/a", `{"name":"b","bytes":8192}`, 400, "bad_request", "one of bytes, name, limits and host"},
		{"DELETE", "/disks/a?snapshots=yes", "", 400, "bad_request", "true or false"},
		{"POST", "/snapshots", `{"disks":"a"}`, 400, "bad_request", "disks"},
		{"POST", "/disks/a/snapshots", `{"disks":["b"]}`, 400, "bad_request", `unknown field "disks"`},
		{"POST", "/disks/a/snapshots", `{"expires":"soon"}`, 400, "bad_request", "soon"},
		{"POST", "/disks/a/snapshots", `{"labels":{"a":1}}`, 400, "bad_request", "labels"},
		{"DELETE", "/disks/a/snapshots/b?wait=no", "", 400, "bad_request", "wait is true or false"},
		{"GET", "/disks/a/diff?from=b&to=c&offset=-1", "", 400, "bad_request", "offset is a whole number"},
		{"GET", "/disks/a/diff?from=b&to=c&limit=ten", "", 400, "bad_request", "limit is a whole number"},
		{"POST", "/reclaim?full=1", "", 400, "bad_request", "full is true or false"},
		{"POST", "/reclaim?dry_run=1", "", 400, "bad_request", "dry_run is true or false"},
		{"GET", "/profile?kind=threads", "", 400, "bad_request", "kind is one of"},
		{"GET", "/profile?seconds=61", "", 400, "bad_request", "seconds are 1 to 60"},
		{"GET", "/snapshots", "", 405, "method_not_allowed", "POST"},
		{"GET", "/disks/a/snapshots/", "", 404, "not_found", "snapshots/"},
		{"GET", "/disk", "", 404, "not_found", "/api/v1/disk"},
		{"GET", "/disks/", "", 404, "not_found", "/api/v1/disks/"},
		{"PUT", "/disks", "", 405, "method_not_allowed", "GET, POST"},
		{"GET", "/verify", "", 405, "method_not_allowed", "POST"},
		{"POST", "/disks/vm1", "", 405, "method_not_allowed", "GET, PATCH, DELETE"},
	} {
		what := fmt.Sprintf("%s %s %.80s", c.method, c.path, c.body)
		resp := s.ask(c.method, prefix+c.path, c.body)
		if message := wantError(t, what, resp, c.status, c.code); !strings.Contains(message, c.message) {
			t.Errorf("%s: %q lacks %q", what, message, c.message)
		}
		if allow := resp.Header.Get("Allow"); c.status == 405 && allow != c.message {
			t.Errorf("%s: allows %q", what, allow)
		}
	}
	if disks := s.host().Disks(); len(disks) != 0 {
		t.Errorf("there are disks now: %v", disks)
	}
}

// Every class of errors has its answer, however deep it is wrapped.
func TestErrorsTable(t *testing.T) {
	for _, row := range statuses {
		status, body := classify(fmt.Errorf("outer: %w", errors.Join(row.err)))
		if status != row.status || body.Code != row.code {
			t.Errorf("%v: %d %s, want %d %s", row.err, status, body.Code, row.status, row.code)
		}
	}
	if status, body := classify(io.ErrClosedPipe); status != 500 || body.Code != "internal" {
		t.Errorf("another error: %d %v", status, body)
	}
}

// A request must arrive in time, and may then be worked on for longer.
func TestDeadlines(t *testing.T) {
	s := newServer(t)
	s.http.ReadTimeout = time.Second
	s.http.Handler = s.answer(func(w http.ResponseWriter, r *http.Request) error {
		select {
		case <-r.Context().Done():
			return r.Context().Err()
		case <-time.After(3 * s.http.ReadTimeout):
			w.WriteHeader(http.StatusNoContent)
			return nil
		}
	})
	a := s.serve(t, Address{Unix: filepath.Join(tempDir(t), "s")}, ListenOptions{})
	if err := client(t, a, ClientOptions{}).Sweep(t.Context()); err != nil {
		t.Errorf("long work: %v", err)
	}
	for _, text := range []string{"POST /api/v1/sw", "POST /api/v1/sweep HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\n{"} {
		c, err := net.Dial("unix", a.Unix)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := io.WriteString(c, text); err != nil {
			t.Fatal(err)
		}
		if err := c.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
		answer, err := io.ReadAll(c)
		if err != nil || bytes.Contains(answer, []byte("HTTP/1.1 20")) {
			t.Errorf("half a request %q: %q, %v", text, answer, err)
		}
	}
}

func TestHeaderBound(t *testing.T) {
	s := newServer(t)
	a := s.serve(t, Address{Unix: filepath.Join(tempDir(t), "s")}, ListenOptions{})
	c := client(t, a, ClientOptions{Token: strings.Repeat("x", 2*headerBytesMax)})
	if _, err := c.Status(t.Context()); err == nil || !strings.Contains(err.Error(), "431") {
		t.Errorf("a header too large: %v", err)
	}
}

// All calls of the client, over a unix socket.
func TestClient(t *testing.T) {
	s := newServer(t)
	a := s.serve(t, Address{Unix: filepath.Join(tempDir(t), "s")}, ListenOptions{})
	c, ctx := client(t, a, ClientOptions{}), t.Context()
	info, err := c.CreateDisk(ctx, CreateDisk{Name: "a.b-c", Bytes: 1 << 20, ChunkBytes: 16 << 10})
	if err != nil || info.Name != "a.b-c" || info.Bytes != 1<<20 || info.Chunk != 16<<10 {
		t.Fatalf("create: %+v, %v", info, err)
	}
	if info, err = c.ResizeDisk(ctx, "a.b-c", 2<<20); err != nil || info.Bytes != 2<<20 {
		t.Errorf("resize: %+v, %v", info, err)
	}
	if info, err = c.Disk(ctx, "a.b-c"); err != nil || info.Bytes != 2<<20 {
		t.Errorf("show: %+v, %v", info, err)
	}
	if disks, err := c.Disks(ctx); err != nil || len(disks) != 1 {
		t.Errorf("list: %+v, %v", disks, err)
	}
	if st, err := c.Status(ctx); err != nil || len(st.Node.Spindles) != 2 || st.Node.Log.CapacityBytes == 0 {
		t.Errorf("status: %+v, %v", st, err)
	}
	if err := errors.Join(c.Quiesce(ctx), c.Sweep(ctx)); err != nil {
		t.Error(err)
	}
	if r, err := c.Verify(ctx, host.VerifyOptions{Strict: true}); err != nil || !r.OK() || r.Disks != 1 {
		t.Errorf("verify: %+v, %v", r, err)
	}
	checkSnapshotCalls(t, c)
	if err := c.RemoveDisk(ctx, "a.b-c"); err != nil {
		t.Error(err)
	}
	var body *ErrorBody
	if _, err := c.Disk(ctx, "a/../b?c"); !errors.As(err, &body) || body.Code != "not_found" {
		t.Errorf("a name with signs: %v", err)
	}
	gone, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := c.Status(gone); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// checkSnapshotCalls calls all that is about snapshots of the disk a.b-c, which it
// leaves as it was.
func checkSnapshotCalls(t *testing.T, c *Client) {
	t.Helper()
	ctx := t.Context()
	expires := time.Date(2099, 1, 2, 3, 4, 5, 0, time.UTC)
	made, err := c.CreateSnapshots(ctx, CreateSnapshots{[]string{"a.b-c"}, CreateSnapshot{Name: "s.1", Labels: map[string]string{"k": "ü 1"}, Expires: &expires}})
	if err != nil || len(made) != 1 || made[0].Name != "s.1" || made[0].Labels["k"] != "ü 1" || made[0].Expires == nil || !made[0].Expires.Equal(expires) {
		t.Fatalf("create: %+v, %v", made, err)
	}
	if _, err := c.CreateSnapshots(ctx, CreateSnapshots{Disks: []string{"a.b-c"}}); err != nil {
		t.Error(err)
	}
	all, err := c.Snapshots(ctx, "a.b-c")
	if err != nil || len(all) != 2 || all[0].ID != made[0].ID || all[1].Name == "" {
		t.Fatalf("list: %+v, %v", all, err)
	}
	if s, err := c.RenameSnapshot(ctx, "a.b-c", "s.1", "s_2"); err != nil || s.Name != "s_2" || s.ID != made[0].ID {
		t.Errorf("rename: %+v, %v", s, err)
	}
	if s, err := c.Snapshot(ctx, "a.b-c", "s_2"); err != nil || s.State != "ok" || s.Bytes != 2<<20 {
		t.Errorf("show: %+v, %v", s, err)
	}
	if r, err := c.Diff(ctx, "a.b-c", "s_2", all[1].Name, 4096, 10); err != nil || len(r.Extents) != 0 || r.Bytes != 2<<20 || r.Next != 0 {
		t.Errorf("diff: %+v, %v", r, err)
	}
	clone, err := c.Clone(ctx, "a.b-c", "s_2", "clone")
	if err == nil {
		clone, err = c.RenameDisk(ctx, "clone", "clone2")
	}
	if err != nil || clone.Name != "clone2" || clone.Bytes != 2<<20 {
		t.Errorf("clone: %+v, %v", clone, err)
	}
	if d, err := c.Rollback(ctx, "a.b-c", "s_2"); err != nil || d.Snapshots != 2 {
		t.Errorf("rollback: %+v, %v", d, err)
	}
	var body *ErrorBody
	if err := c.RemoveDisk(ctx, "a.b-c"); !errors.As(err, &body) || body.Code != "in_use" {
		t.Errorf("remove a disk with snapshots: %v", err)
	}
	for _, s := range []string{"s_2", all[1].Name} {
		if err := c.RemoveSnapshot(ctx, "a.b-c", s, true); err != nil {
			t.Error(err)
		}
	}
	if err := c.RemoveSnapshot(ctx, "a.b-c", "a/b?c", false); !errors.As(err, &body) || body.Code != "not_found" {
		t.Errorf("a name with signs: %v", err)
	}
	if r, err := c.Reclaim(ctx, host.ReclaimOptions{DryRun: true, Full: true}); err != nil || r.Plan == nil {
		t.Errorf("plan: %+v, %v", r, err)
	}
	if err := c.RemoveDiskWithSnapshots(ctx, "clone2"); err != nil {
		t.Error(err)
	}
}

func TestMetrics(t *testing.T) {
	s := newServer(t)
	if _, err := s.host().CreateDisk(t.Context(), host.DiskSpec{Name: "a", Bytes: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	resp := s.ask("GET", "/metrics", "")
	text, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("status %d, %v", resp.StatusCode, err)
	}
	for _, line := range []string{`plinth_disk_up{disk="a"} 1`, `plinth_disk_size_bytes{disk="a"} 1.048576e+06`, `plinth_spindle_up{spindle="1"} 1`, "plinth_index_complete 1", "plinth_stored_bytes "} {
		if !bytes.Contains(text, []byte("\n"+line)) {
			t.Errorf("metrics lack %s", line)
		}
	}
}

// removeSnapshots removes all of a disk, of which there are some.
func removeSnapshots(t *testing.T, s *Server, disk string) {
	t.Helper()
	all, err := s.host().Snapshots(disk)
	if err != nil || len(all) == 0 {
		t.Errorf("%d snapshots, %v", len(all), err)
	}
	for _, info := range all {
		at := prefix + "/disks/" + disk + "/snapshots/" + info.Name
		if shown, gone := s.ask("GET", at, ""), s.ask("DELETE", at, ""); shown.StatusCode != 200 || gone.StatusCode != 204 {
			t.Errorf("%s: GET answers %d, DELETE %d", at, shown.StatusCode, gone.StatusCode)
		}
	}
}

// FuzzBodies sends bodies through the whole server: none may be answered as the
// server's fault, and a disk that is made can be shown and removed.
func FuzzBodies(f *testing.F) {
	s := newServer(f)
	for _, seed := range []string{
		`{"name":"a","bytes":1048576}`, `{"name":"a","bytes":4096,"chunk_bytes":65536,"cipher":"aes-256-xts","stable":true}`,
		`{"bytes":1048576}`, `{}`, `null`, `[`, `{"name":"\ud800","bytes":1e3}`, `{"NAME":"a","Bytes":4096}`, `{"name":"a","name":"b","bytes":4096}`,
		`{"name":"a","labels":{"k":"v"},"expires":"2099-01-01T00:00:00Z"}`, `{"disks":["none"],"name":"s"}`, `{"disks":["kept","kept"]}`,
		`{"disks":["kept"],"labels":{"\u0000":""}}`,
	} {
		f.Add([]byte(seed))
	}
	if _, err := s.host().CreateDisk(f.Context(), host.DiskSpec{Name: "kept", Bytes: 1 << 20}); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		for _, call := range [][2]string{
			{"PATCH", "/disks/none"}, {"POST", "/disks/none/snapshots"}, {"PATCH", "/disks/kept/snapshots/none"}, {"POST", "/disks/kept/snapshots/none/clone"},
		} {
			resp := s.ask(call[0], prefix+call[1], string(body))
			if resp.StatusCode != 400 && resp.StatusCode != 404 && resp.StatusCode != 413 {
				t.Errorf("%s %s: status %d", call[0], call[1], resp.StatusCode)
			}
		}
		resp := s.ask("POST", prefix+"/snapshots", string(body))
		if resp.StatusCode == http.StatusCreated {
			removeSnapshots(t, s, "kept")
		} else if resp.StatusCode != 400 && resp.StatusCode != 404 && resp.StatusCode != 413 {
			t.Errorf("POST /snapshots: status %d", resp.StatusCode)
		}
		resp = s.ask("POST", prefix+"/disks", string(body))
		if resp.StatusCode == http.StatusCreated {
			at := resp.Header.Get("Location")
			if shown := s.ask("GET", at, ""); shown.StatusCode != 200 {
				t.Errorf("GET %s: status %d", at, shown.StatusCode)
			}
			if gone := s.ask("DELETE", at, ""); gone.StatusCode != 204 {
				t.Errorf("DELETE %s: status %d", at, gone.StatusCode)
			}
			return
		}
		if resp.StatusCode != 400 && resp.StatusCode != 413 {
			t.Errorf("POST: status %d", resp.StatusCode)
		}
	})
}
