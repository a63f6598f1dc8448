// Package interop tests the registry in etcd with etcd itself: three members over
// loopback, which are killed and cut off.
package interop
