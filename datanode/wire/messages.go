package wire

import (
	"plinth/datanode"
	"plinth/internal/id"
)

// Each visitor names the fields of one message, in the order in which they are
// sent, with the most that a list, a run of bytes or a text may have. What a
// field means is checked by the node.

// namesMax bounds lists that the contract does not bound, and stateBytesMax the
// name of a spindle's state.
const (
	namesMax      = 1 << 20
	stateBytesMax = 64
)

func segment(c *coder, v *id.Segment)         { u64(c, v) }
func slotNumber(c *coder, v *id.Slot)         { u16(c, v) }
func number(c *coder, v *uint32)              { u32(c, v) }
func print16(c *coder, v *id.Fingerprint)     { c.array16((*[16]byte)(v)) }
func none(*coder, *struct{})                  {}
func owner(c *coder, d *id.Disk, e *id.Epoch) { u64(c, d); u64(c, e) }

// The log.

func fenceRequest(c *coder, r *datanode.FenceRequest) {
	owner(c, &r.Disk, &r.Epoch)
	for i := range r.Floor {
		u64(c, &r.Floor[i])
	}
}

func fenceReply(c *coder, r *datanode.FenceReply) {
	for i := range r.First {
		u64(c, &r.First[i])
		u64(c, &r.End[i])
	}
	u64(c, &r.Previous)
}

func appendRequest(c *coder, r *datanode.AppendRequest) {
	owner(c, &r.Disk, &r.Epoch)
	u8(c, &r.Stream)
	u8(c, &r.Class)
	list(c, &r.Records, datanode.RecordsMax, record)
}

func record(c *coder, r *datanode.Record) {
	u64(c, &r.Pos)
	u8(c, &r.Type)
	c.array16(&r.MAC)
	c.bytes(&r.Data, datanode.RecordBytesMax)
	u64(c, &r.Epoch)
}

func appendReply(c *coder, r *datanode.AppendReply) { logUsage(c, &r.Log) }

func logUsage(c *coder, u *datanode.LogUsage) {
	u64(c, &u.CapacityBytes)
	u64(c, &u.UsedBytes)
	u64(c, &u.WrittenBytes)
}

func syncRequest(c *coder, r *datanode.SyncRequest) { owner(c, &r.Disk, &r.Epoch) }

func readLogRequest(c *coder, r *datanode.ReadLogRequest) {
	owner(c, &r.Disk, &r.Epoch)
	u8(c, &r.Stream)
	u64(c, &r.From)
	c.integer(&r.BytesMax)
}

// A page of the log has no bound on its records, which may be empty.
func readLogReply(c *coder, r *datanode.ReadLogReply) { list(c, &r.Records, namesMax, record) }

func trimLogRequest(c *coder, r *datanode.TrimLogRequest) {
	owner(c, &r.Disk, &r.Epoch)
	u8(c, &r.Stream)
	u64(c, &r.Through)
}

func dropLogRequest(c *coder, r *datanode.DropLogRequest) { owner(c, &r.Disk, &r.Epoch) }

func joinLogRequest(c *coder, r *datanode.JoinLogRequest) { owner(c, &r.Disk, &r.Epoch) }

func joinLogReply(c *coder, r *datanode.JoinLogReply) {
	for i := range r.First {
		u64(c, &r.First[i])
		u64(c, &r.End[i])
	}
	u64(c, &r.Previous)
	u64(c, &r.Turn)
}

func copyLogRequest(c *coder, r *datanode.CopyLogRequest) {
	owner(c, &r.Disk, &r.Epoch)
	u8(c, &r.Stream)
	u8(c, &r.Class)
	list(c, &r.Records, datanode.RecordsMax, record)
}

func resetLogRequest(c *coder, r *datanode.ResetLogRequest) {
	owner(c, &r.Disk, &r.Epoch)
	u64(c, &r.Turn)
	for i := range r.Next {
		u64(c, &r.Next[i])
	}
}

// Fragments.

func segmentHeader(c *coder, h *datanode.SegmentHeader) {
	u64(c, &h.Segment)
	u8(c, &h.Kind)
	u8(c, &h.K)
	u8(c, &h.M)
	u32(c, &h.DataBytes)
	list(c, &h.Births, datanode.BirthsMax, birth)
}

func birth(c *coder, b *datanode.Birth) {
	owner(c, &b.Disk, &b.Epoch)
	u16(c, &b.Slots)
}

func fragment(c *coder, f *datanode.Fragment) {
	u16(c, &f.Spindle)
	u8(c, &f.Index)
	c.bytes(&f.Data, datanode.FragmentBytesMax)
}

func writeFragmentsRequest(c *coder, r *datanode.WriteFragmentsRequest) {
	segmentHeader(c, &r.Header)
	u64(c, &r.LayoutVersion)
	c.flag(&r.Replace)
	list(c, &r.Fragments, datanode.WidthMax, fragment)
}

func writeFragmentsReply(c *coder, r *datanode.WriteFragmentsReply) {
	list(c, &r.Errors, datanode.WidthMax, fault)
}

func replaceSpindleRequest(c *coder, r *datanode.ReplaceSpindleRequest) { u16(c, &r.Spindle) }

// Which node is meant the connection says.
func addSpindleRequest(c *coder, r *datanode.AddSpindleRequest) { u16(c, &r.Spindle) }

func discardFragmentsRequest(c *coder, r *datanode.DiscardFragmentsRequest) { u64(c, &r.Segment) }

// rangesMax bounds the ranges of one read.
const rangesMax = 1 << 16

