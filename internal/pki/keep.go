package pki

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"
)

const (
	// fetchTime is how often a member asks for the trust document: how long a
	// revocation takes to reach it, at most and beside a look at its files.
	fetchTime = time.Minute
	// retryTimeMin and retryTimeMax bound the wait after a failure.
	retryTimeMin = 5 * time.Second
	retryTimeMax = 5 * time.Minute
)

// KeepOptions say how an identity is kept. The zero value is a member's.
type KeepOptions struct {
	// Authority is the one in the identity's own folder, if it is there: then
	// nobody has to be asked.
	Authority *Authority
	// FetchTime is how often the trust document is asked for; default: a minute.
	FetchTime time.Duration
}

// Keep keeps the identity until ctx ends: it follows its files, fetches the trust
// document, renews the certificate when it is due or of an authority that does not
// issue any more, and cuts guarded connections of who is revoked. Failures are
// logged and tried again.
func (i *Identity) Keep(ctx context.Context, o KeepOptions) {
	if o.FetchTime <= 0 {
		o.FetchTime = fetchTime
	}
	o.FetchTime = max(o.FetchTime, time.Millisecond)
	look := time.NewTicker(min(lookTime, o.FetchTime))
	defer look.Stop()
	next, retry := i.now(), retryTimeMin
	for {
		i.reload()
		if now := i.now(); !now.Before(next) || next.Sub(now) > 2*(retryTimeMax+o.FetchTime) { // or the clock went back
			wait := o.FetchTime
			if err := i.sync(ctx, o.Authority); err != nil && ctx.Err() == nil {
				i.log.Warn("pki: the authority cannot be asked", "member", i.self.String(), "ends", stamp(i.Leaf().NotAfter), "err", err)
				wait, retry = retry, min(2*retry, retryTimeMax)
			} else {
				retry = retryTimeMin
			}
			next = i.now().Add(wait*3/4 + rand.N(wait/2)) // not all members at once
		}
		select {
		case <-ctx.Done():
			return
		case <-look.C:
		}
	}
}

// Due reports whether the certificate should be renewed: from two thirds of its time
// on, or when its authority issues no more.
func (i *Identity) Due() bool {
	s := i.current()
	return !i.now().Before(renewAt(s.cert.Leaf)) || s.cert.Leaf.CheckSignatureFrom(s.trust.issuer()) != nil
}

// sync fetches and, if it is due, renews.
func (i *Identity) sync(ctx context.Context, a *Authority) error {
	if a == nil {
		return i.Update(ctx, nil, false)
	}
	if !i.Due() {
		return a.contactHome()
	}
	err := a.RenewHome()
	i.reload()
	return err
}

// Update fetches the trust document and, if it is due or always, renews the
// certificate, at the first of the servers that answers; without any, of those that
// the folder names.
func (i *Identity) Update(ctx context.Context, servers []string, always bool) error {
	if len(servers) == 0 {
		var err error
		if servers, err = i.Servers(); err != nil {
			return err
		}
	}
	if len(servers) == 0 {
		return errors.New("the folder names no address of the authority: join again, or say which (--ca-server)")
	}
	var errs []error
	for _, server := range servers {
		err := i.Fetch(ctx, server)
		if err == nil && (always || i.Due()) {
			err = i.Renew(ctx, server)
		}
		if err == nil {
			return nil
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// Status is an identity as people see it.
type Status struct {
	Member    string    `json:"member"`
	Cluster   string    `json:"cluster"`
	URI       string    `json:"uri"`
	Serial    string    `json:"serial"`
	Until     time.Time `json:"until"`
	Renew     time.Time `json:"renew"`
	Authority string    `json:"authority"`
	Sequence  uint64    `json:"sequence"` // of the trust document
	Revoked   int       `json:"revoked"`  // entries in it
	Servers   []string  `json:"servers,omitempty"`
}

// Status returns it, without the servers.
func (i *Identity) Status() Status {
	s := i.current()
	out := Status{
		Member: i.self.String(), Cluster: i.self.Cluster.String(), URI: i.self.URI(), Serial: serialText(s.cert.Leaf),
		Until: s.cert.Leaf.NotAfter, Renew: renewAt(s.cert.Leaf), Authority: "gone", Sequence: s.trust.Sequence, Revoked: len(s.trust.Revoked),
	}
	for _, a := range s.trust.authorities {
		if s.cert.Leaf.CheckSignatureFrom(a) == nil {
			out.Authority = fingerprint(a).String()
		}
	}
	return out
}
