package rebuild

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"plinth/internal/id"
)

const (
	// WorkVersion is that of the rows of hosts which this package reads.
	WorkVersion = 1
	// TasksMax bounds the layouts that a host has at once: one more than checks fit its
	// memory (stripe.ChecksMax), so that the next one is at hand.
	TasksMax = 4
	// targetsMax and workBytesMax bound a host's row.
	targetsMax   = 256
	workBytesMax = 256 << 10
)

// Work is what a host is given and what it has done: its row, as JSON in the registry under its
// lease. The host puts it to take part; the warden adds tasks and takes away what it has
// taken note of, and what the host shall leave.
type Work struct {
	Version int `json:"version"`
	// Pass is when the pass began, by its own row, in which the host takes part. Began tells
	// the row from an earlier one of the host in it.
	Pass  time.Time `json:"pass"`
	Began time.Time `json:"began"`
	// Given is the number of the newest task, Tasks are those that the host has, by number.
	Given uint64 `json:"given,omitempty"`
	Tasks []Task `json:"tasks,omitempty"`
	// Fragments and Bytes (of their data) are what the host has restored since Began.
	Fragments int64 `json:"fragments,omitempty"`
	Bytes     int64 `json:"bytes,omitempty"`
}

// Task is a layout that a host goes through.
type Task struct {
	Number uint64    `json:"number"`
	Layout id.Layout `json:"layout"`
	// Targets are those of its spindles that are restored, in these incarnations.
	Targets Serving `json:"targets"`
	// Steps rises as the host gets on.
	Steps int64 `json:"steps,omitempty"`
	// Outcome is nil until the host is through. Error says why it gave the task back.
	Outcome *Outcome `json:"outcome,omitempty"`
	Error   string   `json:"error,omitempty"`
}

// Ended reports whether the host does no more about it.
func (t *Task) Ended() bool { return t.Outcome != nil || t.Error != "" }

// ParseWork reads a host's row.
func ParseWork(value []byte) (*Work, error) {
	if len(value) > workBytesMax {
		return nil, fmt.Errorf("a host's part in the rebuild has %d bytes", len(value))
	}
	var w Work
	if err := json.Unmarshal(value, &w); err != nil {
		return nil, err
	}
	if w.Version != WorkVersion {
		return nil, fmt.Errorf("a host's part in the rebuild has version %d: a newer plinth wrote it", w.Version)
	}
	if err := w.validate(); err != nil {
		return nil, fmt.Errorf("a host's part in the rebuild: %w", err)
	}
	return &w, nil
}

func (w *Work) validate() error {
	if len(w.Tasks) > TasksMax || w.Fragments < 0 || w.Bytes < 0 {
		return errors.New("too many tasks, or less than nothing is done")
	}
	last := uint64(0)
	for i := range w.Tasks {
		t := &w.Tasks[i]
		if t.Number <= last || t.Number > w.Given || t.Steps < 0 || len(t.Targets) == 0 || len(t.Targets) > targetsMax {
			return fmt.Errorf("task %d of %d: number, steps or targets", t.Number, w.Given)
		}
		last = t.Number
		for s, incarnation := range t.Targets {
			if incarnation == 0 {
				return fmt.Errorf("task %d: spindle %d has no incarnation", t.Number, s)
			}
		}
		if o := t.Outcome; o != nil && (len(o.Lost) > taskLostMax || o.LostSegments < int64(len(o.Lost))) {
			return fmt.Errorf("task %d: its outcome", t.Number)
		}
	}
	return nil
}

// Marshal returns the row.
func (w *Work) Marshal() ([]byte, error) {
	w.Version = WorkVersion
	return json.Marshal(w)
}

// Clone returns a copy that shares no tasks; targets and outcomes are never changed.
func (w *Work) Clone() *Work {
	out := *w
	out.Tasks = append([]Task(nil), w.Tasks...)
	return &out
}
