package interop

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// What happens to a spindle is told by the process's events.
func TestEvents(t *testing.T) {
	data := filepath.Join(tempDir(t), "data")
	s := start(t, data, small...)
	dir := filepath.Join(data, "datanode", "spindle-03")
	if err := os.Rename(dir, dir+".away"); err != nil {
		t.Fatal(err)
	}
	var line string
	for deadline := time.Now().Add(30 * time.Second); line == ""; time.Sleep(200 * time.Millisecond) {
		for l := range strings.Lines(s.command(t, "events", "--problems")) {
			if strings.Contains(l, "spindle is out of service") && strings.Contains(l, "  spindle=3") && strings.Contains(l, "state=absent") {
				line = l
			}
		}
		if time.Now().After(deadline) {
			t.Fatal("no event tells of the spindle that went")
		}
	}
	number := strings.Fields(line)[0]
	var list struct {
		Events []struct {
			Number  uint64
			Message string
		}
		Last uint64
	}
	if err := json.Unmarshal([]byte(s.command(t, "events", "--json", "--after", number)), &list); err != nil {
		t.Fatal(err)
	}
	for _, e := range list.Events {
		if e.Message == "spindle is out of service" {
			t.Errorf("event %d comes after %s", e.Number, number)
		}
	}
	s.refused(t, "--follow prints text", "events", "--json", "--follow")
}
