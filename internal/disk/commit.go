package disk

import (
	"context"
	"errors"
	"fmt"
	"time"

	"plinth/datanode"
	"plinth/internal/chunk"
	"plinth/internal/id"
	"plinth/internal/logrec"
)

// logFullWaitMax bounds how long an append waits for room in the log. Past it
// the write fails with ErrNoSpace and nothing of it is in the log.
const logFullWaitMax = 30 * time.Second

// pending is a record that has no position yet.
type pending struct {
	op    logrec.Op
	data  []byte
	plain []byte // of a part, which is sealed when its position is known
}

// commit is what one call adds to the log, all or none.
type commit struct {
	recs   []pending
	charge int64 // 0 once a layer has it: guarded by appendMu, as are
	done   bool
	err    error
	last   id.Pos // of recs, when they were appended or that was tried
}

func (c *commit) bytesMax() int {
	n := 0
	for i := range c.recs {
		n += len(c.recs[i].data)
		if p := c.recs[i].plain; p != nil {
			n += writeHeaderCap + chunk.SealedCap(len(p))
		}
	}
	return n
}

// commit appends c to the log and applies it to the write buffer. Whoever gets
// appendMu first appends for all that wait.
func (d *Disk) commit(c *commit) error {
	d.queueMu.Lock()
	d.queue = append(d.queue, c)
	d.queueMu.Unlock()
	d.appendMu.Lock()
	defer d.appendMu.Unlock()
	for !c.done {
		if held := d.held; held != nil {
			d.appendMu.Unlock()
			<-held
			d.appendMu.Lock()
			continue
		}
		batch := d.takeQueue()
		err := d.appendBatch(batch, d.appendOps)
		for _, b := range batch {
			b.done, b.err = true, err
		}
	}
	return c.err
}

// takeQueue returns the oldest commits that fit one append, at least one.
func (d *Disk) takeQueue() []*commit {
	d.queueMu.Lock()
	defer d.queueMu.Unlock()
	n, bytes, recs := 0, 0, 0
	bytesMax := min(datanode.AppendBytesMax, 2*d.pool.portionBytes())
	for _, c := range d.queue {
		bytes, recs = bytes+c.bytesMax(), recs+len(c.recs)
		if n > 0 && (bytes > bytesMax || recs > datanode.RecordsMax) {
			break
		}
		n++
	}
	batch := d.queue[:n:n]
	if d.queue = d.queue[n:]; len(d.queue) == 0 {
		d.queue = nil // let the backing array go
	}
	return batch
}

// appendBatch gives the batch its positions and MACs, appends it by add and
// applies it. An error means that nothing of it was appended, or if it is in doubt
// that the disk has failed, and perhaps all was. appendMu is held.
func (d *Disk) appendBatch(batch []*commit, add func([]datanode.Record) error) error {
	if err := d.Err(); err != nil {
		return err
	}
	head, pos := d.ops.Head(), d.next
	var recs []datanode.Record
	for _, c := range batch {
		for i := range c.recs {
			r := &c.recs[i]
			if r.plain != nil {
				if err := d.partRecord(r, pos); err != nil {
					d.rewind(head)
					return err
				}
			}
			mac := d.ops.Next(d.cfg.Epoch, pos, r.op.Type, r.data)
			recs = append(recs, datanode.Record{Pos: pos, Type: uint8(r.op.Type), MAC: mac, Data: r.data})
			c.last = pos
			pos++
		}
	}
	if err := add(recs); err != nil {
		d.rewind(head)
		if errors.Is(err, ErrNoSpace) || errors.Is(err, ErrBusy) || errors.Is(err, ErrClosed) {
			return err
		}
		return inDoubt{d.fail(fmt.Errorf("append to the log: %w", err))}
	}
	d.next = pos
	return d.applyBatch(batch, recs)
}

func (d *Disk) rewind(head logrec.MAC) {
	d.ops = logrec.NewChain(d.cfg.MACKey.Reveal(), d.cfg.ID, datanode.Ops, head)
}

