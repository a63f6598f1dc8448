package compare

import "slices"

// Row is a workload.
type Row struct {
	Name  string // as it is chosen
	Title string
	// Args are fio's.
	Args []string
	// OpBytes is the size of an operation.
	OpBytes int
	Writes  bool
	// Durable makes every write wait for a flush, whose time is the latency.
	Durable bool
	// FUA has writes of a Durable row ask a server for that themselves, of the same
	// number in flight over one connection, as a virtual machine's do. fio's engine
	// cannot: the client is package bench's.
	FUA bool
	// Sustained is measured until more than the log's size should have been
	// written: Config.SustainedRuntime.
	Sustained bool
	// Also names servers beyond those that are in every row.
	Also []string
}

// durable is fio's work for durable writes, of a server or the raw file.
var durable = []string{"--rw=randwrite", "--bs=4k", "--iodepth=1", "--numjobs=32"}

// Rows are all workloads, in the order in which they are measured. Each durable
// write is a job of its own with a flush after it: fio keeps a write and its
// flush apart only within a job of depth 1.
var Rows = []Row{
	{Name: "read-1", Title: "4 KiB random read, depth 1", OpBytes: 4096, Also: []string{memory, flash},
		Args: []string{"--rw=randread", "--bs=4k", "--iodepth=1"}},
	{Name: "read-32", Title: "4 KiB random read, depth 32", OpBytes: 4096, Also: []string{memory, xts, flash, flashXTS},
		Args: []string{"--rw=randread", "--bs=4k", "--iodepth=32"}},
	{Name: "seq-read", Title: "1 MiB sequential read, depth 4", OpBytes: 1 << 20, Also: []string{memory, xts, flash, null},
		Args: []string{"--rw=read", "--bs=1m", "--iodepth=4"}},
	{Name: "write-1", Title: "4 KiB random write, depth 1", OpBytes: 4096, Writes: true,
		Args: []string{"--rw=randwrite", "--bs=4k", "--iodepth=1"}},
	{Name: "write-32", Title: "4 KiB random write, depth 32, sustained", OpBytes: 4096, Writes: true, Sustained: true, Also: []string{memory, xts},
		Args: []string{"--rw=randwrite", "--bs=4k", "--iodepth=32"}},
	{Name: "durable-32", Title: "4 KiB random write, each flushed, 32 in flight", OpBytes: 4096, Writes: true, Durable: true, Also: []string{file},
		Args: durable},
	{Name: "fua-32", Title: "4 KiB random write with FUA, 32 in flight", OpBytes: 4096, Writes: true, Durable: true, FUA: true, Also: []string{file},
		Args: durable},
	{Name: "seq-write", Title: "1 MiB sequential write, depth 4", OpBytes: 1 << 20, Writes: true, Also: []string{memory, xts, null},
		Args: []string{"--rw=write", "--bs=1m", "--iodepth=4"}},
}

// has reports whether the row is measured on the server.
func (r *Row) has(s *Server) bool { return !s.special || slices.Contains(r.Also, s.Name) }

func rowNames() []string {
	var names []string
	for _, r := range Rows {
		names = append(names, r.Name)
	}
	return names
}
