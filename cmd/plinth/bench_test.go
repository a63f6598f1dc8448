package main

import "testing"

func TestParseNBD(t *testing.T) {
	for uri, want := range map[string][3]string{
		"nbd+unix:///vm1?socket=/run/nbd.sock": {"unix", "/run/nbd.sock", "vm1"},
		"nbd+unix://?socket=nbd.sock":          {"unix", "nbd.sock", ""},
		"nbd://localhost/a/b":                  {"tcp", "localhost:10809", "a/b"},
		"nbd://[::1]:99/a%20b":                 {"tcp", "[::1]:99", "a b"},
		"nbd://host":                           {"tcp", "host:10809", ""},
		"nbd+vsock://3/vm1":                    {"vsock", "3:10809", "vm1"},
		"nbd+vsock://2:99/":                    {"vsock", "2:99", ""},
	} {
		network, addr, export, err := parseNBD(uri)
		if got := [3]string{network, addr, export}; err != nil || got != want {
			t.Errorf("%s is %q, %v; want %q", uri, got, err, want)
		}
	}
	for _, uri := range []string{"", "vm1", "nbd:///vm1", "nbd+unix:///vm1", "nbds://host/vm1", "nbd+vsock:///vm1", "nbd+vsock://host/vm1", "http://host/vm1", "nbd://%zz"} {
		if _, _, _, err := parseNBD(uri); err == nil {
			t.Errorf("%q: no error", uri)
		}
	}
}
