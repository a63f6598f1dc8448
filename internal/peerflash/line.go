package peerflash

import (
	"bufio"
	"context"
	"net"
	"sync"
	"time"

	"plinth/internal/id"
)

const (
	// idleMax ends a connection of which nobody asks anything.
	idleMax = time.Minute
	// silenceMax ends one on which something is owed, and nothing comes: reads that
	// waited for it have long gone to the spindles.
	silenceMax = time.Second
	// turnChunks are asked for in one request: so that flash answers the parts of a large
	// read at the same time, and a reply fits BytesMax with the largest chunks.
	turnChunks = 16
)

// line is a connection to a peer.
type line struct {
	conn net.Conn
	out  chan []byte // requests, with room for all that may be owed

	mu     sync.Mutex
	number uint32
	// owed are the requests that were not answered, by number; nil: nobody waits any
	// more.
	owed map[uint32]*turn
	over bool
	gone chan struct{} // closed with over
}

// turn is a request under way.
type turn struct {
	number uint32
	first  int         // of the names that were asked for together
	count  int         // of chunks
	done   chan *reply // gets one, nil: the line has gone
}

func newLine(conn net.Conn) *line {
	return &line{conn: conn, out: make(chan []byte, requestsMax), owed: make(map[uint32]*turn), gone: make(chan struct{})}
}

// begin sends a request. It returns nil where the line has gone, or has too much under
// way.
func (l *line) begin(first int, names []id.Fingerprint) *turn {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.over || len(l.owed) == requestsMax {
		return nil
	}
	if len(l.owed) == 0 {
		_ = l.conn.SetReadDeadline(time.Now().Add(silenceMax)) // or else the read says it
	}
	l.number++
	t := &turn{l.number, first, len(names), make(chan *reply, 1)}
	select {
	case l.out <- appendRequest(make([]byte, 0, requestHeaderBytes+len(names)*fingerprintBytes), t.number, names):
		l.owed[t.number] = t
		return t
	default: // requests that are not sent yet were answered: by whom?
		return nil
	}
}

// leave says that nobody waits for a turn any more.
func (l *line) leave(t *turn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.owed[t.number] == t {
		l.owed[t.number] = nil
	}
}

// send writes requests until the line ends.
func (l *line) send() {
	for {
		select {
		case b := <-l.out:
			err := l.conn.SetWriteDeadline(time.Now().Add(silenceMax))
			if err == nil {
				_, err = l.conn.Write(b)
			}
			if err != nil {
				_ = l.conn.Close()
				return
			}
		case <-l.gone:
			return
		}
	}
}

// receive takes replies until the line ends. It reports whether it ended in quiet.
func (l *line) receive() (quiet bool) {
	defer l.conn.Close()
	_ = l.conn.SetReadDeadline(time.Now().Add(idleMax))
	for r := bufio.NewReaderSize(l.conn, 64<<10); ; {
		p, err := readReply(r)
		if err != nil || !l.take(p) {
			return l.end()
		}
	}
}

// take hands a reply to who waits for it. False: nothing of the kind was asked for.
func (l *line) take(p *reply) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	t, asked := l.owed[p.number]
	if !asked || t != nil && t.count != len(p.units) {
		return false
	}
	delete(l.owed, p.number)
	wait := silenceMax
	if len(l.owed) == 0 {
		wait = idleMax
	}
	_ = l.conn.SetReadDeadline(time.Now().Add(wait))
	if t != nil {
		t.done <- p
	}
	return true
}

// end lets all go who wait, and reports whether nothing was owed.
func (l *line) end() (quiet bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.over = true
	close(l.gone)
	for _, t := range l.owed {
		if t != nil {
			t.done <- nil
		}
	}
	return len(l.owed) == 0
}

// outcome says how a call ended.
type outcome uint8

const (
	answered outcome = iota
	busy             // or the line has gone: only some was asked for, or nothing
	late
	given // up, by who asked
)

// ask asks for chunks, and calls got for each that comes until the time is up. It returns
// how many were answered for.
func (l *line) ask(ctx context.Context, answer time.Duration, names []id.Fingerprint, got func(i int, sealed []byte)) (asked int, out outcome) {
	rounds := 1 + (len(names)-1)/(turnChunks*requestsMax)
	timer := time.NewTimer(time.Duration(rounds) * answer)
	defer timer.Stop()
	var turns []*turn
	defer func() {
		for _, t := range turns {
			l.leave(t)
		}
	}()
	for next := 0; next < len(names) || len(turns) > 0; {
		if next < len(names) {
			end := min(next+turnChunks, len(names))
			if t := l.begin(next, names[next:end]); t != nil {
				turns, next = append(turns, t), end
				continue
			}
			if len(turns) == 0 {
				return asked, busy
			}
		}
		p, out := turns[0].await(ctx, timer)
		if out != answered {
			return asked, out
		}
		t := turns[0]
		turns = turns[1:]
		asked += t.count
		p.each(func(i int, sealed []byte) { got(t.first+i, sealed) })
	}
	return asked, answered
}

// await waits for a reply. What has come counts, however late it is.
func (t *turn) await(ctx context.Context, timer *time.Timer) (*reply, outcome) {
	var p *reply
	select {
	case p = <-t.done:
	default:
		select {
		case p = <-t.done:
		case <-timer.C:
			return nil, late
		case <-ctx.Done():
			return nil, given
		}
	}
	if p == nil {
		return nil, busy
	}
	return p, answered
}
