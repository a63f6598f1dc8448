package wire

import (
	"plinth/datanode"
	"plinth/internal/id"
)

// The index.

func lookupRequest(c *coder, r *datanode.LookupRequest) {
	owner(c, &r.Disk, &r.Epoch)
	u64(c, &r.Seq)
	list(c, &r.Fingerprints, datanode.FingerprintsMax, print16)
}

func ref(c *coder, r *id.Ref) {
	u64(c, &r.Segment)
	u16(c, &r.Slot)
	u32(c, &r.Location)
}

func hit(c *coder, h *datanode.Hit) {
	c.flag(&h.Found)
	ref(c, &h.Ref)
}

func lookupReply(c *coder, r *datanode.LookupReply) {
	list(c, &r.Hits, datanode.FingerprintsMax, hit)
}

func slotEntry(c *coder, s *datanode.SlotEntry) {
	u16(c, &s.Slot)
	print16(c, &s.Fingerprint)
	u32(c, &s.Location)
	u32(c, &s.PlainBytes)
}

func segmentEntry(c *coder, s *datanode.SegmentEntry) {
	segmentHeader(c, &s.Header)
	u32(c, &s.FragmentBytes)
	list(c, &s.Slots, id.SlotsMax, slotEntry)
}

func publishRequest(c *coder, r *datanode.PublishRequest) {
	list(c, &r.Segments, datanode.SegmentsMax, segmentEntry)
}

func listSegmentsRequest(c *coder, r *datanode.ListSegmentsRequest) {
	owner(c, &r.Disk, &r.Epoch)
	u64(c, &r.After)
	c.integer(&r.Max)
}

func listSegmentsReply(c *coder, r *datanode.ListSegmentsReply) {
	list(c, &r.Segments, namesMax, segment)
	c.flag(&r.More)
}

func slotList(c *coder, l *datanode.List) {
	u64(c, &l.Segment)
	c.bytes(&l.Bits, id.SlotsMax/8)
	list(c, &l.Slots, id.SlotsMax, slotEntry)
}

func setListsRequest(c *coder, r *datanode.SetListsRequest) {
	owner(c, &r.Disk, &r.Epoch)
	u64(c, &r.Seq)
	list(c, &r.Lists, datanode.SegmentsMax, slotList)
}

func setListsReply(c *coder, r *datanode.SetListsReply) {
	list(c, &r.Refused, datanode.SegmentsMax, segment)
}

func completeIndexRequest(c *coder, r *datanode.CompleteIndexRequest) { u64(c, &r.Incarnation) }

func describeSegmentsRequest(c *coder, r *datanode.DescribeSegmentsRequest) {
	list(c, &r.Segments, namesMax, segment)
	u64(c, &r.After)
	c.integer(&r.Max)
	c.flag(&r.Slots)
}

// disksMax bounds the disks that hold one segment.
const disksMax = 1 << 20

func segmentDescription(c *coder, d *datanode.SegmentDescription) {
	u64(c, &d.Segment)
	c.flag(&d.Known)
	u8(c, &d.State)
	u8(c, &d.Kind)
	u32(c, &d.FragmentBytes)
	u8(c, &d.K)
	u8(c, &d.M)
	c.integer(&d.SlotCount)
	u64(c, &d.SealedBytes)
	u64(c, &d.PlainBytes)
	list(c, &d.Slots, id.SlotsMax, slotEntry)
	list(c, &d.Dangling, id.SlotsMax, slotNumber)
	list(c, &d.Births, datanode.BirthsMax, birth)
	list(c, &d.Lists, disksMax, func(c *coder, l *datanode.DiskList) {
		owner(c, &l.Disk, &l.Epoch)
		u64(c, &l.Seq)
		c.bytes(&l.Bits, id.SlotsMax/8)
	})
}

func describeSegmentsReply(c *coder, r *datanode.DescribeSegmentsReply) {
	list(c, &r.Segments, namesMax, segmentDescription)
	c.flag(&r.More)
}

