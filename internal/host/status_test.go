package host_test

import (
	"testing"
)

// TestSpaceFigures follows what disks and snapshots are said to take.
func TestSpaceFigures(t *testing.T) {
	s := openSite(t, siteOptions(t))
	s.write("vm", noise(1, 1<<20))
	s.snap("vm", "mon")
	if info := s.info("vm"); info.SpaceAt != nil {
		t.Errorf("before a pass: %+v", info)
	}
	s.put("vm", 0, noise(2, 256<<10))
	s.put("vm", 512<<10, make([]byte, 256<<10))
	s.ok(s.Host.Quiesce(t.Context()))
	s.sweep()
	near := func(what string, got, want int64) {
		t.Helper()
		if got < want || got > want+want/50 { // a sealed chunk is a little longer
			t.Errorf("%s: %d bytes, want about %d", what, got, want)
		}
	}
	figures := func(exclusive, shared int64) {
		t.Helper()
		info := s.info("vm")
		if info.LogicalBytes != 768<<10 || info.SpaceAt == nil || info.Snapshots != 1 {
			t.Errorf("disk: %+v", info)
		}
		near("exclusive of the disk", info.ExclusiveBytes, exclusive)
		near("shared of the disk", info.SharedBytes, shared)
		infos, err := s.Host.Snapshots("vm")
		s.ok(err)
		if i := infos[0]; i.LogicalBytes != 1<<20 || i.SharedBytes != 512<<10 || i.SpaceAt == nil {
			t.Errorf("snapshot: %+v", i)
		}
		near("exclusive of the snapshot", infos[0].ExclusiveBytes, 512<<10)
	}
	figures(1280<<10, 0)
	s.clone("vm", "mon", "new")
	s.sweep()
	infos := s.info("new")
	near("shared of the clone", infos.SharedBytes, 1<<20)
	if infos.CloneOf != 0 || infos.IndependentSeconds == 0 {
		t.Errorf("clone: %+v", infos)
	}
	s.ok(s.Host.RemoveDisk(t.Context(), "new"))
	s.ok(s.Host.RemoveSnapshot(t.Context(), "vm", "mon", false))
	s.ok(s.Host.Quiesce(t.Context()))
	s.sweep()
	s.sweep()
	if info := s.info("vm"); info.Snapshots != 0 || info.SharedBytes != 0 || info.LogicalBytes != 768<<10 {
		t.Errorf("at the end: %+v", info)
	}
}
