package api

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"net/http"
	"strings"
	"time"

	"plinth/datanode"
	"plinth/internal/chunk"
	"plinth/internal/events"
	"plinth/internal/host"
)

const (
	bodyBytesMax    = 64 << 10
	headerBytesMax  = 16 << 10
	readTimeMax     = 10 * time.Second
	progressTimeMin = 200 * time.Millisecond
	prefix          = "/api/v1"
)

//go:embed openapi.json
var openapi []byte

// Server answers for a host.
type Server struct {
	host func() *host.Host
	log  *slog.Logger
	http http.Server
}

// route is a method, a path under the prefix, and what answers it.
type route struct {
	method, path string
	handle       func(w http.ResponseWriter, r *http.Request) error
}

func (s *Server) routes() []route {
	return []route{
		{"GET", "/status", s.status},
		{"GET", "/nodes", s.listNodes},
		{"GET", "/events", s.listEvents},
		{"POST", "/nodes", s.addNode},
		{"DELETE", "/nodes/{name}", s.removeNode},
		{"POST", "/nodes/{name}/drain", s.drainNode},
		{"POST", "/rebalance", s.startRebalance},
		{"DELETE", "/rebalance", s.stopRebalance},
		{"POST", "/spindles", s.addSpindle},
		{"POST", "/spindles/{spindle}/drain", s.drainSpindle},
		{"DELETE", "/spindles/{spindle}/drain", s.useSpindle},
		{"POST", "/spindles/{spindle}/replace", s.replaceSpindle},
		{"GET", "/cpu", s.showCPU},
		{"PATCH", "/cpu", s.changeCPU},
		{"GET", "/disks", s.listDisks},
		{"POST", "/disks", s.createDisk},
		{"GET", "/disks/{name}", s.showDisk},
		{"PATCH", "/disks/{name}", s.changeDisk},
		{"DELETE", "/disks/{name}", s.removeDisk},
		{"GET", "/disks/{name}/snapshots", s.listSnapshots},
		{"POST", "/disks/{name}/snapshots", s.createSnapshot},
		{"POST", "/snapshots", s.createSnapshots},
		{"GET", "/disks/{name}/snapshots/{snapshot}", s.showSnapshot},
		{"PATCH", "/disks/{name}/snapshots/{snapshot}", s.renameSnapshot},
		{"DELETE", "/disks/{name}/snapshots/{snapshot}", s.removeSnapshot},
		{"POST", "/disks/{name}/snapshots/{snapshot}/rollback", s.rollback},
		{"POST", "/disks/{name}/snapshots/{snapshot}/clone", s.clone},
		{"GET", "/disks/{name}/diff", s.diff},
		{"POST", "/verify", s.verify},
		{"POST", "/sweep", s.sweep},
		{"POST", "/reclaim", s.reclaim},
		{"POST", "/quiesce", s.quiesce},
		{"GET", "/profile", s.profile},
		{"GET", "/openapi.json", s.describe},
	}
}

