package identity

import (
	"bytes"
	"crypto/x509"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/overlayd/overlayd/controlplane/api/overlayd/state/v1"
)

// Whatever stands in the file, it is refused or is what Save would write again, and no error repeats it.
func FuzzParse(f *testing.F) {
	a, err := NewAuthority(NewID(), time.Now())
	if err != nil {
		f.Fatal(err)
	}
	key, _ := NewKey()
	csr, _ := key.CSR()
	cert, _ := a.Issue(csr, NewID(), statev1.Role_ROLE_MANAGER, time.Now())
	c, err := NewCredentials(key, cert, a.CertificateDER())
	if err != nil {
		f.Fatal(err)
	}
	good, err := c.encode()
	if err != nil {
		f.Fatal(err)
	}
	// The whole file is no seed: what ECDSA covers differs from run to run, and the fuzzer would spend its time on
	// making that smaller. TestSaveAndLoad reads it.
	f.Add(good[:len(good)/2])
	f.Add(bytes.ReplaceAll(good[:400], []byte("\n"), []byte("\r\n")))
	f.Add(bytes.Replace(good, []byte("PRIVATE"), []byte("PUBLIC"), 2))
	f.Add(bytes.Replace(good, []byte("CERTIFICATE"), []byte("REQUEST"), 2))
	f.Add([]byte("-----BEGIN PRIVATE KEY-----\nA: b\n\nMA==\n-----END PRIVATE KEY-----\n"))
	f.Add([]byte(nil))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := parse(data)
		if err != nil {
			if c != nil || len(err.Error()) > 1000 {
				t.Errorf("%v with an error of %d bytes", c, len(err.Error()))
			}
			return
		}
		again, err := c.encode()
		if err != nil {
			t.Fatal(err)
		}
		d, err := parse(again)
		if err != nil || !bytes.Equal(c.CertificateDER(), d.CertificateDER()) {
			t.Errorf("cannot read what was written: %v", err)
		}
	})
}

// A damaged key is not quoted.
func TestErrorsDoNotShowTheKey(t *testing.T) {
	key, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key.private)
	if err != nil {
		t.Fatal(err)
	}
	for i := range der {
		for _, bit := range []byte{1, 0x80} {
			bad := bytes.Clone(der)
			bad[i] ^= bit
			if _, err := parseKey(bad); err != nil && strings.ContainsAny(err.Error(), "0134579{}") {
				t.Fatalf("byte %d: %v", i, err)
			}
		}
	}
}

func FuzzIdentityURI(f *testing.F) {
	f.Add("overlayd://0123456789abcdef/manager/0123456789abcdef")
	f.Add("overlayd://0123456789abcdef/worker/0123456789abcdef?x#y")
	f.Add("overlayd://u@0123456789abcdef:1/%77orker/0123456789abcdef")
	f.Fuzz(func(t *testing.T, s string) {
		u, err := url.Parse(s)
		if err != nil {
			return
		}
		id, err := parseURI(u)
		if err == nil && (id.uri() != s || id.check() != nil) {
			t.Errorf("%q is read as %v", s, id)
		}
	})
}
