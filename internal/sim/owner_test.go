package sim

import (
	"errors"
	"time"

	"plinth/datanode"
	"plinth/internal/id"
	"plinth/internal/owner"
)

// step gives the owner's machine an event and carries out what it says.
func (h *host) step(e owner.Event) {
	life := h.life
	for _, a := range h.machine.Step(h.clock(), e) {
		if h.life == life {
			h.carry(a)
		}
	}
	wake := h.w.Now + max(time.Duration(float64(h.machine.Wake()-h.clock())/h.rate), 0) + time.Microsecond
	if h.wakes <= h.w.Now || wake < h.wakes {
		h.wakes = wake
		h.later(wake-h.w.Now, func() {
			if h.wakes == wake {
				h.step(nil)
			}
		})
	}
}

func (h *host) carry(a owner.Action) {
	r := h.w.reg
	switch a.Do {
	case owner.Grant:
		send(h, r.at, true, func() (datanode.LeaseID, error) { return r.grant(), nil }, func(l datanode.LeaseID, err error) {
			h.step(owner.Granted{Call: a.Call, Outcome: failed(err), Lease: l})
		})
	case owner.KeepAlive:
		send(h, r.at, true, func() (owner.Outcome, error) {
			if _, lasts := r.leases[a.Lease]; !lasts {
				return owner.Lost, nil
			}
			r.lasts(a.Lease)
			return owner.Done, nil
		}, func(o owner.Outcome, err error) { h.step(owner.KeptAlive{Call: a.Call, Outcome: max(o, failed(err))}) })
	case owner.Look:
		send(h, r.at, true, func() (owner.Looked, error) {
			k, e := r.owners[a.Disk], r.epochs[a.Disk]
			return owner.Looked{Owner: k.host, OwnerLease: k.lease, OwnerEpoch: k.epoch, Newest: e.newest, EpochAt: e.at}, nil
		}, func(l owner.Looked, err error) {
			l.Call, l.Disk, l.Outcome = a.Call, a.Disk, failed(err)
			h.step(l)
		})
	case owner.Claim:
		send(h, r.at, true, func() (owner.Outcome, error) { return r.claim(h.name, a), nil }, func(o owner.Outcome, err error) {
			h.step(owner.Claimed{Call: a.Call, Disk: a.Disk, Outcome: max(o, failed(err))})
		})
	case owner.Release:
		send(h, r.at, true, func() (owner.Outcome, error) {
			if r.owners[a.Disk] != (ownerKey{h.name, a.Lease, a.Epoch}) {
				return owner.Refused, nil
			}
			r.disown(a.Disk)
			return owner.Done, nil
		}, func(o owner.Outcome, err error) {
			h.step(owner.Released{Call: a.Call, Disk: a.Disk, Outcome: max(o, failed(err))})
		})
	case owner.Ask:
		for _, other := range h.w.hosts {
			if other.name == a.Host && !h.w.chance(h.w.lost) {
				h.w.count.Moves++
				other.later(h.w.delay(), func() { other.step(owner.Unwant{Disk: a.Disk}) })
			}
		}
	case owner.Fence:
		h.close(a.Disk)
		h.open(a.Disk, a.Epoch, func(k *disk, o owner.Outcome) { h.step(owner.Fenced{Call: a.Call, Disk: a.Disk, Outcome: o}) })
	case owner.Serve:
		if k := h.disks[a.Disk]; k != nil && k.epoch == a.Epoch {
			k.serves = true
		}
	case owner.Stop:
		h.close(a.Disk)
	case owner.Drain:
		h.drain(a.Disk, func() { h.step(owner.Drained{Call: a.Call, Disk: a.Disk}) })
	}
}

func failed(err error) owner.Outcome {
	switch {
	case err == nil:
		return owner.Done
	case errors.Is(err, errFenced):
		return owner.Overtaken
	case errors.Is(err, errLease):
		return owner.Lost
	}
	return owner.Failed
}

// mayReply tells whether an answer of a disk may leave now.
func (k *disk) mayReply() bool {
	return k.serves && !k.closed && (k.h.machine.MayReply(k.d, k.epoch, k.h.clock()) || k.h.w.flaw == zombieReplies)
}

// replies is called where an answer leaves.
func (w *world) replies(k *disk) {
	for _, h := range w.hosts {
		if o := h.disks[k.d]; o != nil && o != k && !o.closed && o.serves && h.machine.MayReply(k.d, o.epoch, h.clock()) {
			w.fail("%s and %s may both reply for disk %d", h.name, k.h.name, k.d)
		}
	}
}

// drain lets what is under way finish and makes it stable.
func (h *host) drain(d id.Disk, then func()) {
	k := h.disks[d]
	if k == nil || k.closed || !k.serves {
		h.later(0, then)
		return
	}
	k.draining = true
	k.log.begin(&logOp{sync: true, then: func(error) { h.later(0, then) }})
}

// close ends a disk at once.
func (h *host) close(d id.Disk) {
	h.closes[d]++
	if k := h.disks[d]; k != nil {
		h.disks[d] = nil
		k.end()
	}
}

// end stops a disk: nobody hears of it any more what has not been acknowledged.
func (k *disk) end() {
	if k.closed {
		return
	}
	k.closed = true
	k.log.end()
	k.h.later(0, func() { k.h.kill(k) })
}

// fail ends a disk that can do no more. One that is served is opened anew, under
// another epoch.
func (k *disk) fail(o owner.Outcome) {
	if k.closed {
		return
	}
	h := k.h
	k.end()
	h.disks[k.d] = nil
	if k.serves {
		h.w.count.Reopened++
		h.reopen(k.d, k.epoch)
		return
	}
	h.later(100*time.Millisecond, func() {
		if h.disks[k.d] == nil {
			k.then(k, o)
		}
	})
}

func (h *host) reopen(d id.Disk, e id.Epoch) {
	closes := h.closes[d]
	h.open(d, e, func(k *disk, o owner.Outcome) {
		switch {
		case h.closes[d] != closes:
		case o == owner.Done:
			k.serves = true
		case o == owner.Failed:
			h.reopen(d, k.epoch)
		default: // somebody else has it, or nobody knows: it is given up and taken again
			h.step(owner.Unwant{Disk: d})
			h.later(leaseTTL, func() { h.step(owner.Adopt{Disk: d}) })
		}
	})
}
