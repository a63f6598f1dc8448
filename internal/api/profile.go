package api

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"runtime/pprof"
	"strconv"
	"time"
)

const (
	profileSecondsDefault = 10
	// profileSecondsMax bounds how long one client may keep others from the only
	// CPU profile that a process can take at a time.
	profileSecondsMax = 60
	profileCPU        = "cpu"
	profileBytesMax   = 64 << 20
)

// profileKinds are what can be asked for. All but cpu are what is at that
// moment, or since the start.
var profileKinds = []string{profileCPU, "heap", "allocs", "goroutine"}

// errProfiling is answered while another CPU profile is taken: try again later.
var errProfiling = errors.New("another CPU profile is being taken")

// profile answers in the format of pprof: what the process does, for go tool pprof.
func (s *Server) profile(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	kind, seconds := profileCPU, profileSecondsDefault
	if text := q.Get("kind"); text != "" {
		kind = text
	}
	if text := q.Get("seconds"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 || n > profileSecondsMax {
			return fmt.Errorf("%w: seconds are 1 to %d", errBadRequest, profileSecondsMax)
		}
		seconds = n
	}
	var out bytes.Buffer
	if err := takeProfile(r.Context(), &out, kind, time.Duration(seconds)*time.Second); err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	_, _ = w.Write(out.Bytes()) // a client that has gone does not need it
	return nil
}

func takeProfile(ctx context.Context, out io.Writer, kind string, d time.Duration) error {
	if kind != profileCPU {
		for _, k := range profileKinds {
			if k == kind {
				return pprof.Lookup(kind).WriteTo(out, 0)
			}
		}
		return fmt.Errorf("%w: kind is one of %q", errBadRequest, profileKinds)
	}
	if err := pprof.StartCPUProfile(out); err != nil {
		return errProfiling
	}
	defer pprof.StopCPUProfile()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// CPUProfile returns what the process did on the CPU for some seconds, in the
// format of pprof.
func (c *Client) CPUProfile(ctx context.Context, seconds int) ([]byte, error) {
	q := url.Values{"kind": {profileCPU}, "seconds": {strconv.Itoa(seconds)}}
	resp, err := c.do(ctx, "GET", "/profile?"+q.Encode(), nil)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	return io.ReadAll(io.LimitReader(resp.Body, profileBytesMax))
}
