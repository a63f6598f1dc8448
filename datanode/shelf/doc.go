// Package shelf joins log, spindles, index and registry to a data node in one
// directory: it implements datanode.Node in this process.
package shelf
