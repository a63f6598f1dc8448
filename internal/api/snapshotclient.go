package api

import (
	"context"
	"fmt"
	"net/url"

	"plinth/internal/host"
)

// snapshotPath is where a snapshot is, or with "" all of a disk.
func snapshotPath(disk, name string) string {
	path := "/disks/" + url.PathEscape(disk) + "/snapshots"
	if name != "" {
		path += "/" + url.PathEscape(name)
	}
	return path
}

// Snapshots lists a disk's snapshots.
func (c *Client) Snapshots(ctx context.Context, disk string) ([]host.SnapshotInfo, error) {
	var out SnapshotList
	err := c.call(ctx, "GET", snapshotPath(disk, ""), nil, &out)
	return out.Snapshots, err
}

// Snapshot describes a snapshot.
func (c *Client) Snapshot(ctx context.Context, disk, name string) (*host.SnapshotInfo, error) {
	var out host.SnapshotInfo
	return &out, c.call(ctx, "GET", snapshotPath(disk, name), nil, &out)
}

// CreateSnapshots makes a snapshot of each disk, all of one instant.
func (c *Client) CreateSnapshots(ctx context.Context, req CreateSnapshots) ([]host.SnapshotInfo, error) {
	var out SnapshotList
	err := c.call(ctx, "POST", "/snapshots", req, &out)
	return out.Snapshots, err
}

// RenameSnapshot gives a snapshot another name.
func (c *Client) RenameSnapshot(ctx context.Context, disk, name, to string) (*host.SnapshotInfo, error) {
	var out host.SnapshotInfo
	return &out, c.call(ctx, "PATCH", snapshotPath(disk, name), NewName{to}, &out)
}

// RemoveSnapshot removes a snapshot; with wait as soon as its clients have left.
func (c *Client) RemoveSnapshot(ctx context.Context, disk, name string, wait bool) error {
	return c.call(ctx, "DELETE", fmt.Sprintf("%s?wait=%t", snapshotPath(disk, name), wait), nil, nil)
}

// Rollback makes a disk what it was at a snapshot.
func (c *Client) Rollback(ctx context.Context, disk, name string) (*host.DiskInfo, error) {
	var out host.DiskInfo
	return &out, c.call(ctx, "POST", snapshotPath(disk, name)+"/rollback", nil, &out)
}

// Clone makes a disk of a snapshot.
func (c *Client) Clone(ctx context.Context, disk, name, to string) (*host.DiskInfo, error) {
	var out host.DiskInfo
	return &out, c.call(ctx, "POST", snapshotPath(disk, name)+"/clone", NewName{to}, &out)
}

// Diff lists what differs from snapshot from to snapshot to, from offset on: at
// most limit extents, or with 0 as many as the server will.
func (c *Client) Diff(ctx context.Context, disk, from, to string, offset, limit int64) (*host.DiffReport, error) {
	query := url.Values{"from": {from}, "to": {to}, "offset": {fmt.Sprint(offset)}, "limit": {fmt.Sprint(limit)}}
	var out host.DiffReport
	return &out, c.call(ctx, "GET", "/disks/"+url.PathEscape(disk)+"/diff?"+query.Encode(), nil, &out)
}

// Reclaim frees what nobody needs, and reports what it did or would do.
func (c *Client) Reclaim(ctx context.Context, opts host.ReclaimOptions) (*host.ReclaimReport, error) {
	var out host.ReclaimReport
	return &out, c.call(ctx, "POST", fmt.Sprintf("/reclaim?dry_run=%t&full=%t", opts.DryRun, opts.Full), nil, &out)
}
