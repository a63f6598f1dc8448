package owner

import (
	"fmt"
	"time"

	"plinth/datanode"
	"plinth/internal/id"
)

// carry does an action: a call goes to the registry and comes back, each way late
// or never; the caller gives up before that.
func (h *simHost) carry(a Action) {
	w := h.w
	switch a.Do {
	case Serve:
		if w.fenced[a.Disk] != a.Epoch || a.Epoch <= w.served[a.Disk] {
			w.fail("%s serves disk %d under epoch %d; fenced is %d, served was %d", h.name, a.Disk, a.Epoch, w.fenced[a.Disk], w.served[a.Disk])
		}
		w.served[a.Disk] = a.Epoch
		h.knows[a.Disk] = w.content[a.Disk]
		return
	case Stop:
		delete(h.knows, a.Disk)
		return
	case Ask:
		for _, other := range w.hosts {
			if other.name == a.Host && !w.lost(h) && !w.lost(other) {
				w.handovers++
				w.After(w.delay(), func() { other.step(Unwant{a.Disk}) })
			}
		}
		return
	}
	life, answered := h.life, false
	answer := func(e Event) {
		if h.life == life && !answered {
			answered = true
			h.step(e)
		}
	}
	w.After(simTimeout, func() { answer(a.result(Failed, w, 0)) })
	there := w.delay()
	if w.lost(h) {
		if w.Rand.IntN(2) == 0 {
			return
		}
		there += max(h.cut-w.Now, 0) // it was only held back
	}
	w.After(there, func() {
		e := w.handle(h, a)
		if !w.lost(h) {
			w.After(w.delay(), func() { answer(e) })
		}
	})
}

// lost tells whether a message of the host is lost.
func (w *world) lost(h *simHost) bool {
	return w.Now < h.cut || !w.calm && w.Rand.IntN(50) == 0
}

func (w *world) delay() time.Duration {
	if !w.calm && w.Rand.IntN(40) == 0 {
		return w.Span(0, 15*time.Second)
	}
	return w.Span(200*time.Microsecond, 20*time.Millisecond)
}

// result is the event that answers an action.
func (a Action) result(o Outcome, w *world, lease datanode.LeaseID) Event {
	switch a.Do {
	case Grant:
		return Granted{a.Call, o, lease}
	case KeepAlive:
		return KeptAlive{a.Call, o}
	case Look:
		owner, epoch := w.owners[a.Disk], w.epochs[a.Disk]
		return Looked{a.Call, a.Disk, o, owner.host, owner.lease, owner.epoch, epoch.newest, epoch.at}
	case Claim:
		return Claimed{a.Call, a.Disk, o}
	case Fence:
		return Fenced{a.Call, a.Disk, o}
	case Drain:
		return Drained{a.Call, a.Disk, o}
	case Release:
		return Released{a.Call, a.Disk, o}
	}
	panic(fmt.Sprintf("action %d is not answered", a.Do))
}

// handle is the registry, and the data nodes for Fence.
func (w *world) handle(h *simHost, a Action) Event {
	_, lasts := w.leases[a.Lease]
	o := Done
	switch a.Do {
	case Grant:
		lease := datanode.LeaseID(w.Rand.Uint64()>>1 + 1)
		w.lasts(lease)
		return a.result(Done, w, lease)
	case KeepAlive:
		if o = Lost; lasts {
			w.lasts(a.Lease)
			o = Done
		}
	case Claim:
		_, owned := w.owners[a.Disk]
		switch {
		case !lasts:
			o = Lost
		case owned || w.epochs[a.Disk].at != a.EpochAt:
			o = Refused
		default:
			w.revision++
			w.owners[a.Disk] = ownerKey{h.name, a.Lease, a.Epoch}
			w.epochs[a.Disk] = epochKey{a.Epoch, w.revision}
		}
	case Release:
		if k := w.owners[a.Disk]; k.lease == a.Lease && k.epoch == a.Epoch && k.host == h.name {
			w.disown(a.Disk)
		} else {
			o = Refused
		}
	case Fence:
		if o = Overtaken; a.Epoch > w.fenced[a.Disk] {
			w.fenced[a.Disk] = a.Epoch
			o = Done
			w.takeovers++
		} else if a.Epoch == w.fenced[a.Disk] {
			o = Done // asked again
		}
	}
	return a.result(o, w, 0)
}

// lasts makes a lease last its time, by the registry's clock.
func (w *world) lasts(lease datanode.LeaseID) {
	span := float64(simTTL) * (1 + 1.0/datanode.LeaseMarginDivisor - w.early) / w.rate
	end := w.Now + time.Duration(span)
	w.leases[lease] = end
	w.After(end-w.Now, func() {
		if w.leases[lease] != end {
			return
		}
		delete(w.leases, lease)
		for d := range id.Disk(simDisks + 1) { // not by the map's order: a seed shall say all
			if w.owners[d].lease == lease {
				w.expired++
				w.disown(d)
			}
		}
	})
}

// disown deletes an owner key; watches hear of it, or not.
func (w *world) disown(d id.Disk) {
	w.revision++
	delete(w.owners, d)
	for _, h := range w.hosts {
		if !w.lost(h) {
			w.After(w.delay(), func() { h.step(Vanished{d}) })
		}
	}
}
