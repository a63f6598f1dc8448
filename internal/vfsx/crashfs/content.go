package crashfs

import (
	"bytes"
	"slices"
)

// A page holds pageSectors sectors, one bit of a word for each.
const (
	pageSectors = 32
	pageBytes   = pageSectors * SectorBytes
)

// content is the bytes of a file.
type content struct {
	size int64
	// pages are those up to size; nil holds zeros. Bytes of the last behind size are
	// zeros.
	pages []*page
}

// page is a part of one content, or of several, and then nobody writes to it.
type page struct {
	shared bool
	bytes  [pageBytes]byte
}

var zeroPage page

// readAt fills p from byte off, as far as the content goes.
func (c *content) readAt(p []byte, off int64) (n int) {
	p = p[:max(0, min(int64(len(p)), c.size-off))]
	for n < len(p) {
		from, in := zeroPage.bytes[:], (off+int64(n))%pageBytes
		if pg := c.pages[(off+int64(n))/pageBytes]; pg != nil {
			from = pg.bytes[:]
		}
		n += copy(p[n:], from[in:])
	}
	return n
}

// writeAt puts p at byte off, and zeros where that is behind the end.
func (c *content) writeAt(p []byte, off int64) {
	c.size = max(c.size, off+int64(len(p)))
	if n := int((c.size + pageBytes - 1) / pageBytes); n > len(c.pages) {
		c.pages = slices.Grow(c.pages, n-len(c.pages))[:n]
	}
	for len(p) > 0 {
		at, in := &c.pages[off/pageBytes], off%pageBytes
		n := min(len(p), int(pageBytes-in))
		if *at != nil || !bytes.Equal(p[:n], zeroPage.bytes[:n]) {
			copy(own(at).bytes[in:], p[:n])
		}
		p, off = p[n:], off+int64(n)
	}
}

// own makes a page one that may be written to.
func own(at **page) *page {
	switch pg := *at; {
	case pg == nil:
		*at = new(page)
	case pg.shared:
		*at = &page{bytes: pg.bytes}
	}
	return *at
}

// share returns the first size bytes in pages of both.
func (c *content) share(size int64) content {
	d := content{size, slices.Clone(c.pages[:(size+pageBytes-1)/pageBytes])}
	for _, pg := range d.pages {
		if pg != nil {
			pg.shared = true
		}
	}
	if in := size % pageBytes; in > 0 && d.pages[size/pageBytes] != nil && size < c.size {
		clear(own(&d.pages[size/pageBytes]).bytes[in:])
	}
	return d
}
