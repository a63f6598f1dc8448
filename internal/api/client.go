package api

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"

	"plinth/datanode"
	"plinth/internal/host"
	"plinth/internal/id"
)

// replyBytesMax bounds an answer that is read as a whole.
const replyBytesMax = 64 << 20

// Client calls an agent's API.
type Client struct {
	address Address
	token   string
	base    string
	http    http.Client
}

// ClientOptions is what TCP needs.
type ClientOptions struct {
	// Token is sent as the bearer token.
	Token string
	// CAFile is a PEM file of certificates to trust, which makes the client use
	// TLS; without it TLS is used off loopback, with the system's certificates.
	CAFile string
}

// NewClient returns a client. It connects when it is used.
func NewClient(a Address, opts ClientOptions) (*Client, error) {
	c := &Client{address: a, token: opts.Token, base: "http://plinth"}
	transport := &http.Transport{}
	c.http.Transport = transport
	if a.Unix != "" {
		transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", a.Unix)
		}
		return c, nil
	}
	c.base = "http://" + a.TCP
	if opts.CAFile != "" || !a.loopback() {
		c.base = "https://" + a.TCP
		transport.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS13}
	}
	if opts.CAFile != "" {
		pem, err := os.ReadFile(opts.CAFile)
		if err != nil {
			return nil, fmt.Errorf("certificates to trust: %w", err)
		}
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("certificates to trust: none in %s", opts.CAFile)
		}
		transport.TLSClientConfig.RootCAs = pool
	}
	return c, nil
}

// Close gives up idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// do sends a request and returns a successful answer, whose body the caller
// closes. An answer that is not a success is an *ErrorBody.
func (c *Client) do(ctx context.Context, method, path string, body any) (*http.Response, error) {
	var r io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		r = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base+prefix+path, r)
	if err != nil {
		return nil, err
	}
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		var uerr *url.Error
		if errors.As(err, &uerr) {
			err = uerr.Err // the request's URL tells the user nothing
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, fmt.Errorf("no plinth answers at %s (is it running? --api or PLINTH_API says where): %w", c.address, err)
	}
	if resp.StatusCode < 300 {
		return resp, nil
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusUnauthorized {
		return nil, fmt.Errorf("the API at %s wants its bearer token, api.token in its data directory: name a copy with --token-file or PLINTH_TOKEN_FILE", c.address)
	}
	var reply errorReply
	if err := json.NewDecoder(io.LimitReader(resp.Body, replyBytesMax)).Decode(&reply); err != nil || reply.Error.Message == "" {
		return nil, fmt.Errorf("%s answered %s", c.address, resp.Status)
	}
	return nil, &reply.Error
}

// call sends a request and decodes the answer into out, if there is one.
func (c *Client) call(ctx context.Context, method, path string, body, out any) error {
	resp, err := c.do(ctx, method, path, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if out == nil {
		return nil
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, replyBytesMax)).Decode(out); err != nil {
		return fmt.Errorf("answer of %s: %w", c.address, err)
	}
	return nil
}

// Status describes the pool.
func (c *Client) Status(ctx context.Context) (*host.Status, error) {
	var out host.Status
	return &out, c.call(ctx, "GET", "/status", nil, &out)
}

// Nodes lists the data nodes.
func (c *Client) Nodes(ctx context.Context) ([]datanode.NodeInfo, error) {
	var out NodeList
	err := c.call(ctx, "GET", "/nodes", nil, &out)
	return out.Nodes, err
}

// Events lists what the process has logged of late, after an event by its number.
func (c *Client) Events(ctx context.Context, after uint64) (*EventList, error) {
	var out EventList
	return &out, c.call(ctx, "GET", "/events?after="+strconv.FormatUint(after, 10), nil, &out)
}

// AddNode has a data node take part in the pool: a new one at addresses, or one that is
// being drained again.
func (c *Client) AddNode(ctx context.Context, name string, addresses []string) error {
	return c.call(ctx, "POST", "/nodes", AddNode{name, addresses}, nil)
}

// DrainNode has what a data node has moved to the others.
func (c *Client) DrainNode(ctx context.Context, name string) error {
	return c.call(ctx, "POST", "/nodes/"+url.PathEscape(name)+"/drain", nil, nil)
}

// Rebalance has what was written before spindles or data nodes came spread over all of them,
// or with on unset calls that off.
func (c *Client) Rebalance(ctx context.Context, on bool) error {
	method := "DELETE"
	if on {
		method = "POST"
	}
	return c.call(ctx, method, "/rebalance", nil, nil)
}

// AddSpindle has a data node, whose name may be empty where there is only one, make a spindle
// more of the drive that is mounted, empty, where it wants its next one.
func (c *Client) AddSpindle(ctx context.Context, node string) error {
	return c.call(ctx, "POST", "/spindles", AddSpindle{node}, nil)
}

