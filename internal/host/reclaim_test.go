package host_test

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"strconv"
	"testing"

	"plinth/datanode"
	"plinth/internal/host"
	"plinth/internal/id"
	"plinth/nbd"
)

const chunkBytes = 4096

// scribble fills p with bytes that do not compress.
func scribble(seed uint64, p []byte) []byte {
	rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16), 1}).Read(p)
	return p
}

// overwrite writes new content to some chunks of a disk, one at a time.
func (s *site) overwrite(name string, content []byte, rng *rand.Rand, writes int) {
	s.Helper()
	s.ok(s.device(name, func(d nbd.Device) error {
		for range writes {
			at := rng.IntN(len(content)/chunkBytes) * chunkBytes
			if err := d.WriteAt(s.Context(), scribble(rng.Uint64(), content[at:at+chunkBytes]), int64(at), false); err != nil {
				return err
			}
		}
		return nil
	}))
}

// strict verifies strictly, which nothing is to be found by.
func (s *site) strict() {
	s.Helper()
	r, err := s.Host.Verify(s.Context(), host.VerifyOptions{Strict: true})
	s.ok(err)
	for i, f := range r.Findings {
		if i == 10 {
			s.Errorf("and %d more", len(r.Findings)-i+r.More)
			break
		}
		s.Errorf("verify: %s: %s: %s", f.Kind, f.Where, f.What)
	}
}

// full reclaims all that can be had from quiet disks.
func (s *site) full() *host.ReclaimReport {
	s.Helper()
	s.ok(s.Host.Quiesce(s.Context()))
	report, err := s.Host.Reclaim(s.Context(), host.ReclaimOptions{Full: true})
	s.ok(err)
	return report
}

// TestReclaimFull overwrites half of two disks at random, and has what died come
// back: a dry run says so before, and a second run finds nothing.
func TestReclaimFull(t *testing.T) {
	s := openSite(t, siteOptions(t))
	rng := rand.New(rand.NewPCG(1, 2))
	a, b := scribble(1, make([]byte, 12<<20)), scribble(2, make([]byte, 4<<20))
	s.write("a", a)
	s.write("b", b)
	s.overwrite("a", a, rng, 1500)
	s.overwrite("b", b, rng, 700)
	s.ok(s.Host.Quiesce(t.Context()))
	s.ok(s.Host.Sweep(t.Context()))
	before, _ := s.stored()
	dry, err := s.Host.Reclaim(t.Context(), host.ReclaimOptions{DryRun: true, Full: true})
	s.ok(err)
	if len(dry.Plan.Condemn) == 0 || dry.Cycles != 0 {
		t.Fatalf("dry run: %+v\n%s", dry, dry.Plan)
	}
	if now, _ := s.stored(); now != before {
		t.Fatal("a dry run changed what is stored")
	}
	report := s.full()
	after, _ := s.stored()
	if report.MovedChunks == 0 || report.Deleted < len(dry.Plan.Condemn) || report.FreedBytes <= 0 || report.Waiting != 0 {
		t.Errorf("%+v", report)
	}
	if most := int64(16<<20) * 3 / 2 * 8 / 7; after > most+2<<20 {
		t.Errorf("%d bytes are stored, were %d", after, before)
	}
	t.Logf("%d bytes stored, then %d: %s", before, after, report.Plan)
	s.has("a", a)
	s.has("b", b)
	s.strict()
	if report = s.full(); report.MovedChunks > 0 {
		t.Errorf("a second time: %+v", report)
	}
	if now, _ := s.stored(); now > after+1<<20 { // a checkpoint
		t.Errorf("%d bytes after a second time, %d before", now, after)
	}
	// And nothing stays behind of removed disks, not by the mover either.
	s.remove("a")
	s.remove("b")
	if bytes, index := s.stored(); bytes != 0 || index.Segments != 0 {
		t.Errorf("%d bytes in %d segments are left of removed disks", bytes, index.Segments)
	}
}

// TestReclaimLosesIndex rebuilds the index after moves, and between moves and the
// passes that follow them.
func TestReclaimLosesIndex(t *testing.T) {
	s := openSite(t, siteOptions(t))
	rng := rand.New(rand.NewPCG(3, 4))
	a := scribble(1, make([]byte, 6<<20))
	s.write("a", a)
	s.overwrite("a", a, rng, 700)
	s.full()
	s.loseIndex()
	s.has("a", a)
	s.full()
	s.strict()
	s.overwrite("a", bytes.Clone(a), rng, 0)
	s.has("a", a)
}

// TestReclaimGoesOn ends cycles half way: a mover that is fenced is claimed anew,
// and what an earlier session condemned is emptied by the next.
func TestReclaimGoesOn(t *testing.T) {
	s := openSite(t, siteOptions(t))
	rng := rand.New(rand.NewPCG(5, 6))
	a := scribble(1, make([]byte, 6<<20))
	s.write("a", a)
	s.overwrite("a", a, rng, 900)
	s.full() // makes the mover
	s.overwrite("a", a, rng, 900)
	s.ok(s.Host.Quiesce(t.Context()))
	s.ok(s.Host.Sweep(t.Context()))
	reply, err := s.Node.RegistryGet(t.Context(), &datanode.RegistryGetRequest{Key: "mover"})
	s.ok(err)
	n, err := strconv.ParseUint(string(reply.Value), 10, 64)
	s.ok(err)
	mover := id.Disk(n)
	_, err = s.Node.Fence(t.Context(), &datanode.FenceRequest{Disk: mover, Epoch: 100})
	s.ok(err)
	// Condemned by whoever it was.
	dry, err := s.Host.Reclaim(t.Context(), host.ReclaimOptions{DryRun: true, Full: true})
	s.ok(err)
	var segments []id.Segment
	for _, c := range dry.Plan.Condemn {
		segments = append(segments, c.Segment)
	}
	condemned, err := s.Node.Condemn(t.Context(), &datanode.CondemnRequest{Disk: mover, Epoch: 100, Segments: segments})
	s.ok(err)
	if len(segments) == 0 || len(condemned.Condemned) != len(segments) {
		t.Fatalf("%d of %d condemned", len(condemned.Condemned), len(segments))
	}
	if dry, err = s.Host.Reclaim(t.Context(), host.ReclaimOptions{DryRun: true}); err != nil || len(dry.Plan.Condemn) != len(segments) || !dry.Plan.Condemn[0].Resume {
		t.Fatalf("%v %s", err, dry.Plan)
	}
	if _, err := s.Host.Reclaim(t.Context(), host.ReclaimOptions{Full: true}); !errors.Is(err, datanode.ErrFenced) {
		t.Fatalf("a mover that was fenced: %v", err)
	}
	for range 100 { // its counter is far behind that epoch
		if _, err = s.Host.Reclaim(t.Context(), host.ReclaimOptions{}); err == nil {
			break
		}
	}
	s.full()
	s.has("a", a)
	s.strict()
}
