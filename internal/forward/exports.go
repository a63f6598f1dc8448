package forward

import (
	"context"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
	"sync"

	"plinth/internal/id"
	"plinth/nbd"
	"plinth/nbd/client"
)

// A session's export names are SESSION/EXPORT in version 1 and 2/SESSION/EXPORT in version 2,
// which also has 2/log-EPOCH-POS/EXPORT: its description says whether the disk's log has
// what was appended there.
const (
	sessionBytes = 16
	separator    = "/"

	questionFormat = "log-%x-%x"
	isInLog        = "in the log"
	isNotInLog     = "not in the log"
)

func exportName(version uint16, session, export string) string {
	if version < numbersVersion {
		return session + separator + export
	}
	return strconv.Itoa(int(version)) + separator + session + separator + export
}

func question(epoch id.Epoch, pos id.Pos) string { return fmt.Sprintf(questionFormat, epoch, pos) }

func answered(s string) (bool, error) {
	if s != isInLog && s != isNotInLog {
		return false, fmt.Errorf("the disk's owner does not say whether its log has what was appended: %.100q", s)
	}
	return s == isInLog, nil
}

// Disks are those that this process serves now.
type Disks interface {
	// Open opens one, or a snapshot of one, which never becomes another host's. gone
	// reports an error that says that it has left this process; nil: none does but
	// nbd.ErrShutdown. release is called once, when the connection has ended.
	Open(ctx context.Context, name string) (e nbd.Export, gone func(error) bool, release func(), err error)
}

// Exports is what a host serves to the Devices of its peers. It implements
// nbd.Exports.
type Exports struct {
	disks Disks

	mu       sync.Mutex
	sessions map[string]*session
}

// NewExports serves disks.
func NewExports(disks Disks) *Exports {
	return &Exports{disks: disks, sessions: map[string]*session{}}
}

// List implements nbd.Exports: peers know what they want.
func (x *Exports) List(context.Context) ([]nbd.ExportInfo, error) { return nil, nil }

// Describe implements nbd.Exports.
func (x *Exports) Describe(ctx context.Context, name string) (nbd.ExportInfo, error) {
	version, session, export, err := split(name)
	if err != nil {
		return nbd.ExportInfo{}, err
	}
	e, _, release, err := x.disks.Open(ctx, export)
	if err != nil {
		return nbd.ExportInfo{}, err
	}
	defer release()
	info := e.Info()
	if version >= numbersVersion {
		err = answer(&info, session, e.Device)
	}
	return info, err
}

// answer answers a question, if that is one.
func answer(info *nbd.ExportInfo, session string, d nbd.Device) error {
	var epoch id.Epoch
	var pos id.Pos
	if _, err := fmt.Sscanf(session, questionFormat, &epoch, &pos); err != nil || question(epoch, pos) != session {
		return nil
	}
	once, ok := d.(Once)
	if !ok {
		return fmt.Errorf("%w: %s has no log", nbd.ErrUnknownExport, info.Name)
	}
	done, err := once.Carried(epoch, pos)
	if info.Description = isNotInLog; done {
		info.Description = isInLog
	}
	return err
}

// Open implements nbd.Exports. It returns when nothing that came by the session's
// older connections will be carried out any more.
func (x *Exports) Open(ctx context.Context, name string) (nbd.Export, func(), error) {
	version, number, export, err := split(name)
	if err != nil {
		return nbd.Export{}, nil, err
	}
	var key [sessionBytes]byte
	if n, err := hex.Decode(key[:], []byte(number)); err != nil || n != sessionBytes {
		return nbd.Export{}, nil, fmt.Errorf("%w: %.100q is no session", nbd.ErrUnknownExport, number)
	}
	s := x.enter(number)
	turn, err := s.take(ctx)
	if err != nil {
		x.leave(number, s)
		return nbd.Export{}, nil, fmt.Errorf("wait for the session's older requests: %w", err)
	}
	e, gone, release, err := x.disks.Open(ctx, export)
	if err != nil {
		x.leave(number, s)
		return nbd.Export{}, nil, err
	}
	h := held{e.Device, gone, s, turn}
	if once, ok := e.Device.(Once); ok && version >= numbersVersion {
		e.Device = &numberedHeld{h, key, once}
	} else {
		e.Device = &h
	}
	return e, func() { release(); x.leave(number, s) }, nil
}

// split takes a name apart. session is one's number, in hexadecimal, or in version 2 a
// question.
func split(name string) (version uint16, session, export string, err error) {
	version = 1
	session, export, ok := strings.Cut(name, separator)
	if v, err := strconv.ParseUint(session, 10, 16); ok && err == nil && len(session) < 2*sessionBytes {
		if version = uint16(v); version != numbersVersion {
			return 0, "", "", fmt.Errorf("%w: a peer speaks version %d of the protocol between hosts, this host %v: upgrade plinth on the one of the lower versions",
				nbd.ErrUnknownExport, version, Speaks)
		}
		session, export, ok = strings.Cut(export, separator)
	}
	number := len(session) == 2*sessionBytes && strings.Trim(session, "0123456789abcdef") == ""
	if !ok || export == "" || !number && (version == 1 || !strings.HasPrefix(session, "log-")) {
		return 0, "", "", fmt.Errorf("%w: peers name SESSION/DISK, not %.100q", nbd.ErrUnknownExport, name)
	}
	return version, session, export, nil
}

