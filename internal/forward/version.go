package forward

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
)

// Versions is a range of versions of what hosts say to each other, both ends included. Two
// hosts use the highest that both speak.
//
//	1  requests as any NBD client's
//	2  changes have numbers, by which the disk's owner knows one that is sent again, and
//	   a host can ask whether what it has appended itself is in a disk's log
type Versions struct{ Low, High uint16 }

// Speaks is what this package speaks.
var Speaks = Versions{1, numbersVersion}

const numbersVersion = 2

// A host's certificate says what the host speaks: it is made when the process begins. One
// without this URI speaks version 1.
const versionsScheme = "plinth-peer"

func (v Versions) uri() *url.URL {
	return &url.URL{Scheme: versionsScheme, Opaque: fmt.Sprintf("%d-%d", v.Low, v.High)}
}

func (v Versions) String() string { return fmt.Sprintf("%d to %d", v.Low, v.High) }

// spoken returns what the host of a certificate speaks.
func spoken(c *x509.Certificate) (Versions, error) {
	v := Versions{1, 1}
	for _, u := range c.URIs {
		if u.Scheme != versionsScheme {
			continue
		}
		_, err := fmt.Sscanf(u.Opaque, "%d-%d", &v.Low, &v.High)
		if err != nil || v.Low == 0 || v.Low > v.High {
			return v, fmt.Errorf("host %.100q says that it speaks versions %.100q of the protocol between hosts", c.Subject.CommonName, u.Opaque)
		}
	}
	return v, nil
}

// agree returns the version that this host, which speaks v, and the other end of a
// connection use.
func (v Versions) agree(s tls.ConnectionState) (uint16, error) {
	if len(s.PeerCertificates) == 0 {
		return 0, errors.New("the other host has no certificate")
	}
	c := s.PeerCertificates[0]
	w, err := spoken(c)
	if err != nil {
		return 0, err
	}
	high := min(v.High, w.High)
	if high < max(v.Low, w.Low) {
		return 0, fmt.Errorf("host %.100q speaks versions %v of the protocol between hosts, this one %v: upgrade plinth on the one of the lower versions",
			c.Subject.CommonName, w, v)
	}
	return high, nil
}