// appendOps appends, waiting for room in the log.
func (d *Disk) appendOps(recs []datanode.Record) error {
	req := &datanode.AppendRequest{Disk: d.cfg.ID, Epoch: d.cfg.Epoch, Stream: datanode.Ops, Records: recs}
	_, err := d.pool.Node.Append(d.ctx, req)
	if !errors.Is(err, datanode.ErrLogFull) {
		return err
	}
	ctx, cancel := context.WithTimeout(d.ctx, logFullWaitMax)
	defer cancel()
	for errors.Is(err, datanode.ErrLogFull) {
		d.stats.logFull.Add(1)
		// What hinders one disk's relief may leave room enough.
		rerr := d.pool.Space.opts.Relieve(ctx)
		if errors.Is(rerr, ErrClosed) {
			return ErrClosed
		}
		if ctx.Err() != nil {
			return errors.Join(fmt.Errorf("the log is full and was not emptied in %v: %w", logFullWaitMax, ErrNoSpace), rerr)
		}
		// Relief may come from records that other disks pin: give it a moment.
		select {
		case <-ctx.Done():
		case <-time.After(10 * time.Millisecond):
		}
		_, err = d.pool.Node.Append(d.ctx, req)
	}
	return err
}

// applyBatch puts appended records into the write buffer.
func (d *Disk) applyBatch(batch []*commit, recs []datanode.Record) error {
	d.mu.Lock()
	i := 0
	var err error
	for _, c := range batch {
		for j := range c.recs {
			if err == nil {
				err = d.apply(c.recs[j].op, c.recs[j].plain, &recs[i])
			}
			i++
		}
		if err == nil {
			d.active().charge += c.charge
			c.charge = 0
		}
		d.stats.logged.Add(int64(len(c.recs)))
	}
	d.mu.Unlock()
	if err != nil { // a buffered chunk does not open: memory is damaged
		return d.fail(err)
	}
	return nil
}

// active returns the layer that takes writes; d.mu is held.
func (d *Disk) active() *layer { return d.layers[len(d.layers)-1] }

// freeze gives the disk a new active layer unless the present one is empty;
// d.mu is held.
func (d *Disk) freeze() {
	if !d.active().empty() {
		d.layers = append(d.layers, newLayer(d.size))
	}
}

// apply puts one operation into the write buffer; d.mu is held. plain is a
// part's plaintext.
func (d *Disk) apply(op logrec.Op, plain []byte, rec *datanode.Record) error {
	if op.Type == logrec.TypeDone { // it is the layer's that has its operation
		l := d.active()
		l.through, l.mac, l.diskBytes = rec.Pos, rec.MAC, d.bytes
		l.bytes += int64(len(rec.Data))
		return d.done.read(rec.Data, rec.Pos)
	}
	alone := op.Type == logrec.TypeResize || op.Type == logrec.TypeRollback
	if alone || d.active().full() || d.active().charge >= d.pool.Space.layerChargeMax() {
		d.freeze()
	}
	if alone {
		d.bytes = op.Len
	}
	l := d.active()
	var err error
	switch op.Type {
	case logrec.TypeSnapshot, logrec.TypeRollback:
		l.mark = logrec.Mark{Kind: op.Type, Snapshot: op.Snapshot}
	case logrec.TypeWrite:
		l.setSealed(op.First, op.Chunks)
	case logrec.TypePart:
		size := int64(d.size)
		err = l.patch(id.LBA(op.Off/size), int(op.Off%size), plain, d.openBuffered)
	case logrec.TypeZero:
		err = l.zeroBytes(op.Off, op.Len, d.openBuffered)
	case logrec.TypeTrim:
		size, end := int64(d.size), op.Off+op.Len
		if end >= d.bytes { // the end of the disk, as it is by now, ends its last chunk too
			end += size - 1
		}
		l.setZero(id.LBA(op.Off/size), id.LBA(end/size))
	}
	l.through, l.mac, l.diskBytes = rec.Pos, rec.MAC, d.bytes
	l.bytes += int64(len(rec.Data))
	if alone || op.Type == logrec.TypeSnapshot {
		d.freeze()
	}
	return err
}

// openBuffered decrypts a chunk of the write buffer.
func (d *Disk) openBuffered(sealed []byte) ([]byte, error) {
	h, err := chunk.ParseHeader(sealed)
	if err != nil {
		return nil, err
	}
	return d.pool.Opener.OpenChunk(make([]byte, 0, d.size), sealed, h.Fingerprint)
}
