package etcd

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"plinth/datanode"
)

const (
	rowVersion    = 1
	entryRowBytes = 9 // version, lease
)

var le = binary.LittleEndian

func (r *Registry) entryKey(key string) string { return r.root + "k/" + key }
func (r *Registry) leaseKey(l datanode.LeaseID) string {
	return fmt.Sprintf("%sl/%016x", r.root, uint64(l))
}
func (r *Registry) endingKey(l datanode.LeaseID) string {
	return fmt.Sprintf("%se/%016x", r.root, uint64(l))
}

// underKey is the prefix of what goes with a lease: k ‖ KEY for each key that was
// put under it, and s ‖ N for the slots of a session.
func (r *Registry) underKey(l datanode.LeaseID) string {
	return fmt.Sprintf("%sa/%016x/", r.root, uint64(l))
}

// encodeEntry is the value of an entry.
func encodeEntry(value []byte, lease datanode.LeaseID) string {
	b := append(make([]byte, 0, entryRowBytes+len(value)), rowVersion)
	return string(append(le.AppendUint64(b, uint64(lease)), value...))
}

// decodeEntry returns an entry's value, which is a part of kv, and its lease.
func decodeEntry(kv *mvccpb.KeyValue) ([]byte, datanode.LeaseID, error) {
	if len(kv.Value) < entryRowBytes || len(kv.Value) > entryRowBytes+datanode.RegistryValueBytesMax || kv.Value[0] != rowVersion {
		return nil, 0, datanode.Errorf(datanode.ErrCorrupt, "entry %q of etcd", kv.Key)
	}
	return kv.Value[entryRowBytes:], datanode.LeaseID(le.Uint64(kv.Value[1:])), nil
}

func (r *Registry) entry(kv *mvccpb.KeyValue) (datanode.RegistryEntry, error) {
	value, lease, err := decodeEntry(kv)
	return datanode.RegistryEntry{
		Key: string(kv.Key[len(r.entryKey("")):]), Value: value, Lease: lease, Revision: r.revision(kv.ModRevision),
	}, err
}

// revision is the registry's for one of etcd's.
func (r *Registry) revision(etcd int64) uint64 { return uint64(etcd) + r.offset }

func absent(key string) clientv3.Cmp  { return clientv3.Compare(clientv3.CreateRevision(key), "=", 0) }
func present(key string) clientv3.Cmp { return clientv3.Compare(clientv3.CreateRevision(key), ">", 0) }
func unchanged(key string, at int64) clientv3.Cmp {
	return clientv3.Compare(clientv3.ModRevision(key), "=", at)
}

// refused tells whether etcd said that it did not carry a call out, and would not.
func refused(err error) bool {
	switch status.Code(rpcError(err)) {
	case codes.InvalidArgument, codes.NotFound, codes.PermissionDenied, codes.Unauthenticated, codes.FailedPrecondition,
		codes.ResourceExhausted, codes.OutOfRange:
		return true
	}
	return false
}

// rpcError returns err as gRPC's status has it.
func rpcError(err error) error {
	var e rpctypes.EtcdError
	if errors.As(err, &e) {
		return status.Error(e.Code(), e.Error())
	}
	return err
}

// failed returns an error of etcd as one of a node: what was not carried out. nil
// for nil.
func failed(err error) error {
	var own *datanode.Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &own):
		return err
	case errors.Is(err, rpctypes.ErrCompacted), errors.Is(err, rpctypes.ErrFutureRev):
		return datanode.Errorf(datanode.ErrCompacted, "etcd: %v", err)
	case errors.Is(err, rpctypes.ErrNoSpace):
		return datanode.Errorf(datanode.ErrNoSpace, "etcd: %v", err)
	case errors.Is(err, rpctypes.ErrRequestTooLarge), errors.Is(err, rpctypes.ErrTooManyOps):
		return datanode.Errorf(datanode.ErrInvalid, "etcd: %v", err)
	case refused(err) && !errors.Is(err, context.DeadlineExceeded):
		return datanode.AsError(fmt.Errorf("etcd: %w", err))
	}
	return datanode.Errorf(datanode.ErrUnreachable, "etcd: %v", err)
}