// NewServer returns a server for the agent that h returns at each request. metrics
// answers /metrics.
func NewServer(h func() *host.Host, metrics http.Handler, log *slog.Logger) *Server {
	s := &Server{host: h, log: log}
	mux := http.NewServeMux()
	methods := map[string][]string{} // by path
	for _, r := range s.routes() {
		mux.HandleFunc(r.method+" "+prefix+r.path, s.answer(r.handle))
		methods[r.path] = append(methods[r.path], r.method)
	}
	for path, allowed := range methods {
		mux.HandleFunc(prefix+path, func(w http.ResponseWriter, req *http.Request) {
			allow := strings.Join(allowed, ", ")
			w.Header().Set("Allow", allow)
			writeJSON(w, http.StatusMethodNotAllowed, errorReply{ErrorBody{"method_not_allowed", req.URL.Path + " takes " + allow + ", not " + req.Method}})
		})
	}
	mux.HandleFunc(prefix+"/", func(w http.ResponseWriter, req *http.Request) {
		writeJSON(w, http.StatusNotFound, errorReply{ErrorBody{"not_found", "no such resource: " + req.URL.Path}})
	})
	mux.Handle("GET /metrics", metrics)
	s.http = http.Server{
		Handler: mux, ReadTimeout: readTimeMax, IdleTimeout: time.Minute, MaxHeaderBytes: headerBytesMax,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	return s
}

// Serve answers on l, made by Listen, until Shutdown; then it returns nil.
func (s *Server) Serve(l net.Listener) error {
	if err := s.http.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// Shutdown stops listening and waits for requests under way until ctx ends.
func (s *Server) Shutdown(ctx context.Context) error {
	if err := s.http.Shutdown(ctx); err != nil {
		return errors.Join(err, s.http.Close())
	}
	return nil
}

// answer reads the whole body first, so that its bounds in size and time hold
// for every request, whatever its handler reads.
func (s *Server) answer(handle func(http.ResponseWriter, *http.Request) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		body, err := readBody(w, r)
		if err == nil {
			r.Body = io.NopCloser(bytes.NewReader(body))
			err = handle(w, r)
		}
		if err != nil {
			s.fail(w, r, err)
		}
	}
}

func readBody(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, bodyBytesMax))
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return nil, fmt.Errorf("body is %w: at most %d bytes", errTooLarge, bodyBytesMax)
	case err != nil:
		return nil, fmt.Errorf("%w: body: %w", errBadRequest, err)
	}
	return body, nil
}

func (s *Server) fail(w http.ResponseWriter, r *http.Request, err error) {
	status, body := classify(err)
	if status >= http.StatusInternalServerError && r.Context().Err() == nil {
		level := slog.LevelError
		if errors.Is(err, host.ErrBusy) { // who asked may ask again
			level = slog.LevelWarn
		}
		s.log.Log(r.Context(), level, "request failed", "method", r.Method, "path", r.URL.Path, "err", err)
	}
	writeJSON(w, status, errorReply{body})
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	_ = enc.Encode(v) // a client that has gone does not need it
}

// readJSON reads a body of exactly one object without unknown fields.
func readJSON(r *http.Request, v any) error {
	dec := json.NewDecoder(r.Body)
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return fmt.Errorf("%w: body: %w", errBadRequest, err)
	}
	if _, err := dec.Token(); err != io.EOF {
		return fmt.Errorf("%w: body: more than one JSON value", errBadRequest)
	}
	return nil
}

func (s *Server) status(w http.ResponseWriter, r *http.Request) error {
	st, err := s.host().Status(r.Context())
	if err != nil {
		return err
	}
	// A list that is empty is [], never null.
	if st.Node.Streams == nil {
		st.Node.Streams = []datanode.LogStreamStatus{}
	}
	writeJSON(w, http.StatusOK, st)
	return nil
}

// listEvents answers with what the server's own log remembers.
func (s *Server) listEvents(w http.ResponseWriter, r *http.Request) error {
	after, err := number(r, "after")
	if err != nil {
		return err
	}
	limit, err := number(r, "limit")
	if err != nil {
		return err
	}
	if limit == 0 {
		limit = math.MaxInt64
	}
	all, last := events.Of(s.log).After(uint64(after), limit)
	writeJSON(w, http.StatusOK, EventList{Events: append([]events.Event{}, all...), Last: last})
	return nil
}

func (s *Server) listDisks(w http.ResponseWriter, _ *http.Request) error {
	writeJSON(w, http.StatusOK, DiskList{Disks: s.host().Disks()})
	return nil
}

func (s *Server) createDisk(w http.ResponseWriter, r *http.Request) error {
	var req CreateDisk
	if err := readJSON(r, &req); err != nil {
		return err
	}
	info, err := s.host().CreateDisk(r.Context(), host.DiskSpec{
		Name: req.Name, Bytes: req.Bytes, Chunk: chunk.Size(req.ChunkBytes), Cipher: req.Cipher, Stable: req.Stable,
	})
	if err == nil {
		w.Header().Set("Location", prefix+"/disks/"+info.Name)
		writeJSON(w, http.StatusCreated, info)
	}
	return err
}

