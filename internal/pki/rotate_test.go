package pki

import (
	"crypto/ed25519"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// world is a cluster in memory: an authority's state, and what members have of it.
type world struct {
	now   time.Time
	state *authorityState
	who   []resident
	// moved counts changes of the authority that were finished.
	moved int
	path  []string
	memo  *memo
}

// memo keeps what was found out before: all but the time is the same, which only
// goes on by seconds.
type memo struct {
	trusts   map[string]*trust
	verified map[verdict]error
	makers   map[*x509.Certificate]string
}

type verdict struct {
	trust *trust
	cert  *x509.Certificate
}

func (w *world) verify(t *trust, c *x509.Certificate) error {
	v := verdict{t, c}
	err, ok := w.memo.verified[v]
	if !ok {
		_, err = t.verify(c, w.now)
		w.memo.verified[v] = err
	}
	return err
}

// resident is a member. The first is the authority's own, which sees every trust
// document at once.
type resident struct {
	member Member
	trust  *trust
	cert   *x509.Certificate
}

// genesis is a world of an admin and two members who have just joined.
func genesis(t *testing.T) *world {
	t.Helper()
	w := &world{now: time.Now().UTC().Truncate(time.Second), memo: &memo{map[string]*trust{}, map[verdict]error{}, map[*x509.Certificate]string{}}}
	home := Member{Cluster{1}, RoleAdmin, "admin"}
	var err error
	if w.state, err = newAuthorityState(home.Cluster, home, LifetimeDefault, w.now); err != nil {
		t.Fatal(err)
	}
	for _, m := range []Member{home, {Cluster{1}, RoleDataNode, "dn1"}, {Cluster{1}, RoleHost, "h1"}} {
		c, err := w.state.issue(m, SANs{}, newKey().Public().(ed25519.PublicKey), w.now)
		if err != nil {
			t.Fatal(err)
		}
		w.who = append(w.who, resident{m, nil, c})
	}
	for i := range w.who {
		w.who[i].trust = w.published(t)
	}
	return w
}

func (w *world) published(t *testing.T) *trust {
	t.Helper()
	key := fmt.Sprint(w.state.Sequence, w.state.Issuer)
	for _, a := range w.state.authorities {
		key += serialText(a)
	}
	if tr := w.memo.trusts[key]; tr != nil {
		return tr
	}
	tr, err := w.state.trust()
	if err != nil {
		t.Fatal(err)
	}
	w.memo.trusts[key] = tr
	return tr
}

// fork is a copy whose time has gone on.
func (w *world) fork(t *testing.T, action string) *world {
	t.Helper()
	text, err := json.Marshal(w.state)
	if err != nil {
		t.Fatal(err)
	}
	s := &authorityState{authorities: slices.Clone(w.state.authorities), keys: slices.Clone(w.state.keys)}
	if err := json.Unmarshal(text, s); err != nil {
		t.Fatal(err)
	}
	return &world{w.now.Add(time.Second), s, slices.Clone(w.who), w.moved, append(slices.Clone(w.path), action), w.memo}
}

// key is all of a world that matters for what may come.
func (w *world) key() string {
	var b strings.Builder
	fmt.Fprint(&b, len(w.state.authorities), w.state.Issuer, w.moved)
	for _, r := range w.who {
		fmt.Fprint(&b, "|", w.places(r.trust.authorities), r.trust.Issuer, r.trust.Sequence == w.state.Sequence, w.place(r.cert))
		e := w.state.member(r.member)
		fmt.Fprint(&b, e != nil)
		if e != nil {
			fmt.Fprint(&b, e.Seen.Serial == serialText(r.cert), e.uses(fingerprint(w.state.authorities[w.state.Issuer]).full()))
			if len(w.state.Authorities) > 1 {
				fmt.Fprint(&b, e.Seen.Sequence >= w.state.Authorities[1].Since)
			}
		}
	}
	return b.String()
}

func (w *world) places(authorities []*x509.Certificate) (out []int) {
	for _, a := range authorities {
		out = append(out, slices.IndexFunc(w.state.authorities, a.Equal))
	}
	return out
}

// place is the number of the authority that made a certificate; -1 for one that is
// gone.
func (w *world) place(c *x509.Certificate) int {
	maker, ok := w.memo.makers[c]
	if !ok {
		maker = w.state.authorityOf(c)
		w.memo.makers[c] = maker
	}
	return slices.IndexFunc(w.state.authorities, func(a *x509.Certificate) bool { return fingerprint(a).full() == maker })
}

// fetch is Identity.Fetch's first half: the authority sees what the member shows and
// has; the member takes what is newer.
func (w *world) fetch(t *testing.T, i int) error {
	r := &w.who[i]
	now := w.published(t)
	if err := w.verify(now, r.cert); err != nil {
		return fmt.Errorf("%s asks the authority: %w", r.member, err)
	}
	w.state.contact(r.member, r.cert, r.trust.Sequence, w.now)
	newer, err := r.trust.succeeds(now)
	if newer {
		r.trust = now
	}
	return err
}

// renew gives the member its next certificate; lost: it never arrives.
func (w *world) renew(t *testing.T, i int, lost bool) error {
	r := &w.who[i]
	now := w.published(t)
	if err := w.verify(now, r.cert); err != nil {
		return fmt.Errorf("%s renews: %w", r.member, err)
	}
	c, err := w.state.issue(r.member, SANs{}, newKey().Public().(ed25519.PublicKey), w.now)
	if err != nil || lost {
		return err
	}
	newer, err := r.trust.succeeds(now)
	if newer {
		r.trust = now
	}
	r.cert = c
	return err
}

// actions are all that may happen next.
func (w *world) actions(force bool) map[string]func(*world, *testing.T) error {
	out := map[string]func(*world, *testing.T) error{}
	for i := range w.who {
		out[fmt.Sprint("fetch ", i)] = func(w *world, t *testing.T) error { return w.fetch(t, i) }
		out[fmt.Sprint("renew ", i)] = func(w *world, t *testing.T) error { return w.renew(t, i, false) }
		out[fmt.Sprint("lost ", i)] = func(w *world, t *testing.T) error { return w.renew(t, i, true) }
	}
	if next := w.state.rotation(w.now); w.moved == 0 && (len(next.Waits) == 0 || force) {
		out[string(next.Next)] = func(w *world, t *testing.T) error {
			if next.Next == StepRetire {
				w.moved++
			}
			return w.state.take(next.Next, w.now)
		}
	}
	if len(w.state.authorities) == 2 && w.state.Issuer == 0 {
		out["abort"] = func(w *world, t *testing.T) error { return w.state.abort(w.now) }
	}
	return out
}

// apart returns two members who do not take each other.
func (w *world) apart() error {
	for _, a := range w.who {
		for _, b := range w.who {
			if err := w.verify(a.trust, b.cert); err != nil {
				return fmt.Errorf("%s refuses %s: %w", a.member, b.member, err)
			}
		}
	}
	return nil
}

// explore goes through every order of steps, fetches, renewals, lost renewals and
// aborts, and returns the number of worlds, or the first in which somebody is
// locked out.
func explore(t *testing.T, force bool) (int, error) {
	t.Helper()
	first := genesis(t)
	seen, queue, finished := map[string]bool{first.key(): true}, []*world{first}, 0
	for len(queue) > 0 {
		w := queue[0]
		queue = queue[1:]
		for name, act := range w.actions(force) {
			next := w.fork(t, name)
			err := act(next, t)
			next.who[0].trust = next.published(t)
			if err == nil {
				err = next.apart()
			}
			if err != nil {
				return len(seen), fmt.Errorf("after %v: %w", next.path, err)
			}
			if k := next.key(); !seen[k] {
				seen[k] = true
				queue = append(queue, next)
				finished += next.moved
			}
		}
	}
	if finished == 0 {
		return len(seen), errors.New("no order of steps finishes a change")
	}
	return len(seen), nil
}

func TestSimRotationNeverLocksOut(t *testing.T) {
	n, err := explore(t, false)
	if err != nil {
		t.Error(err)
	}
	t.Logf("%d states", n)
	// The exploration finds it where a step does not wait.
	if n, err := explore(t, true); !errors.Is(err, ErrForeign) {
		t.Errorf("%d states with steps that do not wait, and nobody was locked out: %v", n, err)
	}
}

// The whole change with real folders, servers and connections; a member that sleeps
// through a step holds the next one up, by name.
func TestRotation(t *testing.T) {
	h := begin(t, InitOptions{})
	dn, h1, h2 := h.join(t, RoleDataNode, "dn1"), h.join(t, RoleHost, "h1"), h.join(t, RoleHost, "h2")
	before := h.token(t, RoleHost, "before")
	step := func(want Step, waits ...string) {
		t.Helper()
		took, next, err := h.Rotate(false)
		if err != nil || took != want || len(next.Waits) != len(waits) {
			t.Fatalf("took %q, next %+v, %v; want %q and waits for %v", took, next, err, want, waits)
		}
		for i, w := range waits {
			if !strings.HasPrefix(next.Waits[i], w) {
				t.Errorf("waits %q, want %s", next.Waits[i], w)
			}
		}
		all := []*Identity{h.admin, dn, h1, h2}
		for _, a := range all {
			a.reload()
		}
		meet(t, dn, h1)
		meet(t, h2, dn)
		meet(t, h.admin, h2)
		meet(t, h1, h.admin)
	}
	sync := func(list ...*Identity) {
		t.Helper()
		for _, i := range list {
			if err := i.sync(t.Context(), nil); err != nil {
				t.Fatal(err)
			}
		}
	}
	step(StepAnnounce, "datanode/dn1", "host/h1", "host/h2")
	during := h.token(t, RoleHost, "during")
	sync(dn, h1)
	step("", "host/h2: has not fetched")
	sync(h2)
	step(StepSwitch, "datanode/dn1", "host/h1", "host/h2", "host/before")
	sync(h1, h2)
	step("", "datanode/dn1: does not use", "host/before: a token")
	sync(dn)
	for token, name := range map[Token]string{before: "b", during: "d"} {
		i, err := Join(t.Context(), filepath.Join(t.TempDir(), name), JoinOptions{Token: token, Server: h.addr}, quiet)
		if err != nil {
			t.Fatal(err)
		}
		meet(t, dn, i)
	}
	step(StepRetire)
	sync(dn, h1, h2)
	if n := len(h1.current().trust.authorities); n != 1 {
		t.Errorf("h1 believes %d authorities", n)
	}
	if err := h.AbortRotation(); !errors.Is(err, ErrRefused) {
		t.Errorf("an abort of nothing: %v", err)
	}
	meet(t, dn, h1)
	if _, err := OpenAuthority(h.dir, quiet); err != nil {
		t.Error(err)
	}
}

// A member that was left behind by force is cut, and joins again.
func TestForcedRotation(t *testing.T) {
	h := begin(t, InitOptions{})
	dn, lost := h.join(t, RoleDataNode, "dn1"), h.join(t, RoleHost, "lost")
	for i, want := range []Step{StepAnnounce, StepSwitch, StepRetire} {
		if took, _, err := h.Rotate(i > 0); took != want || err != nil {
			t.Fatal(took, err)
		}
		if i < 2 {
			if err := dn.sync(t.Context(), nil); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := dn.sync(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if err := lost.Fetch(t.Context(), h.addr); !errors.Is(err, ErrForeign) {
		t.Errorf("who was left behind: %v", err)
	}
	token := h.token(t, RoleHost, "lost")
	if _, err := Join(t.Context(), lost.dir, JoinOptions{Token: token, Server: h.addr}, quiet); err == nil || !strings.Contains(err.Error(), "--replace") {
		t.Errorf("over a valid identity: %v", err)
	}
	again, err := Join(t.Context(), lost.dir, JoinOptions{Token: token, Server: h.addr, Replace: true}, quiet)
	if err != nil {
		t.Fatal(err)
	}
	meet(t, dn, again)
}