func (x *Exports) enter(number string) *session {
	x.mu.Lock()
	defer x.mu.Unlock()
	s := x.sessions[number]
	if s == nil {
		s = &session{}
		x.sessions[number] = s
	}
	s.connections++
	return s
}

func (x *Exports) leave(number string, s *session) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if s.connections--; s.connections == 0 {
		delete(x.sessions, number)
	}
}

// session is what one Device of a peer has open here: as a rule one connection, and
// older ones of which this host does not know yet that they are dead.
type session struct {
	connections int // guarded by Exports.mu

	mu      sync.Mutex
	turn    int64         // of the newest connection; older ones are refused
	running int           // calls under way, of all connections
	quiet   chan struct{} // not nil: somebody waits for running to be 0
}

// errOlder is ESHUTDOWN to whoever might still read it.
var errOlder = fmt.Errorf("%w: the session has a newer connection", nbd.ErrShutdown)

// take makes the caller's the session's newest connection and waits for the calls of
// older ones.
func (s *session) take(ctx context.Context) (int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.turn++
	turn := s.turn
	for s.running > 0 {
		if s.quiet == nil {
			s.quiet = make(chan struct{})
		}
		quiet := s.quiet
		s.mu.Unlock()
		var err error
		select {
		case <-quiet:
		case <-ctx.Done():
			err = ctx.Err()
		}
		s.mu.Lock()
		if err != nil {
			return 0, err
		}
	}
	if s.turn != turn {
		return 0, errOlder
	}
	return turn, nil
}

func (s *session) begin(turn int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.turn != turn {
		return false
	}
	s.running++
	return true
}

func (s *session) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.running--; s.running == 0 && s.quiet != nil {
		close(s.quiet)
		s.quiet = nil
	}
}

// held is a disk as one connection of a session has it. It has the abilities of
// plinth's disks.
type held struct {
	nbd.Device
	gone    func(error) bool
	session *session
	turn    int64
}

// numberedHeld is held for a session whose changes have numbers: an nbd.Numberer.
type numberedHeld struct {
	held
	number [sessionBytes]byte
	once   Once
}

// Numbered implements nbd.Numberer.
func (h *numberedHeld) Numbered(cookie uint64) nbd.Device {
	one := h.held
	one.Device = h.once.Once(id.Tag{Session: h.number, Number: client.NumberOf(cookie)})
	return &one
}

func (h *held) do(f func() error) error {
	if !h.session.begin(h.turn) {
		return errOlder
	}
	defer h.session.end()
	err := f()
	if err != nil && h.gone != nil && h.gone(err) {
		return fmt.Errorf("%w: %w", nbd.ErrShutdown, err)
	}
	return err
}

func (h *held) ReadAt(ctx context.Context, p []byte, off int64) error {
	return h.do(func() error { return h.Device.ReadAt(ctx, p, off) })
}

func (h *held) WriteAt(ctx context.Context, p []byte, off int64, fua bool) error {
	return h.do(func() error { return h.Device.WriteAt(ctx, p, off, fua) })
}

func (h *held) Trim(ctx context.Context, off, n int64, fua bool) error {
	return h.do(func() error { return h.Device.Trim(ctx, off, n, fua) })
}

func (h *held) Zero(ctx context.Context, off, n int64, mayTrim, fua bool) error {
	return h.do(func() error { return h.Device.Zero(ctx, off, n, mayTrim, fua) })
}

func (h *held) Flush(ctx context.Context) error {
	return h.do(func() error { return h.Device.Flush(ctx) })
}

// TryReadAt implements nbd.TryReader. A read that comes late harms nobody.
func (h *held) TryReadAt(p []byte, off int64) bool {
	try, ok := h.Device.(nbd.TryReader)
	return ok && try.TryReadAt(p, off)
}

// Extents implements nbd.Extenter.
func (h *held) Extents(ctx context.Context, off, n int64, each func(nbd.Extent) bool) error {
	return h.do(func() error { return extents(ctx, h.Device, off, n, each) })
}

// Prefetch implements nbd.Prefetcher.
func (h *held) Prefetch(ctx context.Context, off, n int64) error {
	return h.do(func() error { return prefetch(ctx, h.Device, off, n) })
}

// ZeroIsFast implements nbd.FastZeroer.
func (h *held) ZeroIsFast(off, n int64, mayTrim bool) bool {
	fast, ok := h.Device.(nbd.FastZeroer)
	return ok && fast.ZeroIsFast(off, n, mayTrim)
}
