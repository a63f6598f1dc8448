package api

import "plinth/internal/host"

// CreateDisk is the body of POST /disks.
type CreateDisk struct {
	Name string `json:"name"`
	// Bytes is the size.
	Bytes int64 `json:"bytes"`
	// ChunkBytes, 0 for the default, and Cipher, empty for the default.
	ChunkBytes uint32 `json:"chunk_bytes,omitempty"`
	Cipher     string `json:"cipher,omitempty"`
	// Stable makes every write wait for stable media.
	Stable bool `json:"stable,omitempty"`
}

// ResizeDisk is the body of PATCH /disks/{name}.
type ResizeDisk struct {
	Bytes int64 `json:"bytes"`
}

// DiskList answers GET /disks.
type DiskList struct {
	Disks []host.DiskInfo `json:"disks"`
}

// Event is one line of an answer to long work: progress, or at the end a report
// or an error.
type Event struct {
	Done   int                `json:"done,omitempty"`
	Total  int                `json:"total,omitempty"`
	Report *host.VerifyReport `json:"report,omitempty"`
	Error  *ErrorBody         `json:"error,omitempty"`
}

// ErrorBody says what went wrong.
type ErrorBody struct {
	Code    string `json:"code"`
	Message string `json:"message"`
}

func (e *ErrorBody) Error() string { return e.Message }

// errorReply is the body of every answer that is not a success.
type errorReply struct {
	Error ErrorBody `json:"error"`
}