func usageRequest(c *coder, r *datanode.UsageRequest) {
	u64(c, &r.After)
	c.integer(&r.Max)
}

func segmentUse(c *coder, u *datanode.SegmentUse) {
	u64(c, &u.Segment)
	u8(c, &u.State)
	u8(c, &u.Kind)
	u64(c, &u.StoredBytes)
	u64(c, &u.SealedBytes)
	c.integer(&u.Slots)
	c.integer(&u.LiveSlots)
	list(c, &u.Disks, disksMax, func(c *coder, d *datanode.DiskUse) {
		u64(c, &d.Disk)
		c.integer(&d.Slots)
		c.integer(&d.Exclusive)
	})
}

func usageReply(c *coder, r *datanode.UsageReply) {
	list(c, &r.Segments, namesMax, segmentUse)
	c.flag(&r.More)
}

func condemnRequest(c *coder, r *datanode.CondemnRequest) {
	owner(c, &r.Disk, &r.Epoch)
	list(c, &r.Segments, datanode.SegmentsMax, segment)
}

func condemnReply(c *coder, r *datanode.CondemnReply) {
	list(c, &r.Condemned, datanode.SegmentsMax, segment)
}

func forwardRequest(c *coder, r *datanode.ForwardRequest) {
	owner(c, &r.Disk, &r.Epoch)
	u64(c, &r.Segment)
	list(c, &r.Moves, datanode.MovesMax, func(c *coder, m *datanode.Move) {
		u64(c, &m.From)
		u16(c, &m.Slot)
		u16(c, &m.To)
		u32(c, &m.Location)
	})
}

func forwardsRequest(c *coder, r *datanode.ForwardsRequest) {
	u64(c, &r.After)
	c.integer(&r.Max)
}

func forward(c *coder, f *datanode.Forward) {
	u64(c, &f.From)
	list(c, &f.Moves, id.SlotsMax, func(c *coder, m *datanode.SlotMove) {
		u16(c, &m.Slot)
		ref(c, &m.To)
	})
}

func forwardsReply(c *coder, r *datanode.ForwardsReply) {
	list(c, &r.Forwards, namesMax, forward)
	c.flag(&r.More)
}

func reclaimRequest(c *coder, r *datanode.ReclaimRequest) { c.integer(&r.Max) }

func reclaimReply(c *coder, r *datanode.ReclaimReply) {
	list(c, &r.Deleted, namesMax, segment)
	c.flag(&r.More)
}

// The status.

func status(c *coder, s *datanode.Status) {
	c.array16(&s.PoolID)
	c.array16(&s.BootID)
	u64(c, &s.LayoutVersion)
	list(c, &s.Spindles, 1<<16, spindleStatus)
	logUsage(c, &s.Log)
	list(c, &s.Streams, namesMax, streamStatus)
	u64(c, &s.Index.Incarnation)
	c.flag(&s.Index.Complete)
	u64(c, &s.Index.Segments)
	u64(c, &s.Index.Fingerprints)
	u64(c, &s.Index.PlainBytes)
	u64(c, &s.Index.SealedBytes)
	u64(c, &s.Index.ObjectBytes)
	u64(c, &s.ReservedBytes)
	u64(c, &s.FreeBytes)
	u64(c, &s.SpareBytes)
}

func spindleStatus(c *coder, s *datanode.SpindleStatus) {
	u16(c, &s.Spindle)
	note(c, &s.Path)
	text(c, &s.State, stateBytesMax)
	note(c, &s.Reason)
	u64(c, &s.CapacityBytes)
	u64(c, &s.AllocatedBytes)
	u64(c, &s.Fragments)
	u64(c, &s.Incarnation)
}

func streamStatus(c *coder, s *datanode.LogStreamStatus) {
	u64(c, &s.Disk)
	u8(c, &s.Stream)
	u64(c, &s.Epoch)
	u64(c, &s.First)
	u64(c, &s.End)
	u64(c, &s.Bytes)
	c.flag(&s.Pins)
}
