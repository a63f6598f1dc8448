package sim

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// Kept is a run of seeds, from 1 on, that is kept in a directory: one that was cut off
// goes on there.
type Kept struct {
	Done int           // so many seeds have ended well, the first ones
	Took time.Duration // for these
	file string
}

// LoadKept returns the run that is kept in a directory, or a new one; "": it is not kept.
func LoadKept(dir string) (*Kept, error) {
	k := &Kept{}
	if dir == "" {
		return k, nil
	}
	k.file = filepath.Join(dir, "run.json")
	b, err := os.ReadFile(k.file)
	if errors.Is(err, fs.ErrNotExist) {
		return k, nil
	}
	if err == nil {
		err = json.Unmarshal(b, k)
	}
	if err != nil {
		return nil, fmt.Errorf("go on with the run in %s: %w", dir, err)
	}
	return k, nil
}

// Add counts seeds in and keeps that.
func (k *Kept) Add(seeds int, took time.Duration) error {
	k.Done += seeds
	k.Took += took
	if k.file == "" {
		return nil
	}
	b, err := json.Marshal(k)
	if err != nil {
		return err
	}
	if err := os.WriteFile(k.file+".new", b, 0o644); err != nil {
		return err
	}
	return os.Rename(k.file+".new", k.file)
}
