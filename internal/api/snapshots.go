package api

import (
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"time"

	"plinth/internal/host"
	"plinth/internal/reclaim"
)

func (s *Server) listSnapshots(w http.ResponseWriter, r *http.Request) error {
	infos, err := s.host().Snapshots(r.PathValue("name"))
	if err == nil {
		writeJSON(w, http.StatusOK, snapshotList(infos))
	}
	return err
}

// snapshotList is never null.
func snapshotList(infos []host.SnapshotInfo) SnapshotList {
	if infos == nil {
		infos = []host.SnapshotInfo{}
	}
	return SnapshotList{infos}
}

// spec is what the host is asked to make.
func (c CreateSnapshot) spec(disks ...string) host.SnapshotSpec {
	var expires time.Time
	if c.Expires != nil {
		expires = *c.Expires
	}
	return host.SnapshotSpec{Disks: disks, Name: c.Name, Labels: c.Labels, Expires: expires}
}

func (s *Server) createSnapshot(w http.ResponseWriter, r *http.Request) error {
	var req CreateSnapshot
	if err := readJSON(r, &req); err != nil {
		return err
	}
	infos, err := s.host().CreateSnapshots(r.Context(), req.spec(r.PathValue("name")))
	if err != nil {
		return err
	}
	info := infos[0]
	w.Header().Set("Location", prefix+"/disks/"+info.Disk+"/snapshots/"+info.Name)
	writeJSON(w, http.StatusCreated, info)
	return nil
}

func (s *Server) createSnapshots(w http.ResponseWriter, r *http.Request) error {
	var req CreateSnapshots
	if err := readJSON(r, &req); err != nil {
		return err
	}
	infos, err := s.host().CreateSnapshots(r.Context(), req.spec(req.Disks...))
	if err == nil {
		writeJSON(w, http.StatusCreated, snapshotList(infos))
	}
	return err
}

func (s *Server) showSnapshot(w http.ResponseWriter, r *http.Request) error {
	return s.writeSnapshot(w, r.PathValue("name"), r.PathValue("snapshot"))
}

// writeSnapshot answers with one snapshot.
func (s *Server) writeSnapshot(w http.ResponseWriter, disk, name string) error {
	infos, err := s.host().Snapshots(disk)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(infos, func(info host.SnapshotInfo) bool { return info.Name == name })
	if i < 0 {
		return fmt.Errorf("snapshot %q of disk %q: %w", name, disk, host.ErrUnknownSnapshot)
	}
	writeJSON(w, http.StatusOK, infos[i])
	return nil
}

func (s *Server) renameSnapshot(w http.ResponseWriter, r *http.Request) error {
	var req NewName
	if err := readJSON(r, &req); err != nil {
		return err
	}
	disk := r.PathValue("name")
	if err := s.host().RenameSnapshot(r.Context(), disk, r.PathValue("snapshot"), req.Name); err != nil {
		return err
	}
	return s.writeSnapshot(w, disk, req.Name)
}

func (s *Server) removeSnapshot(w http.ResponseWriter, r *http.Request) error {
	wait, err := flag(r, "wait")
	if err == nil {
		err = s.host().RemoveSnapshot(r.Context(), r.PathValue("name"), r.PathValue("snapshot"), wait)
	}
	if err == nil {
		w.WriteHeader(http.StatusNoContent)
	}
	return err
}

func (s *Server) rollback(w http.ResponseWriter, r *http.Request) error {
	info, err := s.host().Rollback(r.Context(), r.PathValue("name"), r.PathValue("snapshot"))
	if err == nil {
		writeJSON(w, http.StatusOK, info)
	}
	return err
}

func (s *Server) clone(w http.ResponseWriter, r *http.Request) error {
	var req NewName
	if err := readJSON(r, &req); err != nil {
		return err
	}
	info, err := s.host().Clone(r.Context(), r.PathValue("name"), r.PathValue("snapshot"), req.Name)
	if err == nil {
		w.Header().Set("Location", prefix+"/disks/"+info.Name)
		writeJSON(w, http.StatusCreated, info)
	}
	return err
}

func (s *Server) diff(w http.ResponseWriter, r *http.Request) error {
	offset, err := number(r, "offset")
	if err != nil {
		return err
	}
	limit, err := number(r, "limit")
	if err != nil {
		return err
	}
	query := r.URL.Query()
	report, err := s.host().Diff(r.Context(), r.PathValue("name"), query.Get("from"), query.Get("to"), offset, limit)
	if err != nil {
		return err
	}
	if report.Extents == nil {
		report.Extents = []host.DiffExtent{}
	}
	writeJSON(w, http.StatusOK, report)
	return nil
}

// number reads a parameter of the query that is a whole number; absent, 0.
func number(r *http.Request, name string) (int64, error) {
	text := r.URL.Query().Get(name)
	if text == "" {
		return 0, nil
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < 0 {
		return 0, fmt.Errorf("%w: %s is a whole number", errBadRequest, name)
	}
	return n, nil
}

func (s *Server) reclaim(w http.ResponseWriter, r *http.Request) error {
	dry, err := flag(r, "dry_run")
	if err != nil {
		return err
	}
	full, err := flag(r, "full")
	if err != nil {
		return err
	}
	report, err := s.host().Reclaim(r.Context(), host.ReclaimOptions{DryRun: dry, Full: full})
	if err != nil {
		return err
	}
	if report.Plan == nil {
		report.Plan = &reclaim.Plan{}
	}
	if report.Plan.Condemn == nil {
		report.Plan.Condemn = []reclaim.Choice{}
	}
	writeJSON(w, http.StatusOK, report)
	return nil
}
