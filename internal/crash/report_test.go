package crash

import (
	"bytes"
	"runtime"
	"strings"
	"sync"
)

const (
	stacksBytesMax = 4 << 20 // taken, of hundreds of goroutines that a crash has stopped
	reportBytesMax = 32 << 10
)

// stacks returns what the goroutines do, at most reportBytesMax, for a report of
// what does not end. Those that a crash has stopped for good are left out.
func stacks() string {
	b := make([]byte, stacksBytesMax)
	var out []string
	for g := range strings.SplitSeq(string(b[:runtime.Stack(b, true)]), "\n\n") {
		if !strings.Contains(g, "crashfs.(*Parking).met") && strings.Contains(g, "plinth/") {
			out = append(out, g)
		}
	}
	all := strings.Join(out, "\n\n")
	return all[:min(len(all), reportBytesMax)]
}

// tail keeps the last lines written to it: at most reportBytesMax, and at least
// half of that.
type tail struct {
	mu     sync.Mutex
	before []byte
	now    bytes.Buffer
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.now.Len()+len(p) > reportBytesMax/2 {
		t.before = bytes.Clone(t.now.Bytes())
		t.now.Reset()
	}
	return t.now.Write(p)
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.before) + t.now.String()
}
