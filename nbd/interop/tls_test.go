package interop

import (
	"bytes"
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"plinth/nbd"
	"plinth/nbd/nbdtest"
)

// qemu-img, nbdcopy and nbdinfo with certificates; those without the right one
// are refused, and so is everything without TLS.
func TestTLS(t *testing.T) {
	a := nbdtest.NewAuthority(t)
	server, client, expired, none := t.TempDir(), t.TempDir(), t.TempDir(), t.TempDir()
	a.Write(server, "server", "127.0.0.1", time.Now().Add(time.Hour))
	a.Write(client, "client", "host1", time.Now().Add(time.Hour))
	a.Write(expired, "client", "host1", time.Now().Add(-time.Minute))
	a.Write(none, "other", "host1", time.Now().Add(time.Hour))
	stranger := t.TempDir()
	nbdtest.NewAuthority(t).Write(stranger, "client", "host1", time.Now().Add(time.Hour))
	ca, err := os.ReadFile(filepath.Join(server, "ca-cert.pem"))
	if err == nil {
		err = os.WriteFile(filepath.Join(stranger, "ca-cert.pem"), ca, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	config, err := nbd.LoadTLS(server)
	if err != nil {
		t.Fatal(err)
	}
	h := serveOptions(t, "tcp", evenDiskBytes, nbd.Options{TLS: config, TLSRequired: true,
		Allow: nbd.Grants{"host1": {"disk"}}.Allow})
	uri := func(export, dir string) string { return "nbds://" + h.addr + "/" + export + "?tls-certificates=" + dir }
	host, port, err := net.SplitHostPort(h.addr)
	if err != nil {
		t.Fatal(err)
	}
	qemu := func(dir string, args ...string) []string {
		return append(args, "--object", "tls-creds-x509,id=tls0,endpoint=client,dir="+dir,
			"--image-opts", "driver=raw,file.driver=nbd,file.host="+host+",file.port="+port+",file.export=disk,file.tls-creds=tls0")
	}

	file, content := image(t, 16<<20)
	run(t, "nbdcopy", "--connections=4", "--requests=16", file, uri("disk", client))
	h.check(t, content)
	out := filepath.Join(t.TempDir(), "out")
	run(t, "nbdcopy", "--connections=4", uri("disk", client), out)
	if got, err := os.ReadFile(out); err != nil || !bytes.Equal(got[:len(content)], content) {
		t.Errorf("what came out is not what went in: %v", err)
	}
	if got := run(t, "nbdinfo", "--json", uri("disk", client)); !bytes.Contains(got, []byte(`"TLS": true`)) {
		t.Errorf("nbdinfo: %s", got)
	}
	if got := run(t, "qemu-img", qemu(client, "info")...); !bytes.Contains(got, []byte("96 MiB")) {
		t.Errorf("qemu-img info: %s", got)
	}
	args := append([]string{"convert", "-O", "raw"}, qemu(client)...)
	run(t, "qemu-img", append(args, out)...)
	if got, err := os.ReadFile(out); err != nil || !bytes.Equal(got[:len(content)], content) {
		t.Errorf("what qemu-img read is not what went in: %v", err)
	}

	for name, args := range map[string][]string{
		"no certificate":          {"nbdinfo", uri("disk", none)},
		"expired certificate":     {"nbdinfo", uri("disk", expired)},
		"another authority's":     {"nbdinfo", uri("disk", stranger)},
		"an export not granted":   {"nbdinfo", uri("fixed", client)},
		"nbdinfo without TLS":     {"nbdinfo", h.uri("disk")},
		"qemu-img without TLS":    {"qemu-img", "info", h.uri("disk")},
		"qemu-img, no credential": append([]string{"qemu-img"}, qemu(none, "info")...),
	} {
		ctx, cancel := context.WithTimeout(t.Context(), programTime)
		out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput()
		cancel()
		if err == nil || ctx.Err() == context.DeadlineExceeded || strings.Contains(string(out), "virtual size") {
			t.Errorf("%s: %v: %s", name, err, out)
		}
	}
}
