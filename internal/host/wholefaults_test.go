package host

import (
	"errors"
	"time"

	"plinth/internal/vfsx/crashfs"
	"plinth/nbd"
)

// fault has one thing go wrong, and what it takes until that is over.
func (w *whole) fault() {
	h := w.hosts[w.rng.IntN(wholeHosts)]
	pause := func(most time.Duration) { time.Sleep(time.Duration(w.rng.Int64N(int64(most)))) }
	switch k := w.rng.IntN(14); {
	case k < 2:
		w.count("hosts killed")
		h.kill()
		pause(3 * wholeTTL)
		h.open()
	case k < 4:
		w.count("hosts cut off")
		h.cut(true)
		pause(3 * wholeTTL)
		h.cut(false)
	case k < 5:
		w.count("ways cut")
		way := h.ways[w.rng.IntN(wholeNodes)]
		way.sever(true)
		pause(2 * wholeTTL)
		way.sever(false)
	case k < 7:
		w.count("ways that lose messages")
		for _, way := range h.ways {
			way.bad.Store(w.rng.IntN(2) == 0)
		}
		pause(2 * wholeTTL)
		for _, way := range h.ways {
			way.bad.Store(false)
		}
	case k < 8:
		w.count("nodes cut off")
		n := w.rng.IntN(wholeNodes)
		w.nodes.Away(n)
		pause(4 * time.Second)
		w.nodes.Back(n)
	case k < 9 && w.rng.IntN(2) == 0:
		w.takeBack()
	case k < 9:
		w.count("clocks that jumped")
		h.jump.Add(w.rng.Int64N(int64(2 * wholeTTL)))
	case k < 12:
		w.crash(w.rng.IntN(wholeNodes))
	case k < 13:
		w.replace()
	default:
		w.count("slow drives")
		w.bad.slow.Store(true)
		pause(2 * time.Second)
		w.bad.slow.Store(false)
	}
	w.revive()
}

// crash ends a node's process, or takes the power from it, at some byte that it
// writes, and starts it again.
func (w *whole) crash(n int) {
	w.drives[n].Load().Limit(w.rng.Int64N(1 << 20))
	for range 10 {
		if w.drives[n].Load().Crashed() {
			break
		}
		time.Sleep(time.Duration(w.rng.IntN(100)) * time.Millisecond)
	}
	w.lose(n)
	time.Sleep(time.Duration(w.rng.IntN(4000)) * time.Millisecond)
	w.start(n)
}

func (w *whole) lose(n int) {
	var left *crashfs.FS
	if w.rng.IntN(2) == 0 {
		w.count("nodes killed")
		left = w.drives[n].Load().Kill()
	} else {
		w.count("nodes without power")
		left = w.drives[n].Load().Crash(w.rng, w.rng.IntN(101))
	}
	w.nodes.Crash(n, w.park(n, left))
	w.drives[n].Store(left)
}

func (w *whole) start(n int) {
	w.nodes.Start(n)
	w.parks[n].Opened()
}

// revive opens hosts whose session has ended.
func (w *whole) revive() {
	for _, h := range w.hosts {
		if h.broken() {
			w.count("sessions that ended")
			h.close()
			h.open()
		}
	}
}

// somewhere has any host's device of a disk, for as long as it takes.
func (w *whole) somewhere(d *wholeDisk, what string, do func(dev nbd.Device) error) {
	for deadline := time.Now().Add(2 * time.Minute); !w.Failed(); time.Sleep(100 * time.Millisecond) {
		var errs []error
		for _, h := range w.hosts {
			err := w.use(h.host(), d.name, do)
			if err == nil {
				return
			}
			errs = append(errs, err)
		}
		if time.Now().After(deadline) {
			w.Errorf("disk %s: %s: %v", d.name, what, errors.Join(errs...))
		}
		w.revive()
	}
}

// heal waits until each disk is served, and reads it.
func (w *whole) heal() {
	w.revive()
	for _, d := range w.disks {
		w.somewhere(d, "read", func(dev nbd.Device) error {
			return d.Read(0, wholeSectors, func(p []byte) error { return dev.ReadAt(w.Context(), p, 0) })
		})
	}
}

// blackout takes the power from all nodes at once, after a flush.
func (w *whole) blackout() {
	for _, d := range w.disks {
		w.somewhere(d, "flush", func(dev nbd.Device) error { return dev.Flush(w.Context()) })
	}
	w.count("blackouts")
	for n := range w.drives {
		w.lose(n)
	}
	for n := range w.drives {
		w.start(n)
	}
	for _, h := range w.hosts {
		h.kill()
	}
	for _, h := range w.hosts {
		h.open()
	}
	w.heal()
}

// settle wants everything in order where all disks are at one host.
func (w *whole) settle() {
	h := w.hosts[0].host()
	for _, d := range w.disks {
		for deadline := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
			err := h.MoveDisk(w.Context(), d.name, h.opts.Name)
			if err == nil {
				break
			}
			if time.Now().After(deadline) {
				w.Fatalf("move %s: %v", d.name, err)
			}
		}
	}
	for _, other := range w.hosts[1:] {
		other.kill()
	}
	time.Sleep(5 * time.Second)
	for range 3 {
		w.ok(h.Quiesce(w.Context()))
		w.ok(h.Sweep(w.Context()))
		_, err := h.Reclaim(w.Context(), ReclaimOptions{Full: true})
		w.ok(err)
	}
	report, err := h.Verify(w.Context(), VerifyOptions{Repair: true})
	w.ok(err)
	if !report.OK() {
		w.Errorf("verify cannot mend: %+v", report)
	}
	for range report.Findings {
		w.count("findings mended")
	}
	report, err = h.Verify(w.Context(), VerifyOptions{Strict: true})
	w.ok(err)
	if len(report.Findings) > 0 || report.Elsewhere > 0 || report.Rebuilding {
		w.Errorf("verify: %+v", report)
	}
	w.heal()
}

func (w *whole) end() {
	for _, h := range w.hosts {
		h.close()
	}
}
