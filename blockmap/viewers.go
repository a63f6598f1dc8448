package blockmap

import (
	"cmp"
	"slices"
	"sort"

	"plinth/internal/id"
)

// viewers is all who see a map: the map itself and its snapshots. It decides
// which rows they need. Nothing here reads or writes any.
//
// An event is a row of an LBA, or a trim over it: data, or a hider (zeros or a
// trim). A viewer sees, of the events that its view contains, the newest one; a
// trim comes before a row of its own generation. Viewers whose views differ only
// in where they end form a lineage. In it an event is seen by those who end
// after it and before the next one. Data is needed if anybody sees it. A hider
// is needed if anybody sees it who would else see data, that is if the newest
// event below it that stays is data. That data need not be seen by the same
// viewer's lineage, so which data stays is decided before which hiders do.
type viewers struct {
	lineages []lineage
	ids      []id.Snapshot // by lineage and end; 0 is the map itself
	head     int           // its index in ids
	mapped   []int64       // by index: differences of LBAs seen; one more than ids
	only     []Use         // by index: what nobody else sees
	gaps     map[interval]bool
	borders  []id.Gen // of gaps, rising
	settled  []bool   // by how many borders are at or below a generation: something stays there
	scratch  []int
}

type lineage struct {
	view  view     // of the one that ends last, without its end
	lasts []id.Gen // the newest generation that each can show, rising
	first int      // the index of lasts[0] in ids
}

// row is a version of an LBA, and what is decided about it.
type row struct {
	gen     id.Gen
	entry   Entry
	kept    bool
	head    bool        // the map itself sees it
	viewers int         // how many do
	one     id.Snapshot // one of them
	index   int         // of that one
}

func newViewers(head view, snapshots marks) viewers {
	type viewer struct {
		id   id.Snapshot
		last id.Gen
	}
	members := map[string][]viewer{}
	views := map[string]view{}
	var order []string
	var key []byte
	add := func(s id.Snapshot, v view) {
		key = v.cut(0).append(key[:0])
		name := string(key)
		if _, ok := views[name]; !ok {
			order = append(order, name)
			views[name] = v.cut(genEnd)
		}
		members[name] = append(members[name], viewer{s, v.last()})
	}
	for _, k := range snapshots {
		add(k.id, k.view)
	}
	add(0, head)

	w := viewers{gaps: map[interval]bool{}}
	for _, name := range order {
		of := members[name]
		slices.SortFunc(of, func(a, b viewer) int { return cmp.Compare(a.last, b.last) })
		l := lineage{view: views[name], first: len(w.ids)}
		for _, v := range of {
			if v.id == 0 {
				w.head = len(w.ids)
			}
			w.ids = append(w.ids, v.id)
			l.lasts = append(l.lasts, v.last)
		}
		w.lineages = append(w.lineages, l)
		for _, g := range l.view.gaps() {
			w.gaps[g] = true
			w.borders = append(w.borders, g.From, g.End)
		}
	}
	w.mapped, w.only = make([]int64, len(w.ids)+1), make([]Use, len(w.ids))
	slices.Sort(w.borders)
	w.borders = slices.Compact(w.borders)
	w.settled = make([]bool, len(w.borders)+1)
	return w
}

// seen returns the indexes of those of the lineage who see an event of a
// generation before the next one: from the first to the second, without it.
func (l *lineage) seen(gen, next id.Gen) (int, int) {
	if gen >= next {
		return 0, 0
	}
	return l.first + l.below(gen), l.first + l.below(next)
}

// below returns how many of the lineage end below a generation.
func (l *lineage) below(gen id.Gen) int {
	n := len(l.lasts)
	switch {
	case gen <= l.lasts[0]:
		return 0
	case gen > l.lasts[n-1]:
		return n
	}
	return sort.Search(n, func(i int) bool { return l.lasts[i] >= gen })
}

// judge decides about the rows of an LBA, which come by rising generation, and
// the trims over it, which do too.
func (w *viewers) judge(rows []row, over []*coverTrim) {
	hiders := len(over) > 0
	for i := range w.lineages {
		w.judgeData(&w.lineages[i], rows, over)
	}
	for i := range rows {
		r := &rows[i]
		hiders = hiders || r.entry.Zero()
		if r.viewers == 1 && !r.head {
			w.alone(r)
		}
	}
	if !hiders {
		return
	}
	for i := range w.lineages {
		w.judgeHiders(&w.lineages[i], rows, over)
	}
}

// judgeData keeps the data that somebody of a lineage sees.
func (w *viewers) judgeData(l *lineage, rows []row, over []*coverTrim) {
	next := genEnd // row
	for i := len(rows) - 1; i >= 0; i-- {
		r := &rows[i]
		if !l.view.contains(r.gen) {
			continue
		}
		if !r.entry.Zero() {
			_, above := nextTrim(l.view, over, r.gen)
			w.count(l, r, min(next, above))
		}
		next = r.gen
	}
}

