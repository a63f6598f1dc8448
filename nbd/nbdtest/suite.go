package nbdtest

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"net"
	"testing"
	"time"

	"plinth/nbd"
	"plinth/nbd/client"
	"plinth/nbd/internal/wire"
)

// Target is a server under test.
type Target struct {
	// Dial connects to the server, before the handshake.
	Dial func(ctx context.Context) (net.Conn, error)
	// Export is listed, writable, at least DeviceBytesMin long, and overwritten
	// by the suite.
	Export string
	// ReadOnly names a read-only export. Empty: the server has none.
	ReadOnly string
	// Forms are those to test in. Empty: all.
	Forms []client.Form
	// Unknown names an export that the server does not have. Empty: the server
	// takes every name.
	Unknown string
}

// DeviceBytesMin is the least size of Target.Export, in bytes.
const DeviceBytesMin = 64 << 20

// suiteTime bounds each test of the suite.
const suiteTime = time.Minute

// Run tests that the target keeps to the protocol, in each form that it offers. What the protocol leaves
// open (the content after TRIM, the order of replies) is not judged, and what
// a server does not advertise is not asked for.
func Run(t *testing.T, target Target) {
	if len(target.Forms) == 0 {
		target.Forms = []client.Form{client.Simple, client.Structured, client.Extended}
	}
	for _, form := range target.Forms {
		s := suite{target, form}
		name := []string{"simple", "structured", "extended"}[form]
		t.Run(name, func(t *testing.T) {
			if s.open(t, s.Export).Form() == form {
				s.run(t)
			}
		})
	}
}

// run tests in one form.
func (s suite) run(t *testing.T) {
	for _, test := range []struct {
		name string
		run  func(suite, *testing.T)
	}{
		{"List", suite.list},
		{"Describe", suite.describe},
		{"UnknownExport", suite.unknownExport},
		{"ReadOnly", suite.readOnly},
		{"ExportName", suite.exportName},
		{"Abort", suite.abort},
		{"UnknownOption", suite.unknownOption},
		{"UnknownRequest", suite.unknownRequest},
		{"BeyondEnd", suite.beyondEnd},
		{"Zero", suite.zero},
		{"Extents", suite.extents},
		{"Random", suite.random},
		{"InFlight", suite.inFlight},
		{"Longest", suite.longest},
		{"Connections", suite.connections},
		{"Disconnect", suite.disconnect},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(s, t) })
	}
}

type suite struct {
	Target
	form client.Form
}

func (s suite) context(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), suiteTime)
	t.Cleanup(cancel)
	return ctx
}

func (s suite) dial(t *testing.T) net.Conn {
	t.Helper()
	conn, err := s.Dial(s.context(t))
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

// open returns a client, which is closed when the test ends.
func (s suite) open(t *testing.T, export string) *client.Client {
	t.Helper()
	c, err := client.NewClient(s.context(t), s.dial(t), export, client.Options{Form: s.form})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func (s suite) list(t *testing.T) {
	entries, err := client.ListConn(s.context(t), s.dial(t), client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Name == s.Export {
			return
		}
	}
	t.Errorf("export %q is not among %+v", s.Export, entries)
}

// INFO and GO say the same.
func (s suite) describe(t *testing.T) {
	info, err := client.DescribeConn(s.context(t), s.dial(t), s.Export, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	s.form = client.Simple
	if opened := s.open(t, s.Export).Info(); info != opened {
		t.Errorf("described as %+v, opened as %+v", info, opened)
	}
	if info.Size < DeviceBytesMin || info.Flags&wire.FlagHasFlags == 0 || info.ReadOnly() {
		t.Errorf("info %+v", info)
	}
}

// A handshake goes on after a refusal.
func (s suite) unknownExport(t *testing.T) {
	if s.Unknown == "" {
		return
	}
	_, err := client.NewClient(s.context(t), s.dial(t), s.Unknown, client.Options{})
	if !errors.Is(err, nbd.ErrUnknownExport) {
		t.Errorf("opened an unknown export: %v", err)
	}
	r := NewRaw(t, s.dial(t))
	r.Greet(wire.ClientFixedNewstyle | wire.ClientNoZeroes)
	for _, opt := range []uint32{wire.OptInfo, wire.OptGo} {
		r.Option(opt, InfoData(t, s.Unknown))
		if typ := r.LastReply(opt); typ != wire.RepErrUnknown {
			t.Errorf("option %d for an unknown export: reply %#x", opt, typ)
		}
	}
	r.Option(wire.OptGo, InfoData(t, s.Export))
	if typ := r.LastReply(wire.OptGo); typ != wire.RepAck {
		t.Errorf("GO after refusals: reply %#x", typ)
	}
}

func (s suite) readOnly(t *testing.T) {
	if s.ReadOnly == "" {
		return
	}
	ctx, c := s.context(t), s.open(t, s.ReadOnly)
	if !c.Info().ReadOnly() {
		t.Errorf("flags %#x", c.Info().Flags)
	}
	before := make([]byte, 4096)
	if err := c.ReadAt(ctx, before, 0); err != nil {
		t.Fatal(err)
	}
	if err := c.WriteAt(ctx, pattern(4096, 1), 0, false); !errors.Is(err, nbd.EPERM) {
		t.Errorf("write: %v", err)
	}
	after := make([]byte, 4096)
	if err := c.ReadAt(ctx, after, 0); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(before, after) {
		t.Error("a refused write changed the export")
	}
}

// pattern returns n bytes that differ between seeds and do not repeat soon.
func pattern(n int, seed uint64) []byte {
	rng := rand.NewPCG(seed, 0)
	b := make([]byte, 0, n+8)
	for len(b) < n {
		b = binary.LittleEndian.AppendUint64(b, rng.Uint64())
	}
	return b[:n]
}
