package flashcache

import "container/list"

// The policies that the cache was chosen among, chunk by chunk and without a bound
// on writing: what could be had in RAM.

// policy is a cache that a trace is run through.
type policy interface {
	// access reports whether a chunk is there, and lets it in if not.
	access(chunk int) bool
}

// fifo evicts in the order of arrival. With reinsert, what was got again goes to
// the end instead (CLOCK).
type fifo struct {
	size     int
	reinsert bool
	order    []int
	got      map[int]bool
}

func (f *fifo) access(chunk int) bool {
	if _, ok := f.got[chunk]; ok {
		f.got[chunk] = true
		return true
	}
	for len(f.got) >= f.size {
		old := f.order[0]
		f.order = f.order[1:]
		if f.reinsert && f.got[old] {
			f.got[old] = false
			f.order = append(f.order, old)
			continue
		}
		delete(f.got, old)
	}
	f.got[chunk] = false
	f.order = append(f.order, chunk)
	return false
}

type lru struct {
	size  int
	order list.List // newest in front
	at    map[int]*list.Element
}

func (l *lru) access(chunk int) bool {
	if e, ok := l.at[chunk]; ok {
		l.order.MoveToFront(e)
		return true
	}
	if l.order.Len() >= l.size {
		delete(l.at, l.order.Remove(l.order.Back()).(int))
	}
	l.at[chunk] = l.order.PushFront(chunk)
	return false
}

// sieve is SIEVE (Zhang et al., NSDI 2024).
type sieve struct {
	size  int
	order list.List // newest in front
	at    map[int]*list.Element
	hand  *list.Element
}

type sieveEntry struct {
	chunk int
	got   bool
}

func (s *sieve) access(chunk int) bool {
	if e, ok := s.at[chunk]; ok {
		e.Value.(*sieveEntry).got = true
		return true
	}
	if s.order.Len() >= s.size {
		e := s.hand
		for {
			if e == nil {
				e = s.order.Back()
			}
			entry := e.Value.(*sieveEntry)
			if !entry.got {
				s.hand = e.Prev()
				s.order.Remove(e)
				delete(s.at, entry.chunk)
				break
			}
			entry.got = false
			e = e.Prev()
		}
	}
	s.at[chunk] = s.order.PushFront(&sieveEntry{chunk: chunk})
	return false
}

// s3 is S3-FIFO (Yang et al., SOSP 2023): a tenth is small, as many ghosts as
// there are chunks in main.
type s3 struct {
	size        int
	small, main []int
	ghosts      []int
	freq        map[int]int // of those that are there
	ghost       map[int]bool
}

func (s *s3) access(chunk int) bool {
	if f, ok := s.freq[chunk]; ok {
		s.freq[chunk] = min(f+1, freqMax)
		return true
	}
	for len(s.freq) >= s.size {
		s.evict()
	}
	s.freq[chunk] = 0
	if s.ghost[chunk] {
		delete(s.ghost, chunk)
		s.main = append(s.main, chunk)
	} else {
		s.small = append(s.small, chunk)
	}
	return false
}

func (s *s3) evict() {
	if len(s.small)*10 >= s.size || len(s.main) == 0 {
		old := s.small[0]
		s.small = s.small[1:]
		if s.freq[old] > 0 {
			s.freq[old] = 0
			s.main = append(s.main, old)
			return
		}
		delete(s.freq, old)
		s.ghost[old] = true
		if s.ghosts = append(s.ghosts, old); len(s.ghosts) > s.size {
			delete(s.ghost, s.ghosts[0])
			s.ghosts = s.ghosts[1:]
		}
		return
	}
	old := s.main[0]
	s.main = s.main[1:]
	if s.freq[old] > 0 {
		s.freq[old]--
		s.main = append(s.main, old)
		return
	}
	delete(s.freq, old)
}
