package api

import (
	"context"
	"net/http"

	"plinth/internal/gate"
	"plinth/internal/host"
)

func (s *Server) showCPU(w http.ResponseWriter, _ *http.Request) error {
	writeJSON(w, http.StatusOK, s.host().CPU())
	return nil
}

func (s *Server) changeCPU(w http.ResponseWriter, r *http.Request) error {
	var req gate.CPU
	err := readJSON(r, &req)
	if err == nil {
		err = s.host().SetCPU(req)
	}
	if err == nil {
		writeJSON(w, http.StatusOK, s.host().CPU())
	}
	return err
}

// CPU says how much CPU time the process may use, and uses.
func (c *Client) CPU(ctx context.Context) (*host.CPUStatus, error) {
	var out host.CPUStatus
	return &out, c.call(ctx, "GET", "/cpu", nil, &out)
}

// SetCPU changes how much CPU time the process may use.
func (c *Client) SetCPU(ctx context.Context, cpu gate.CPU) (*host.CPUStatus, error) {
	var out host.CPUStatus
	return &out, c.call(ctx, "PATCH", "/cpu", cpu, &out)
}
