package pki

import "errors"

// What is wrong with a certificate, a file or a request. The message says which,
// and what to do.
var (
	// ErrForeign: the certificate is of another cluster, of an authority that is
	// not trusted, or of no member at all.
	ErrForeign = errors.New("not a certificate of this cluster")

	// ErrExpired: it is past its end. Its holder renews too late, or a clock is
	// wrong.
	ErrExpired = errors.New("certificate expired")

	// ErrNotYetValid: it begins in the future: a clock is wrong.
	ErrNotYetValid = errors.New("certificate not yet valid")

	// ErrRevoked: the certificate or its member was revoked. It joins again, with a
	// new token, or not at all.
	ErrRevoked = errors.New("certificate revoked")

	// ErrRole: it is of a member, and not one of those that were expected.
	ErrRole = errors.New("not the expected member")

	// ErrCorrupt: bytes that are malformed or damaged.
	ErrCorrupt = errors.New("malformed")

	// ErrUnsupported: of a version that this program does not know; a newer one
	// wrote it.
	ErrUnsupported = errors.New("unsupported version")

	// ErrPermissions: others than its owner may use a file or folder of secrets. The
	// message has the command that changes that.
	ErrPermissions = errors.New("open to others")

	// ErrNoIdentity is returned by Load for a folder without one: init or join
	// makes it.
	ErrNoIdentity = errors.New("no member of a cluster")

	// ErrNoAuthority is returned by OpenAuthority for a folder without one.
	ErrNoAuthority = errors.New("no authority of a cluster")

	// ErrRefused is returned to who asks the authority for what it may not have.
	ErrRefused = errors.New("refused")

	// ErrBusy is returned for more requests than are served: ask again later.
	ErrBusy = errors.New("too many requests")
)
