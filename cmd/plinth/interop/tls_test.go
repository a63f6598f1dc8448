package interop

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"plinth/nbd/nbdtest"
)

// The flags for TLS: over TCP a certificate opens what it was granted, and
// without one nothing does; the unix socket stays as it is.
func TestTLS(t *testing.T) {
	a := nbdtest.NewAuthority(t)
	server, client := t.TempDir(), t.TempDir()
	a.Write(server, "server", "127.0.0.1", time.Now().Add(time.Hour))
	a.Write(client, "client", "host1", time.Now().Add(time.Hour))
	data := filepath.Join(tempDir(t), "data")
	s := start(t, data, append(small, "--nbd-tls", server, "--nbd-tls-required", "--nbd-grant", "host1=vm*", "--nbd-grant", "host1=other@mon", "--nbd-grant", "host2=*")...)
	s.command(t, "disk", "create", "other", "1G")
	for _, name := range []string{"mon", "tue"} {
		s.command(t, "snapshot", "create", "vm1", "other", "--name", name)
	}

	uri := func(disk string) string { return "nbds://" + s.tcp + "/" + disk + "?tls-certificates=" + client }
	if got := run(t, "nbdinfo", "--size", uri("vm1")); strings.TrimSpace(string(got)) != "10737418240" {
		t.Errorf("size %s", got)
	}
	args := strings.Fields(s.command(t, "qemu", "vm1", "--nbd", s.tcp, "--tls", client))
	// A node of its own would need a virtual machine: qemu-io takes the options.
	options := strings.Replace(args[3], "driver=nbd", "driver=raw,file.driver=nbd", 1)
	for _, o := range []string{"export=", "server.", "reconnect-delay=", "tls-creds="} {
		options = strings.ReplaceAll(options, ","+o, ",file."+o)
	}
	said := run(t, "qemu-io", "-"+args[0], args[1], "--image-opts", "-c", "write -P 7 0 64k", "-c", "read -P 7 0 64k", options)
	if strings.Contains(string(said), "failed") {
		t.Errorf("%s", said)
	}
	for _, granted := range []string{"vm1@mon", "vm1@tue,since=mon", "other@mon"} {
		run(t, "nbdinfo", uri(granted))
	}
	for name, uri := range map[string]string{
		"a disk not granted": uri("other"), "a snapshot not granted": uri("other@tue"), "a pair not granted": uri("other@tue,since=mon"),
		"no TLS": s.uri("tcp", "vm1"),
	} {
		if out, err := exec.CommandContext(t.Context(), "nbdinfo", uri).CombinedOutput(); err == nil {
			t.Errorf("%s is let in:\n%s", name, out)
		}
	}
	run(t, "nbdinfo", s.uri("unix", "other"))
	s.stop(t)

	for want, args := range map[string][]string{
		"--nbd-tls-required needs certificates": {"--nbd-tls-required"},
		"--nbd-tls: ":                           {"--nbd-tls", client},
		"--nbd-grant needs certificates":        {"--nbd-grant", "a=b"},
		`"ab" is not of the form NAME=PATTERN`:  {"--nbd-tls", server, "--nbd-grant", "ab"},
		`pattern "["`:                           {"--nbd-tls", server, "--nbd-grant", "a=["},
	} {
		_, complaint, code := plinth(t, nil, append([]string{"up", "--data", data}, args...)...)
		oneLine(t, complaint, code, want)
	}
}
