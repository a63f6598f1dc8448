package api

import (
	"context"
	"fmt"
	"net/http"
	"strconv"

	"plinth/internal/id"
)

func (s *Server) listNodes(w http.ResponseWriter, r *http.Request) error {
	all, err := s.host().Nodes(r.Context())
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, NodeList{Nodes: all})
	return nil
}

func (s *Server) addNode(w http.ResponseWriter, r *http.Request) error {
	var req AddNode
	if err := readJSON(r, &req); err != nil {
		return err
	}
	if err := s.host().AddNode(r.Context(), req.Name, req.Addresses); err != nil {
		return err
	}
	return s.listNodes(w, r)
}

func (s *Server) drainNode(w http.ResponseWriter, r *http.Request) error {
	if err := s.host().DrainNode(r.Context(), r.PathValue("name")); err != nil {
		return err
	}
	return s.listNodes(w, r)
}

func (s *Server) removeNode(w http.ResponseWriter, r *http.Request) error {
	err := s.host().RemoveNode(r.Context(), r.PathValue("name"), r.URL.Query()["address"])
	if err == nil {
		w.WriteHeader(http.StatusNoContent)
	}
	return err
}

func (s *Server) startRebalance(w http.ResponseWriter, r *http.Request) error {
	return s.setRebalance(w, r, true)
}

func (s *Server) stopRebalance(w http.ResponseWriter, r *http.Request) error {
	return s.setRebalance(w, r, false)
}

func (s *Server) setRebalance(w http.ResponseWriter, r *http.Request, on bool) error {
	err := s.host().Rebalance(r.Context(), on)
	if err == nil {
		w.WriteHeader(http.StatusNoContent)
	}
	return err
}

func (s *Server) addSpindle(w http.ResponseWriter, r *http.Request) error {
	var req AddSpindle
	if err := readJSON(r, &req); err != nil {
		return err
	}
	if err := s.host().AddSpindle(r.Context(), req.Node); err != nil {
		return err
	}
	return s.listNodes(w, r)
}

func (s *Server) drainSpindle(w http.ResponseWriter, r *http.Request) error {
	return s.setDraining(w, r, true)
}

func (s *Server) useSpindle(w http.ResponseWriter, r *http.Request) error {
	return s.setDraining(w, r, false)
}

func (s *Server) setDraining(w http.ResponseWriter, r *http.Request, on bool) error {
	return withSpindle(w, r, func(ctx context.Context, n id.Spindle) error {
		return s.host().DrainSpindle(ctx, n, on)
	})
}

func (s *Server) replaceSpindle(w http.ResponseWriter, r *http.Request) error {
	return withSpindle(w, r, s.host().ReplaceSpindle)
}

// withSpindle calls do with the spindle of the path.
func withSpindle(w http.ResponseWriter, r *http.Request, do func(context.Context, id.Spindle) error) error {
	n, err := strconv.ParseUint(r.PathValue("spindle"), 10, 16)
	if err != nil {
		return fmt.Errorf("%w: spindle %q: a number from 0 to 65535 is wanted, as plinth status shows it", errBadRequest, r.PathValue("spindle"))
	}
	if err = do(r.Context(), id.Spindle(n)); err == nil {
		w.WriteHeader(http.StatusNoContent)
	}
	return err
}
