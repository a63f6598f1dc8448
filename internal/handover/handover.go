package handover

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"strings"
	"syscall"
)

// ErrNobody is returned by Take where no process awaits a successor: start as if
// there were none.
var ErrNobody = errors.New("no process is there to hand over")

// Successor is a process that waits for the sockets of this one.
type Successor struct{ peer *peer }

// Await waits on l, which it closes, until a successor has come and prepare has
// returned, or ctx ends (its error). prepare does what shortens the stop, while
// all is served; it heeds its context. Who goes away before that is logged, and
// another is awaited.
func Await(ctx context.Context, l net.Listener, log *slog.Logger, prepare func(context.Context)) (*Successor, error) {
	defer l.Close()
	defer context.AfterFunc(ctx, func() { l.Close() })()
	for {
		conn, err := l.Accept()
		if ctx.Err() != nil {
			if err == nil {
				conn.Close()
			}
			return nil, ctx.Err()
		}
		if err != nil {
			return nil, fmt.Errorf("await a successor: %w", err)
		}
		u, ok := conn.(*net.UnixConn)
		if !ok {
			return nil, errors.Join(fmt.Errorf("await a successor on a %T", conn), conn.Close())
		}
		s := &Successor{&peer{UnixConn: u}}
		stop := context.AfterFunc(ctx, func() { u.Close() })
		err = s.greet(ctx, log, prepare)
		stop()
		if err == nil {
			return s, nil
		}
		u.Close()
		log.Warn("a request to hand over came to nothing", "err", err)
	}
}

func (s *Successor) greet(ctx context.Context, log *slog.Logger, prepare func(context.Context)) error {
	if err := s.peer.expect(hello, answerTimeMax); err != nil {
		return err
	}
	if err := s.peer.send(fmt.Sprint(answer, os.Getpid()), answerTimeMax); err != nil {
		return err
	}
	log.Info("preparing to hand over")
	prepare(ctx)
	if err := s.peer.send(prepared, answerTimeMax); err != nil {
		return err
	}
	return s.peer.expect(proceed, answerTimeMax)
}

// Pass gives kept sockets to the successor. Call it when this process has let go of
// everything else that the successor needs, and end the process then, also after
// an error: it has copies of the sockets, on which nobody accepts.
func (s *Successor) Pass(sockets []*Socket) (err error) {
	defer s.peer.Close()
	var m message
	var files []*os.File
	defer func() { closeFiles(files) }()
	for _, x := range sockets {
		f, ferr := x.File()
		if ferr != nil {
			err = errors.Join(err, ferr)
			continue
		}
		files = append(files, f)
		m.Sockets = append(m.Sockets, description{x.Addr().Network(), x.Addr().String(), x.owned})
	}
	var line []byte
	if err == nil {
		line, err = json.Marshal(m)
	}
	if err == nil {
		err = s.peer.send(string(line), answerTimeMax, files...)
	}
	if err == nil {
		err = s.peer.expect(taken, answerTimeMax)
	}
	if err != nil {
		return fmt.Errorf("hand over the sockets: %w", err)
	}
	return nil
}

// Take asks the process that awaits a successor at path, and returns its sockets
// when it has stopped. Errors: ErrNobody, ctx's; after others the predecessor
// serves on if it had not said that it is prepared.
func Take(ctx context.Context, path string) ([]*Socket, error) {
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
		return nil, ErrNobody
	}
	if err != nil {
		return nil, fmt.Errorf("take over: %w", err)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	p := &peer{UnixConn: conn}
	who := "the process at " + path
	sockets, err := p.take(&who)
	if ctx.Err() != nil {
		for _, s := range sockets {
			s.Close()
		}
		return nil, ctx.Err()
	}
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		err = errors.New("it does not answer: stop it")
	case isGone(err):
		err = errors.New("it has gone: start again")
	}
	if err != nil {
		return nil, fmt.Errorf("take over from %s: %w", who, err)
	}
	return sockets, nil
}

func isGone(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

func (p *peer) take(who *string) ([]*Socket, error) {
	if err := p.send(hello, answerTimeMax); err != nil {
		return nil, err
	}
	line, files, err := p.receive(answerTimeMax)
	closeFiles(files)
	if err != nil {
		return nil, err
	}
	pid, ok := strings.CutPrefix(line, answer)
	if !ok {
		return nil, fmt.Errorf("it says %.100q", line)
	}
	*who = fmt.Sprintf("process %.20s", pid)
	if err := p.expect(prepared, handOverTimeMax); err != nil {
		return nil, err
	}
	if err := p.send(proceed, answerTimeMax); err != nil {
		return nil, err
	}
	line, files, err = p.receive(handOverTimeMax)
	if err != nil {
		return nil, err
	}
	defer func() { closeFiles(files) }()
	sockets, err := adopt([]byte(line), files)
	if err != nil {
		return nil, err
	}
	return sockets, p.send(taken, answerTimeMax)
}

// adopt makes listeners of what was passed.
func adopt(line []byte, files []*os.File) ([]*Socket, error) {
	all, err := parseMessage(line, len(files))
	if err != nil {
		return nil, err
	}
	var sockets []*Socket
	for i, d := range all {
		l, err := FileListener(files[i])
		if u, ok := l.(*net.UnixListener); ok {
			u.SetUnlinkOnClose(false)
			l = &unixListener{u, d.Address, d.Owned}
		}
		var s *Socket
		if err == nil {
			s, err = NewSocket(l, d.Owned)
		}
		if err != nil {
			for _, s := range sockets {
				s.Close()
			}
			return nil, fmt.Errorf("socket %s that was passed: %w", d.Address, err)
		}
		sockets = append(sockets, s)
	}
	return sockets, nil
}
