// Package compare puts plinth beside other NBD servers on one machine, all under
// fio's nbd engine over unix sockets, or package bench for what that cannot do.
//
// Nouns: a [Server] is a program that serves one disk. A [Row] is a workload. A
// cell is a row on a server in one round; it gives a [Sample]. [Results] are
// samples, from which tables, ratios and the plot are made.
//
// # How it measures
//
//   - All servers of a run are alive at once, each with its own disk, written
//     full before. They take turns within each row, and all but the one whose
//     turn it is are stopped (SIGSTOP), so that noise of the machine hits all alike
//     and nobody's background work is in another's figures.
//   - What is written compresses to half and is never written twice.
//   - CPU is the user and system time of the server's process per read or write.
//     For plinth's writes it ends when all is destaged and in a checkpoint. What
//     kernel threads spend on the page cache's write-back is in nobody's.
//   - Ratios are taken within a round, and then their median.
//
// Samples are kept in a file of JSON lines: a run that was cut off, or whose time
// was up, goes on there.
//
// Concurrency: Run uses one goroutine and ends what it started, also on errors.
package compare
