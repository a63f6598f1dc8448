package api

import (
	"net/http"
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
