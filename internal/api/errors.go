package api

import (
	"context"
	"errors"
	"net/http"

	"plinth/datanode"
	"plinth/internal/disk"
	"plinth/internal/host"
)

var (
	// errBadRequest marks what the server itself refuses.
	errBadRequest = errors.New("bad request")
	// errTooLarge marks a body above bodyBytesMax.
	errTooLarge = errors.New("too large")
)

// statuses is the one table from errors to answers; the first match counts.
var statuses = []struct {
	err    error
	status int
	code   string
}{
	{errTooLarge, http.StatusRequestEntityTooLarge, "too_large"},
	{errBadRequest, http.StatusBadRequest, "bad_request"},
	{host.ErrNodes, http.StatusConflict, "nodes"},
	{host.ErrInvalid, http.StatusBadRequest, "invalid"},
	{host.ErrUnknownDisk, http.StatusNotFound, "not_found"},
	{host.ErrUnknownSnapshot, http.StatusNotFound, "not_found"},
	{host.ErrElsewhere, http.StatusMisdirectedRequest, "elsewhere"},
	{host.ErrNoLease, http.StatusServiceUnavailable, "no_lease"},
	{host.ErrExists, http.StatusConflict, "exists"},
	{host.ErrInUse, http.StatusConflict, "in_use"},
	{host.ErrBusy, http.StatusServiceUnavailable, "busy"},
	{errProfiling, http.StatusServiceUnavailable, "busy"},
	{host.ErrTooMany, http.StatusInsufficientStorage, "too_many"},
	{host.ErrClosed, http.StatusServiceUnavailable, "closed"},
	{disk.ErrClosed, http.StatusServiceUnavailable, "closed"},
	{datanode.ErrUnreachable, http.StatusServiceUnavailable, "unreachable"},
	{datanode.ErrRestarted, http.StatusServiceUnavailable, "unreachable"},
	{datanode.ErrOutcome, http.StatusServiceUnavailable, "outcome_unknown"},
	{datanode.ErrClosed, http.StatusServiceUnavailable, "unreachable"},
	{disk.ErrNoSpace, http.StatusInsufficientStorage, "no_space"},
	{datanode.ErrNoSpace, http.StatusInsufficientStorage, "no_space"},
	{disk.ErrFailed, http.StatusInternalServerError, "failed"},
	{disk.ErrCorrupt, http.StatusInternalServerError, "corrupt"},
	{context.DeadlineExceeded, http.StatusGatewayTimeout, "timeout"},
}

// classify returns the answer for an error.
func classify(err error) (int, ErrorBody) {
	for _, s := range statuses {
		if errors.Is(err, s.err) {
			return s.status, ErrorBody{s.code, err.Error()}
		}
	}
	return http.StatusInternalServerError, ErrorBody{"internal", err.Error()}
}