// DrainSpindle has what a spindle has moved to others.
func (c *Client) DrainSpindle(ctx context.Context, n id.Spindle) error {
	return c.call(ctx, "POST", fmt.Sprintf("/spindles/%d/drain", n), nil, nil)
}

// UseSpindle has a spindle used again that is being drained.
func (c *Client) UseSpindle(ctx context.Context, n id.Spindle) error {
	return c.call(ctx, "DELETE", fmt.Sprintf("/spindles/%d/drain", n), nil, nil)
}

// ReplaceSpindle has a drive that is mounted, empty, in a spindle's place be the spindle.
func (c *Client) ReplaceSpindle(ctx context.Context, n id.Spindle) error {
	return c.call(ctx, "POST", fmt.Sprintf("/spindles/%d/replace", n), nil, nil)
}

// RemoveNode takes a data node out that was drained.
func (c *Client) RemoveNode(ctx context.Context, name string, addresses []string) error {
	query := url.Values{"address": addresses}.Encode()
	return c.call(ctx, "DELETE", "/nodes/"+url.PathEscape(name)+"?"+query, nil, nil)
}

// Disks lists the disks.
func (c *Client) Disks(ctx context.Context) ([]host.DiskInfo, error) {
	var out DiskList
	err := c.call(ctx, "GET", "/disks", nil, &out)
	return out.Disks, err
}

// Disk describes a disk.
func (c *Client) Disk(ctx context.Context, name string) (*host.DiskInfo, error) {
	var out host.DiskInfo
	return &out, c.call(ctx, "GET", "/disks/"+url.PathEscape(name), nil, &out)
}

// CreateDisk makes a disk.
func (c *Client) CreateDisk(ctx context.Context, req CreateDisk) (*host.DiskInfo, error) {
	var out host.DiskInfo
	return &out, c.call(ctx, "POST", "/disks", req, &out)
}

// ResizeDisk makes a disk larger.
func (c *Client) ResizeDisk(ctx context.Context, name string, bytes int64) (*host.DiskInfo, error) {
	var out host.DiskInfo
	return &out, c.call(ctx, "PATCH", "/disks/"+url.PathEscape(name), ChangeDisk{Bytes: bytes}, &out)
}

// RenameDisk gives a disk another name.
func (c *Client) RenameDisk(ctx context.Context, name, to string) (*host.DiskInfo, error) {
	var out host.DiskInfo
	return &out, c.call(ctx, "PATCH", "/disks/"+url.PathEscape(name), ChangeDisk{Name: to}, &out)
}

// ChangeLimits changes limits of a disk.
func (c *Client) ChangeLimits(ctx context.Context, name string, change host.LimitsChange) (*host.DiskInfo, error) {
	var out host.DiskInfo
	return &out, c.call(ctx, "PATCH", "/disks/"+url.PathEscape(name), ChangeDisk{Limits: &change}, &out)
}

// MoveDisk has another host serve a disk, and returns when it does.
func (c *Client) MoveDisk(ctx context.Context, name, to string) (*host.DiskInfo, error) {
	var out host.DiskInfo
	return &out, c.call(ctx, "PATCH", "/disks/"+url.PathEscape(name), ChangeDisk{Host: to}, &out)
}

// RemoveDisk removes a disk that has no snapshots.
func (c *Client) RemoveDisk(ctx context.Context, name string) error {
	return c.call(ctx, "DELETE", "/disks/"+url.PathEscape(name), nil, nil)
}

// RemoveDiskWithSnapshots removes a disk and its snapshots.
func (c *Client) RemoveDiskWithSnapshots(ctx context.Context, name string) error {
	return c.call(ctx, "DELETE", "/disks/"+url.PathEscape(name)+"?snapshots=true", nil, nil)
}

// Sweep passes over all disks and reclaims what none needs.
func (c *Client) Sweep(ctx context.Context) error {
	return c.call(ctx, "POST", "/sweep", nil, nil)
}

// Quiesce destages everything and makes checkpoints.
func (c *Client) Quiesce(ctx context.Context) error {
	return c.call(ctx, "POST", "/quiesce", nil, nil)
}

// Verify walks everything; opts.Progress is called with segments done and to do.
func (c *Client) Verify(ctx context.Context, opts host.VerifyOptions) (*host.VerifyReport, error) {
	resp, err := c.do(ctx, "POST", fmt.Sprintf("/verify?repair=%t&leaks=%t", opts.Repair, opts.Strict), nil)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	dec := json.NewDecoder(resp.Body)
	for {
		var e Event
		switch err := dec.Decode(&e); {
		case err != nil:
			return nil, fmt.Errorf("verify ended without a report: %w", err)
		case e.Error != nil:
			return nil, e.Error
		case e.Report != nil:
			return e.Report, nil
		}
		if opts.Progress != nil {
			opts.Progress(e.Done, e.Total)
		}
	}
}