func (w *viewers) count(l *lineage, r *row, next id.Gen) {
	from, to := l.seen(r.gen, next)
	if from >= to {
		return
	}
	r.kept = true
	r.viewers += to - from
	r.head = r.head || from <= w.head && w.head < to
	r.one, r.index = w.ids[from], from
	w.mapped[from]++
	w.mapped[to]--
}

// alone counts what only one snapshot sees.
func (w *viewers) alone(r *row) {
	u := &w.only[r.index]
	u.OnlyMapped++
	u.OnlyBytes += int64(r.entry.Ref.Location.Len())
}

// judgeHiders keeps those zeros and trims that a lineage needs.
func (w *viewers) judgeHiders(l *lineage, rows []row, over []*coverTrim) {
	in := w.scratch[:0]
	for i := range rows {
		if l.view.contains(rows[i].gen) {
			in = append(in, i)
		}
	}
	w.scratch = in
	data := false // is the newest event that stays
	below := id.Gen(0)
	for n, i := range in {
		r := &rows[i]
		data = data && !l.hides(over, below, r.gen)
		below = r.gen
		switch {
		case !r.entry.Zero():
			data = data || r.kept
			continue
		case r.kept:
			data = false
		case data:
			next := genEnd
			if n+1 < len(in) {
				next = rows[in[n+1]].gen
			}
			_, above := nextTrim(l.view, over, r.gen)
			if from, to := l.seen(r.gen, min(next, above)); from < to {
				r.kept, data = true, false
			}
		}
	}
	if data {
		l.hides(over, below, genEnd)
	}
}

// hides reports whether a trim is needed, and stays, between the generations of
// two rows, of which the older is data that stays, or nothing is between it and
// such. The first one that somebody sees is.
func (l *lineage) hides(over []*coverTrim, below, next id.Gen) bool {
	at, gen := nextTrim(l.view, over, below)
	for gen <= next && at < len(over) {
		t := over[at]
		var above id.Gen
		at, above = nextTrim(l.view, over, gen)
		if from, to := l.seen(gen, min(above, next)); from < to {
			t.needed = true
		}
		if t.needed {
			return true
		}
		gen = above
	}
	return false
}

// nextTrim returns the oldest trim above a generation that a view contains, by
// its index and its generation; genEnd if there is none.
func nextTrim(v view, over []*coverTrim, gen id.Gen) (int, id.Gen) {
	n := len(over)
	if n == 0 || over[n-1].gen <= gen {
		return n, genEnd
	}
	at := sort.Search(n, func(i int) bool { return over[i].gen > gen })
	for ; at < n && !v.contains(over[at].gen); at++ {
	}
	if at == n {
		return n, genEnd
	}
	return at, over[at].gen
}

// ends returns the generations at which a view begins or ends, rising: between
// two of them all viewers see all generations, or none.
func (w *viewers) ends() []id.Gen {
	var out []id.Gen
	for i := range w.lineages {
		l := &w.lineages[i]
		for _, in := range l.view {
			out = append(out, in.From, in.End)
		}
		for _, last := range l.lasts {
			out = append(out, last+1)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// survives notes that something of a generation stays.
func (w *viewers) survives(gen id.Gen) {
	if len(w.borders) > 0 {
		w.settled[countUpTo(w.borders, gen)] = true
	}
}

// closed returns the view without the gaps in which nothing stays.
func (w *viewers) closed(v view) view {
	var out view
	from := v[0].From
	if w.empty(interval{0, from}) {
		from = 0
	}
	for i, in := range v {
		if i+1 < len(v) && w.empty(interval{in.End, v[i+1].From}) {
			continue
		}
		out = append(out, interval{from, in.End})
		if i+1 < len(v) {
			from = v[i+1].From
		}
	}
	return out
}

// empty reports whether an interval is a gap in which nothing stays.
func (w *viewers) empty(g interval) bool {
	if !w.gaps[g] {
		return false
	}
	from, end := countUpTo(w.borders, g.From), countUpTo(w.borders, g.End)
	return !slices.Contains(w.settled[from:end], true)
}

// countUpTo returns how many of rising generations are at or below one.
func countUpTo(rising []id.Gen, gen id.Gen) int {
	return sort.Search(len(rising), func(i int) bool { return rising[i] > gen })
}

// uses returns how many LBAs the map itself shows, and what its snapshots see.
func (w *viewers) uses() (int64, map[id.Snapshot]Use) {
	head, sum := int64(0), int64(0)
	out := make(map[id.Snapshot]Use, len(w.ids))
	for i, s := range w.ids {
		sum += w.mapped[i]
		if i == w.head {
			head = sum
			continue
		}
		u := w.only[i]
		u.Mapped = sum
		out[s] = u
	}
	return head, out
}