func (s *Server) showDisk(w http.ResponseWriter, r *http.Request) error {
	info, err := s.host().Disk(r.PathValue("name"))
	if err == nil {
		writeJSON(w, http.StatusOK, info)
	}
	return err
}

func (s *Server) changeDisk(w http.ResponseWriter, r *http.Request) error {
	var req ChangeDisk
	err := readJSON(r, &req)
	if err != nil {
		return err
	}
	var info *host.DiskInfo
	ctx, name := r.Context(), r.PathValue("name")
	switch {
	case req.changes() != 1:
		err = fmt.Errorf("%w: body: give one of bytes, name, limits and host", errBadRequest)
	case req.Name != "":
		info, err = s.host().RenameDisk(ctx, name, req.Name)
	case req.Bytes != 0:
		info, err = s.host().ResizeDisk(ctx, name, req.Bytes)
	case req.Limits != nil:
		info, err = s.host().ChangeLimits(ctx, name, *req.Limits)
	default:
		if err = s.host().MoveDisk(ctx, name, req.Host); err == nil {
			info, err = s.host().Disk(name)
		}
	}
	if err == nil {
		writeJSON(w, http.StatusOK, info)
	}
	return err
}

func (s *Server) removeDisk(w http.ResponseWriter, r *http.Request) error {
	snapshots, err := flag(r, "snapshots")
	switch {
	case err != nil:
	case snapshots:
		err = s.host().RemoveDiskWithSnapshots(r.Context(), r.PathValue("name"))
	default:
		err = s.host().RemoveDisk(r.Context(), r.PathValue("name"))
	}
	if err == nil {
		w.WriteHeader(http.StatusNoContent)
	}
	return err
}

// verify answers in lines, so that a client can show how far it is.
func (s *Server) verify(w http.ResponseWriter, r *http.Request) error {
	repair, err := flag(r, "repair")
	if err != nil {
		return err
	}
	leaks, err := flag(r, "leaks")
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	enc := json.NewEncoder(w)
	control := http.NewResponseController(w)
	last := time.Now()
	report, err := s.host().Verify(r.Context(), host.VerifyOptions{
		Repair: repair, Strict: leaks,
		Progress: func(done, total int) {
			if now := time.Now(); now.Sub(last) >= progressTimeMin {
				last = now
				_ = enc.Encode(Event{Done: done, Total: total}) // a client that has gone ends the context
				_ = control.Flush()
			}
		},
	})
	end := Event{Report: report}
	if report != nil && report.Findings == nil {
		report.Findings = []host.Finding{}
	}
	if err != nil {
		_, body := classify(err)
		end = Event{Error: &body}
	}
	_ = enc.Encode(end)
	return nil
}

// flag reads a parameter of the query that is true or false; absent, false.
func flag(r *http.Request, name string) (bool, error) {
	switch r.URL.Query().Get(name) {
	case "", "false":
		return false, nil
	case "true":
		return true, nil
	}
	return false, fmt.Errorf("%w: %s is true or false", errBadRequest, name)
}

func (s *Server) sweep(w http.ResponseWriter, r *http.Request) error {
	err := s.host().Sweep(r.Context())
	if err == nil {
		w.WriteHeader(http.StatusNoContent)
	}
	return err
}

func (s *Server) quiesce(w http.ResponseWriter, r *http.Request) error {
	err := s.host().Quiesce(r.Context())
	if err == nil {
		w.WriteHeader(http.StatusNoContent)
	}
	return err
}

func (s *Server) describe(w http.ResponseWriter, _ *http.Request) error {
	w.Header().Set("Content-Type", "application/json")
	_, err := w.Write(openapi)
	return err
}
