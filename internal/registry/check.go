package registry

import (
	"time"

	"plinth/datanode"
)

// What requests may be, whatever implements the registry.

// CheckKey tells whether a key is in bounds.
func CheckKey(key string) error {
	if key == "" || len(key) > datanode.RegistryKeyBytesMax {
		return datanode.Errorf(datanode.ErrInvalid, "registry key of %d bytes", len(key))
	}
	return nil
}

// CheckList tells whether a list is in bounds, and how many entries a page has.
func CheckList(r *datanode.RegistryListRequest) (int, error) {
	if r.Max < 0 || len(r.Prefix) > datanode.RegistryKeyBytesMax || len(r.After) > datanode.RegistryKeyBytesMax {
		return 0, datanode.Errorf(datanode.ErrInvalid, "list of %d, prefix %d bytes", r.Max, len(r.Prefix))
	}
	if r.Max == 0 {
		return listPage, nil
	}
	return min(r.Max, datanode.RegistryPageMax), nil
}

// CheckTxn tells whether a transaction is in bounds. No key may be changed twice.
func CheckTxn(r *datanode.RegistryTxn) error {
	conditions, changes, bytes := len(r.Guards)+len(r.Compares), len(r.Puts)+len(r.Deletes), 0
	changed := make(map[string]bool, min(changes, datanode.RegistryOpsMax))
	leases := make(map[datanode.LeaseID]bool)
	change := func(key string) error {
		if changed[key] {
			return datanode.Errorf(datanode.ErrInvalid, "registry key %q changed twice", key)
		}
		changed[key] = true
		bytes += len(key)
		return CheckKey(key)
	}
	for _, put := range r.Puts {
		if len(put.Value) > datanode.RegistryValueBytesMax {
			return datanode.Errorf(datanode.ErrInvalid, "registry value of %d bytes", len(put.Value))
		}
		if err := change(put.Key); err != nil {
			return err
		}
		bytes += len(put.Value)
		if put.Lease != 0 {
			leases[put.Lease] = true
			changes++
		}
	}
	for _, key := range r.Deletes {
		if err := change(key); err != nil {
			return err
		}
	}
	for _, c := range r.Compares {
		bytes += len(c.Key)
		if err := CheckKey(c.Key); err != nil {
			return err
		}
	}
	if conditions > datanode.RegistryOpsMax || changes > datanode.RegistryOpsMax || len(leases) > datanode.RegistryTxnLeasesMax || bytes > datanode.RegistryTxnBytesMax {
		return datanode.Errorf(datanode.ErrInvalid, "transaction of %d guards and compares, %d changes, %d leases, %d bytes",
			conditions, changes, len(leases), bytes)
	}
	return nil
}

// CheckWatch tells whether a watch is in bounds.
func CheckWatch(r *datanode.RegistryWatchRequest) error {
	if len(r.Prefix) > datanode.RegistryKeyBytesMax || r.Max < 0 || r.Max > datanode.RegistryPageMax || r.Wait < 0 || r.Wait > datanode.RegistryWatchMax {
		return datanode.Errorf(datanode.ErrInvalid, "watch of %d bytes, up to %d events in %v", len(r.Prefix), r.Max, r.Wait)
	}
	return nil
}

// CheckTTL tells whether a lease's time is in bounds.
func CheckTTL(ttl time.Duration) error {
	if ttl < datanode.LeaseTTLMin || ttl > datanode.LeaseTTLMax {
		return datanode.Errorf(datanode.ErrInvalid, "lease of %v", ttl)
	}
	return nil
}
