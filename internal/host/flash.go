package host

import (
	"errors"

	"plinth/flashcache"
)

// FlashStatus describes the flash cache.
type FlashStatus struct {
	Path string `json:"path"`
	flashcache.Stats
}

// openFlash opens the flash cache, if there is to be one. Only what an operator
// must correct is an error; where the device does not work, disks are served
// without.
func (h *Host) openFlash() error {
	if h.opts.FlashPath == "" {
		return nil
	}
	var err error
	h.flash, err = flashcache.Open(h.opts.FlashPath, flashcache.Options{
		FS: h.opts.FS, Size: h.opts.FlashBytes, Pool: h.keys.ID(), Logger: h.log,
	})
	for _, operators := range []error{flashcache.ErrInvalid, flashcache.ErrForeign, flashcache.ErrInUse} {
		if errors.Is(err, operators) {
			return err
		}
	}
	if err != nil {
		h.flashErr = err
		h.log.Error("disks are served without a flash cache", "err", err)
	}
	return nil
}

// closeFlash makes the cache's index durable. That it fails costs time only.
func (h *Host) closeFlash() {
	if h.flash == nil {
		return
	}
	if err := h.flash.Close(); err != nil {
		h.log.Warn("flash cache may be colder at the next start", "path", h.opts.FlashPath, "err", err)
	}
}

// flashStatus describes the flash cache, nil if there is to be none.
func (h *Host) flashStatus() *FlashStatus {
	switch {
	case h.flash != nil:
		return &FlashStatus{Path: h.opts.FlashPath, Stats: h.flash.Stats()}
	case h.flashErr != nil:
		return &FlashStatus{Path: h.opts.FlashPath, Stats: flashcache.Stats{Failure: h.flashErr.Error()}}
	}
	return nil
}
