package flashcache

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Open opens the cache at path, a file or a raw block device, and makes it if
// there is none. It reads little and returns at once: what the cache had at its
// end comes back in the background, region by region, and until then Put drops
// what it is offered. After a Close everything comes back, after a crash
// everything but the chunks that were in buffers. A cache of another pool,
// domain, size or region size is emptied, which is one write.
//
// Errors: ErrInvalid, ErrForeign, ErrVersion, ErrInUse, and those of the file
// system, ENOSPC among them.
func Open(path string, opts Options) (_ *Cache, err error) {
	opts = opts.withDefaults()
	dev, err := openDevice(opts.FS, path)
	if err != nil {
		return nil, fmt.Errorf("open flash cache %s: %w", path, err)
	}
	c := &Cache{dev: dev, log: opts.Logger, settings: settingsDefault, wake: make(chan struct{}, 1), closed: make(chan struct{})}
	if err := c.openSuper(opts); err != nil {
		return nil, errors.Join(fmt.Errorf("open flash cache %s: %w", path, err), dev.close())
	}
	c.index = newIndex(c.super.geometry)
	for i := range c.buffers {
		c.buffers[i].region.Store(noRegion)
		c.idle = append(c.idle, &c.buffers[i])
	}
	c.loading.Store(true)
	c.work.Add(1)
	go c.run()
	return c, nil
}

// openSuper reads the superblock, or makes a new one where there is none or it is
// of something else.
func (c *Cache) openSuper(opts Options) error {
	length, err := c.dev.length()
	if err != nil {
		return err
	}
	raw := make([]byte, superBytes)
	if _, err := c.dev.file.ReadAt(raw, 0); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	old, why := parseSuperblock(raw)
	switch {
	case errors.Is(why, ErrVersion):
		return why
	case errors.Is(why, ErrForeign):
		blank, err := c.dev.blank(length)
		if err != nil {
			return err
		}
		if !blank {
			return ErrForeign
		}
		why = nil // it is new
	}
	size := opts.Size
	if size == 0 && c.dev.raw {
		size = min(length, SizeMax)
	} else if size == 0 && old != nil {
		size = old.bytes
	}
	if c.dev.raw && size > length {
		return fmt.Errorf("%w: %d bytes of a device of %d", ErrInvalid, size, length)
	}
	g, err := newGeometry(size, opts.RegionBytes)
	if err != nil {
		return err
	}
	if old != nil {
		switch {
		case old.geometry != g:
			why = errors.New("it has another size")
		case old.pool != opts.Pool || old.domain != opts.Domain:
			why = errors.New("it was of another pool")
		default:
			c.super = old
			return c.dev.take(g.bytes) // where a file was cut short
		}
	}
	if why != nil {
		c.log.Warn("flash cache is emptied", "path", c.dev.path, "why", why)
	}
	return c.create(&superblock{geometry: g, pool: opts.Pool, domain: opts.Domain})
}

// create empties the cache.
func (c *Cache) create(s *superblock) error {
	var draw [8]byte
	_, _ = rand.Read(draw[:])
	s.incarnation = binary.LittleEndian.Uint64(draw[:])
	if err := c.dev.take(s.bytes); err != nil {
		return err
	}
	if _, err := c.dev.file.WriteAt(s.encode(), 0); err != nil {
		return err
	}
	if err := c.dev.file.Sync(); err != nil {
		return err
	}
	c.super, c.fresh = s, true
	return nil
}
