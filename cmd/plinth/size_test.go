package main

import (
	"math/rand/v2"
	"testing"
)

func TestSizes(t *testing.T) {
	for text, want := range map[string]int64{
		"0": 0, "512": 512, "4K": 4096, "4k": 4096, "10G": 10 << 30, "10GiB": 10 << 30, "1gb": 1 << 30, "2T": 2 << 40, "8191P": 8191 << 50,
	} {
		if got, err := parseSize(text); err != nil || got != want {
			t.Errorf("%q: %d, %v; want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "G", "-1", "1.5G", "10X", "8192P", "1e3", "9223372036854775808", "1 G"} {
		if got, err := parseSize(text); err == nil {
			t.Errorf("%q is taken for %d", text, got)
		}
	}
	for n, want := range map[int64]string{0: "0", 1023: "1023", 1024: "1K", 10 << 30: "10G", 1536 << 20: "1.5G", 1<<40 - 1: "1T", 123456789: "118M"} {
		if got := formatSize(n); got != want {
			t.Errorf("%d is written %q, want %q", n, got, want)
		}
	}
	for range 1000 {
		n := rand.Int64N(1000) << (10 * rand.IntN(6))
		if back, err := parseSize(formatSize(n)); err != nil || back != n {
			t.Errorf("%d is written %q and read as %d, %v", n, formatSize(n), back, err)
		}
	}
}