func fragmentRange(c *coder, r *datanode.FragmentRange) {
	u16(c, &r.Spindle)
	u64(c, &r.Segment)
	u8(c, &r.Index)
	u32(c, &r.Offset)
	u32(c, &r.Length)
}

// Into stays with the caller.
func readFragmentsRequest(c *coder, r *datanode.ReadFragmentsRequest) {
	c.flag(&r.Verify)
	c.flag(&r.Discard)
	list(c, &r.Ranges, rangesMax, fragmentRange)
}

func fragmentData(c *coder, d *datanode.FragmentData) {
	fault(c, &d.Err)
	c.bytes(&d.Data, datanode.FragmentBytesMax)
	list(c, &d.Bad, datanode.FragmentBytesMax/datanode.BlockBytes, number)
	c.flag(&d.BadHeader)
	u32(c, &d.Bytes)
	segmentHeader(c, &d.Header)
}

func readFragmentsReply(c *coder, r *datanode.ReadFragmentsReply) {
	list(c, &r.Results, rangesMax, fragmentData)
}

func listFragmentsRequest(c *coder, r *datanode.ListFragmentsRequest) {
	u16(c, &r.Spindle)
	c.flag(&r.Started)
	u64(c, &r.Segment)
	u8(c, &r.Index)
	c.integer(&r.Max)
}

func fragmentInfo(c *coder, f *datanode.FragmentInfo) {
	u64(c, &f.Segment)
	u8(c, &f.Index)
	u32(c, &f.Bytes)
	u32(c, &f.AllocatedBytes)
}

func listFragmentsReply(c *coder, r *datanode.ListFragmentsReply) {
	list(c, &r.Fragments, namesMax, fragmentInfo)
	c.flag(&r.More)
}

// hostBytesMax bounds the name of a host's session.
const hostBytesMax = 1024

func reserveRequest(c *coder, r *datanode.ReserveRequest) {
	text(c, &r.Host, hostBytesMax)
	u64(c, &r.Bytes)
	c.flag(&r.Force)
}

// The registry.

func registryGetRequest(c *coder, r *datanode.RegistryGetRequest) {
	text(c, &r.Key, datanode.RegistryKeyBytesMax)
}

func registryGetReply(c *coder, r *datanode.RegistryGetReply) {
	c.bytes(&r.Value, datanode.RegistryValueBytesMax)
	u64(c, &r.Revision)
	u64(c, &r.Lease)
}

func registryListRequest(c *coder, r *datanode.RegistryListRequest) {
	text(c, &r.Prefix, datanode.RegistryKeyBytesMax)
	text(c, &r.After, datanode.RegistryKeyBytesMax)
	c.integer(&r.Max)
	u64(c, &r.At)
}

func registryEntry(c *coder, e *datanode.RegistryEntry) {
	text(c, &e.Key, datanode.RegistryKeyBytesMax)
	c.bytes(&e.Value, datanode.RegistryValueBytesMax)
	u64(c, &e.Revision)
	u64(c, &e.Lease)
}

func registryListReply(c *coder, r *datanode.RegistryListReply) {
	list(c, &r.Entries, namesMax, registryEntry)
	c.flag(&r.More)
	u64(c, &r.Revision)
}

func registryTxn(c *coder, r *datanode.RegistryTxn) {
	list(c, &r.Guards, datanode.RegistryOpsMax, func(c *coder, g *datanode.Guard) { owner(c, &g.Disk, &g.Epoch) })
	list(c, &r.Compares, datanode.RegistryOpsMax, func(c *coder, v *datanode.Compare) {
		text(c, &v.Key, datanode.RegistryKeyBytesMax)
		u64(c, &v.Revision)
	})
	list(c, &r.Puts, datanode.RegistryOpsMax, func(c *coder, v *datanode.Put) {
		text(c, &v.Key, datanode.RegistryKeyBytesMax)
		c.bytes(&v.Value, datanode.RegistryValueBytesMax)
		u64(c, &v.Lease)
	})
	list(c, &r.Deletes, datanode.RegistryOpsMax, func(c *coder, v *string) { text(c, v, datanode.RegistryKeyBytesMax) })
}

func registryGrantRequest(c *coder, r *datanode.RegistryGrantRequest) { u64(c, &r.TTL) }

func registryGrantReply(c *coder, r *datanode.RegistryGrantReply) { u64(c, &r.Lease) }

func registryKeepAliveRequest(c *coder, r *datanode.RegistryKeepAliveRequest) { u64(c, &r.Lease) }

func registryRevokeRequest(c *coder, r *datanode.RegistryRevokeRequest) { u64(c, &r.Lease) }

func registryWatchRequest(c *coder, r *datanode.RegistryWatchRequest) {
	text(c, &r.Prefix, datanode.RegistryKeyBytesMax)
	u64(c, &r.After)
	c.integer(&r.Max)
	u64(c, &r.Wait)
}

func registryEvent(c *coder, e *datanode.RegistryEvent) {
	text(c, &e.Key, datanode.RegistryKeyBytesMax)
	c.bytes(&e.Value, datanode.RegistryValueBytesMax)
	u64(c, &e.Revision)
	u64(c, &e.Lease)
	c.flag(&e.Deleted)
}

func registryWatchReply(c *coder, r *datanode.RegistryWatchReply) {
	list(c, &r.Events, namesMax, registryEvent)
	u64(c, &r.Revision)
}

func registryCommitReply(c *coder, r *datanode.RegistryCommitReply) { u64(c, &r.Revision) }
