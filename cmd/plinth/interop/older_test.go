package interop

import (
	"flag"
	"math/rand/v2"
	"path/filepath"
	"testing"
)

var older = flag.String("older", "", "a plinth of an earlier commit, for TestOlderProgram")

// running has what starts during f run this program.
func running(program string, f func()) {
	was := executable
	defer func() { executable = was }()
	executable = program
	f()
}

// flash gives a host a cache that others may read.
func flash(p *pair, name string) []string {
	return []string{"--cache", filepath.Join(p.dir, name+".flash"), "--cache-size", "48M"}
}

// An earlier program beside this one, as data node and as host: a disk moves between the
// hosts under clients at both, its host is killed, and then all run this program. All
// hosts have flash caches.
func TestOlderProgram(t *testing.T) {
	if *older == "" {
		t.Skip("-older names a program of an earlier commit: just older")
	}
	old, err := filepath.Abs(*older)
	if err != nil {
		t.Fatal(err)
	}
	for name, programs := range map[string][3]string{ // data node, h1, h2
		"an older data node":          {old, executable, executable},
		"older hosts":                 {executable, old, old},
		"an older host":               {executable, old, executable},
		"an older data node and host": {old, executable, old},
	} {
		t.Run(name, func(t *testing.T) {
			var p *pair
			running(programs[0], func() { p = &pair{split: newSplit(t, 1)} })
			for i, name := range []string{"h1", "h2"} {
				p.join(t, "host", name)
				running(programs[1+i], func() { p.hosts = append(p.hosts, p.begin(t, name, flash(p, name)...)) })
			}
			all := newLoaders()
			noErrors(t, "while the disk moved", loadAll(t, p.hosts, all, func() {
				defer readFresh(t, p.hosts, all)()
				for i := range 6 {
					awaitWrites(t, all, 1+rand.IntN(200))
					p.move(t, p.hosts[0], i%2)
				}
				awaitWrites(t, all, 4*len(all))
			}))
			noErrors(t, "while the disk's host was killed", loadAll(t, p.hosts[:1], all, func() {
				p.move(t, p.hosts[0], 1)
				p.hosts[1].kill()
				p.await(t, p.hosts[0])
				awaitWrites(t, all, 50)
			}))
			checkAll(t, p.hosts[0], all)
			p.hosts[0].command(t, "verify")
			p.hosts[0].stop(t)
			p.nodes[0].kill()
			p.nodes[0].start(t)
			p.hosts[1] = p.begin(t, "h2", flash(p, "h2")...)
			checkAll(t, p.hosts[1], all)
			p.hosts[1].command(t, "verify")
		})
	}
}
