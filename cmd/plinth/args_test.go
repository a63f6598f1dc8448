package main

import (
	"slices"
	"strings"
	"testing"
)

func TestFlagsFirst(t *testing.T) {
	for _, c := range [][2]string{
		{"plinth", "plinth"},
		{"plinth --version", "plinth --version"},
		{"plinth disk", "plinth disk"},
		{"plinth disk --help", "plinth disk --help"},
		{"plinth disk ls --json", "plinth disk ls --json"},
		{"plinth disk create vm2 1G --chunk 8K", "plinth disk create --chunk 8K -- vm2 1G"},
		{"plinth disk create vm2 --chunk=8K 1G --json", "plinth disk create --chunk=8K --json -- vm2 1G"},
		{"plinth disk create --json vm2 1G", "plinth disk create --json -- vm2 1G"},
		{"plinth disk create vm2 1G -chunk 8K", "plinth disk create -chunk 8K -- vm2 1G"},
		{"plinth disk create vm2 1G --bogus 8K", "plinth disk create --bogus -- vm2 1G 8K"},
		{"plinth disk create vm2 1G --chunk", "plinth disk create --chunk -- vm2 1G"},
		{"plinth disk rm -- --json", "plinth disk rm -- --json"},
		{"plinth disk rm -", "plinth disk rm -- -"},
		{"plinth snapshot create a b --label x=y --label z=", "plinth snapshot create --label x=y --label z= -- a b"},
		{"plinth snapshot rm a@b --wait", "plinth snapshot rm --wait -- a@b"},
		{"plinth reclaim --dry-run", "plinth reclaim --dry-run"},
		{"plinth disk rm up", "plinth disk rm -- up"},
		{"plinth disk show --generate-bash-completion", "plinth disk show --generate-bash-completion"},
		{"plinth up -v --data d", "plinth up -v --data d"},
		{"plinth nothing --data d", "plinth --data -- nothing d"},
	} {
		got := flagsFirst(newApp().Commands, strings.Fields(c[0]))
		if want := strings.Fields(c[1]); !slices.Equal(got, want) {
			t.Errorf("%q becomes %q, want %q", c[0], got, want)
		}
	}
	if got := flagsFirst(newApp().Commands, nil); len(got) != 0 {
		t.Errorf("nothing becomes %q", got)
	}
}
