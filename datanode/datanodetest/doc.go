// Package datanodetest tests any datanode.Node against its contract.
//
// [Run] is the conformance suite: each rule that the comments of package
// datanode state is a subtest of its own. [Codec] wraps a node as a wire would:
// nothing that a caller and a node hold is shared, calls and replies are
// delayed and overtake each other, and errors cross as codes.
//
// A node's own package runs the suite plain and through Codec. What only an
// implementation can arrange (a crash, a lost index, a failed spindle) is tested
// there.
package datanodetest
