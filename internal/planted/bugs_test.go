package planted

const (
	histories = "internal/history TestSimHistories -histories 150"
	twoHosts  = "internal/history TestSimTwoHosts -history-two 12"
	linear    = "internal/host TestSimLinearizable -linear-runs 40"
	groups    = "internal/host TestSimGroups"
	powerLoss = "internal/crash TestSimPowerLoss"
	killed    = "internal/crash TestCrashKill"
)

var bugs = []bug{
	// The log.
	{
		"log takes an old epoch", "datanode/writelog/log.go",
		"	case epoch < d.epoch:\n		return nil, datanode.Errorf(datanode.ErrFenced,", "	case epoch+1 < d.epoch:\n		return nil, datanode.Errorf(datanode.ErrFenced,",
		[]string{"datanode/writelog .", histories},
	},
	{
		"log takes a position twice", "datanode/writelog/write.go",
		"first != t.end {", "first > t.end {",
		[]string{"datanode/shelf .", histories},
	},
	{
		"sync skips the file before", "datanode/writelog/sync.go",
		"range []*file{prev, f} {", "range []*file{prev, f}[1:] {",
		[]string{"datanode/writelog .", powerLoss},
	},
	{
		"sync counts what came meanwhile", "datanode/writelog/sync.go",
		"	l.advance(written)\n	return nil", "	l.advance(max(written, l.written.Load()))\n	return nil",
		[]string{"datanode/writelog .", powerLoss},
	},
	{
		"log goes on after a failed sync", "datanode/writelog/sync.go",
		"return l.die(fmt.Errorf(\"sync %s: %w\", f.name, err))", "return fmt.Errorf(\"sync %s: %w\", f.name, err)",
		[]string{"datanode/writelog .", powerLoss},
	},
	{
		"log uses a file that a snapshot names", "datanode/writelog/write.go",
		"f != old && !f.listed && f.live == 0", "f != old && f.live == 0",
		[]string{"datanode/writelog .", powerLoss},
	},
	{
		"log rolls before the last roll is stable", "datanode/writelog/write.go",
		"	if wait {\n		if err := l.syncHead()", "	if wait && old == nil {\n		if err := l.syncHead()",
		[]string{"datanode/writelog .", powerLoss},
	},
	{
		"trim takes one record more", "datanode/writelog/state.go",
		"n := min(int(through-r.start)+1, len(r.at))", "n := min(int(through-r.start)+2, len(r.at))",
		[]string{"datanode/writelog .", histories},
	},
	{
		"recovery takes damage for a torn tail", "datanode/writelog/recover.go",
		"	if at, ok := provenStable(r.content, f.salt, off); ok {", "	if at, ok := provenStable(r.content, f.salt, off); ok && at < off {",
		[]string{"datanode/writelog ."},
	},
	{
		"recovery takes records of a dropped log", "datanode/writelog/recover.go",
		"d == nil || d.born.compare(birth{f.seq, uint32(off)}) > 0", "d == nil",
		[]string{"datanode/writelog .", histories},
	},
	// The index.
	{
		"an old list replaces a newer one", "datanode/index/lists.go",
		"if old != nil && !old.last.less(at) {", "if old != nil && at.epoch < old.last.epoch {",
		[]string{"datanode/index .", histories},
	},
	{
		"reclaim forgets births", "datanode/index/lists.go",
		"return b.Disk != except && b.Epoch > cleared[b.Disk]", "return b.Disk != except && b.Epoch > cleared[b.Disk]+1",
		[]string{"datanode/index .", histories},
	},
	{
		"fragments go before their tombstone is stable", "datanode/index/reclaim.go",
		"	return doomed, x.store.Sync()\n", "	return doomed, nil\n",
		[]string{"datanode/index .", powerLoss, histories},
	},
	{
		"a held candidate is deleted", "datanode/index/reclaim.go",
		"if held, err := c.x.held(s, row, 0); err != nil || held {", "if held, err := c.x.held(s, row, 0); err != nil || held && len(row.births) > 1 {",
		[]string{"datanode/index .", histories},
	},
	{
		"reclaim with an incomplete index", "datanode/index/reclaim.go",
		"	if !x.super.Load().complete {", "	if !x.super.Load().complete && max < 0 {",
		[]string{"datanode/index .", histories},
	},
	{
		"look-up finds what is condemned", "datanode/index/lookup.go",
		"live = datanode.State(v[1]) == datanode.StateLive", "live = datanode.State(v[1]) != datanode.StateDeleting",
		[]string{"datanode/index .", histories},
	},
	{
		"look-up registers all but the last", "datanode/index/lookup.go",
		"		for _, i := range group {\n			row.bits", "		for _, i := range group[:max(1, len(group)-1)] {\n			row.bits",
		[]string{"datanode/index .", histories},
	},
	{
		"registration under an old pass", "datanode/index/lookup.go",
		"if at.less(row.set) {", "if at.epoch < row.set.epoch {",
		[]string{"datanode/index .", histories},
	},
	{
		"copies are not held by who held the chunk", "datanode/index/forward.go",
		"	for i := range holders {\n		if err := c.spread", "	for i := range holders[:min(1, len(holders))] {\n		if err := c.spread",
		[]string{"datanode/index .", histories},
	},
	{
		"moves are told before they are stable", "datanode/index/forward.go",
		"	if err == nil && len(reply.Forwards) > 0 {\n		err = x.store.Sync()", "	if err == nil && len(reply.Forwards) > 1<<20 {\n		err = x.store.Sync()",
		[]string{"datanode/index .", histories, powerLoss},
	},
	{
		"what is deleted is published again", "datanode/index/publish.go",
		"	case gone || row != nil && row.state == datanode.StateDeleting:\n		return datanode.Errorf(datanode.ErrGone, \"publish", "	case gone && row != nil:\n		return datanode.Errorf(datanode.ErrGone, \"publish",
		[]string{"datanode/index .", histories},
	},
	// The registry.
	{
		"registry forgets the guards", "internal/registry/calls.go",
		"		if err := p.opts.CheckEpoch(g.Disk, g.Epoch); err != nil {", "		if err := p.opts.CheckEpoch(g.Disk, g.Epoch+1); err != nil {",
		[]string{"internal/registry .", "datanode/shelf .", histories},
	},
	{
		"a lease ends before its holder counts", "internal/registry/lease.go",
		"	return p.clock() + ttl + ttl/datanode.LeaseMarginDivisor", "	return p.clock() + ttl*3/4",
		[]string{linear},
	},
	// Spindles.
	{
		"blocks are free before the entry is cleared", "datanode/spindle/write.go",
		"	for _, f := range gone {\n		if err := f.syncSlabs(); err != nil {", "	for _, f := range gone[:0] {\n		if err := f.syncSlabs(); err != nil {",
		[]string{"datanode/spindle .", powerLoss},
	},
	{
		"a fragment is there after its deletion", "datanode/spindle/write.go",
		"			p.cancelled = true", "			p.cancelled = n.index > 31",
		[]string{"datanode/spindle .", histories},
	},
	// Stripes.
	{
		"damaged blocks count", "internal/stripe/part.go",
		"return p.state == present && p.has(b) && (p.bad == nil || !p.bad[b])", "return p.state == present && p.has(b)",
		[]string{"internal/stripe ."},
	},
	{
		"a failed fragment counts as written", "internal/stripe/write.go",
		"			s.markFailed(list[i])\n", "			s.markFailed(list[i])\n			continue\n",
		[]string{"internal/stripe .", histories},
	},
	// A disk's destaging.
	{
		"acknowledged before it is appended", "internal/disk/commit.go",
		"			b.done, b.err = true, err", "			_, b.done = err, true",
		[]string{linear},
	},
	{
		"flush without a sync", "internal/disk/disk.go",
		"	err := d.pool.Node.Sync(ctx, &datanode.SyncRequest{Disk: d.cfg.ID, Epoch: d.cfg.Epoch})\n	return d.outcome(err)", "	err := d.mayReply()\n	return d.outcome(err)",
		[]string{powerLoss},
	},
	{
		"a result forgets forwarded changes", "internal/disk/result.go",
		"done := d.done.carry(res.Through); done != nil {", "done := d.done.carry(res.Through); done != nil && false {",
		[]string{"internal/disk TestSimOnce"},
	},
	{
		"a checkpoint forgets forwarded changes", "internal/disk/checkpoint.go",
		"Done: d.done.carry(s.through),", "Done: nil,",
		[]string{"internal/disk TestSimOnce"},
	},
	{
		"an owner does not note where the one before ended", "internal/disk/open.go",
		"		d.done.owner(r.Epoch, r.Pos)\n", "",
		[]string{"internal/disk TestResume"},
	},
	{
		"a segment is published that was not written", "internal/disk/destage.go",
		"			return fmt.Errorf(\"write segment: %w\", err)", "			r.pool.Logger.Warn(\"write segment\", \"err\", err)",
		[]string{"internal/disk .", histories},
	},
	{
		"look-ups are not made stable", "internal/disk/destage.go",
		"for first := true; first || len(entries) > 0; first = false {", "for first := len(entries) > 0; first || len(entries) > 0; first = false {",
		[]string{"internal/standalone TestCrashAfterDuplicates"},
	},
	{
		"another disk's new chunk is used without a hold", "internal/disk/destage.go",
		"			case ok && at.owner == w:", "			case ok:",
		[]string{"internal/disk .", histories},
	},
	{
		"results go before a checkpoint has them", "internal/disk/checkpoint.go",
		"Stream: datanode.Results, Through: s.result,", "Stream: datanode.Results, Through: s.result + min(1, d.state.result-s.result),",
		[]string{"internal/disk .", histories, powerLoss},
	},
	{
		"the memo is not told", "internal/disk/result.go",
		"				if u := &r.Updates[i]; !yield(u.LBA, &u.Fingerprint) {", "				if u := &r.Updates[i]; i%64 < 63 && !yield(u.LBA, &u.Fingerprint) {",
		[]string{"internal/disk .", histories},
	},
	// A disk's pass.
	{
		"a pass forgets look-ups beside it", "internal/disk/destage.go",
		"	if d.registered != nil {", "	if d.registered != nil && d.holds.Load() > 0 {",
		[]string{"internal/disk .", histories},
	},
	{
		"a pass gives up the newest checkpoint", "internal/disk/pass.go",
		"range [][]blockmap.Object{d.checkpointObjects(), d.m.Objects()} {", "range [][]blockmap.Object{d.m.Objects()} {",
		[]string{"internal/disk .", histories},
	},
	{
		"a pass gives up what the checkpoint names", "internal/disk/pass.go",
		"	if err == nil && !p.stuck {\n", "	if err == nil && !p.stuck && len(p.moves) < 0 {\n",
		[]string{"internal/disk .", histories},
	},
	{
		"a pass forgets a snapshot in the making", "internal/disk/pass.go",
		"if _, ok := unsettled[m.ID]; !ok && !there[m.ID] {", "if _, ok := unsettled[m.ID]; !there[m.ID] && (ok || !ok) {",
		[]string{"internal/disk .", histories},
	},
	{
		"a move overwrites a newer version", "internal/disk/moves.go",
		"if ok && e.Ref.Segment == q.From.Segment && e.Ref.Slot == q.From.Slot {\n			patches = append(patches, logrec.Patch{LBA: q.LBA, Gen: q.Gen, Segment: q.From.Segment, Slot: q.From.Slot, To: q.To})",
		"if ok {\n			patches = append(patches, logrec.Patch{LBA: q.LBA, Gen: q.Gen, Segment: e.Ref.Segment, Slot: e.Ref.Slot, To: q.To})",
		[]string{"internal/disk .", histories},
	},
	{
		"a pass states lists that are held", "internal/disk/lists.go",
		"	if d.holds.Load() > 0 {", "	if d.holds.Load() > 1 {",
		[]string{"internal/disk .", histories},
	},
	// Snapshots.
	{
		"a snapshot is not stable", "internal/disk/mark.go",
		"		g.Go(func() error { return r.Disk.sync(ctx) })", "		g.Go(func() error { return r.Disk.mayReply() })",
		[]string{powerLoss, "internal/crash TestCrashSnapshots", "internal/disk ."},
	},
	{
		"a group is not of one instant", "internal/disk/mark.go",
		"		h.locked++\n", "		r.Disk.appendMu.Unlock()\n",
		[]string{"internal/disk .", "internal/crash TestCrashSnapshots"},
	},
	{
		"a group's disks do not wait", "internal/disk/mark.go",
		"	if up {\n", "	if up && len(rs) > 60 {\n",
		[]string{groups},
	},
	{
		"who has waited for a group goes on", "internal/host/groupjoin.go",
		"	if err := h.endGroup(h.life, g, needed); err != nil {", "	if err := h.life.Err(); err != nil && needed() {",
		[]string{groups},
	},
	{
		"a group is made after a takeover", "internal/host/snapshotmake.go",
		"Epoch: m.epoch})", "Epoch: m.epoch + 1<<20})",
		[]string{groups},
	},
	{
		"a group is made after its end", "internal/host/groupmake.go",
		"	txn.Compares = append(txn.Compares, datanode.Compare{Key: groupKey(g.id), Revision: g.revision})\n", "",
		[]string{groups},
	},
	// The wire.
	{
		"a lost session's call is sent in the next", "datanode/wire/link.go",
		"func (c *Client) join(l *link, conn *conn) {\n	c.renewing.Lock()\n	defer c.renewing.Unlock()\n", "func (c *Client) join(l *link, conn *conn) {\n",
		[]string{"datanode/wire NextSessionWaits"},
	},
	// The rebuild.
	{
		"a layout counts for a drive that came since", "internal/rebuild/share.go",
		"		if r.Pass.Spindles[s] != incarnation || !slices", "		if _, is := r.Pass.Spindles[s]; !is || incarnation == 0 || !slices",
		[]string{"internal/rebuild ."},
	},
	{
		"a result counts that was taken back", "internal/rebuild/share.go",
		"	case !open:\n", "	case !open && t.Outcome == nil:\n",
		[]string{"internal/rebuild ."},
	},
	{
		"a layout that was given is given again", "internal/rebuild/share.go",
		"			taken[l], got = true, append(got, name)\n", "			got = append(got, name)\n",
		[]string{"internal/rebuild ."},
	},
	{
		"what hosts have is forgotten by the next warden", "internal/rebuild/share.go",
		"	case taken[t.Layout]:\n", "	case taken[t.Layout] && len(h.open) > TasksMax:\n",
		[]string{"internal/rebuild ."},
	},
	// Hosts.
	{
		"a former warden fences its successor", "internal/host/mover.go",
		"Compares: []datanode.Compare{{Key: keyWarden, Revision: w.revision}, {Key", "Compares: []datanode.Compare{{Key",
		[]string{"internal/host TestFormerWarden"},
	},
	{
		"a host replies after its lease", "internal/host/lease.go",
		"			return int64(r.clock+passed+clockSlack) < until", "			return int64(r.clock+passed) < until+int64(time.Hour)",
		[]string{"internal/host TestTerm"},
	},
	{
		"a disk's record is read before it is fenced", "internal/host/install.go",
		"	e.rec, e.now = *rec, *rec\n", "	e.rec = *rec\n",
		[]string{"internal/host TestRecordIsReadWhenFenced"},
	},
}
