package interop

import (
	"strings"
	"testing"
)

// oneLine requires status 1 and exactly one line with the text.
func oneLine(t *testing.T, complaint string, code int, text string) {
	t.Helper()
	if code != 1 || !strings.HasPrefix(complaint, "plinth: ") || strings.Count(complaint, "\n") != 1 || !strings.Contains(complaint, text) {
		t.Errorf("status %d and not one line with %q:\n%s", code, text, complaint)
	}
}
