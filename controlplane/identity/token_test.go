package identity_test

import (
	"encoding/hex"
	"strings"
	"testing"

	"github.com/overlayd/overlayd/controlplane/identity"
)

func TestTokenRoundTrip(t *testing.T) {
	c := newCluster()
	s := identity.FormatToken(c.authority.Digest(), c.secret)
	if want := "OVLTKN-1-" + c.authority.Digest() + "-" + hex.EncodeToString(c.secret); s != want {
		t.Errorf("token %s, want %s", s, want)
	}
	for _, s := range []string{s, "  " + s + "\n", "\t" + s + "\r\n"} {
		tok, err := identity.ParseToken(s)
		if err != nil || tok.VerifyCA(c.authority.CertificateDER()) != nil || !identity.Matches(c.secret, tok) {
			t.Errorf("%q: %v, %v", s, tok, err)
		}
	}
	if len(c.secret) < 16 {
		t.Errorf("the secret has %d bits", 8*len(c.secret))
	}
}

func TestParseTokenRefuses(t *testing.T) {
	digest, secret := strings.Repeat("ab", 32), strings.Repeat("cd", 16)
	for s, want := range map[string]string{
		"":                                  "it is empty",
		" \n ":                              "it is empty",
		"SWMTKN-1-" + digest + "-" + secret: "does not begin with OVLTKN-1-",
		"ovltkn-1-" + digest + "-" + secret: "does not begin with",
		"OVLTKN":                            "does not begin with",
		"OVLTKN-2-" + digest + "-" + secret: "another format than 1",
		"OVLTKN-1-" + digest:                "3 parts",
		"OVLTKN-1-" + digest + "-" + secret + "-":            "must have 4",
		"OVLTKN-1-" + digest + "-" + secret + "-1":           "must have 4",
		"OVLTKN-1-" + digest[1:] + "-" + secret:              "its third part",
		"OVLTKN-1-" + strings.ToUpper(digest) + "-" + secret: "its third part",
		"OVLTKN-1-" + digest + "-" + secret[2:]:              "its last part",
		"OVLTKN-1-" + digest + "-" + secret + "00":           "its last part",
		"OVLTKN-1-" + digest + "-" + strings.ToUpper(secret): "its last part",
		"OVLTKN-1-" + digest + "-" + secret[:30] + "é":       "its last part",
		"OVLTKN-1--":                                               "its third part",
		"OVLTKN-1-" + digest + "\n-" + secret:                      "its third part",
		"OVLTKN-1-" + strings.Repeat("-", 1<<16):                   "must have 4",
		"OVLTKN-1-" + strings.Repeat("ab", 1<<16) + "-" + secret:   "its third part",
		"OVLTKN-1-" + digest + "-" + secret[:31] + "\x00":          "its last part",
		"OVLTKN-1-" + digest + "-" + secret + " OVLTKN-1-x-" + "y": "must have 4",
	} {
		_, err := identity.ParseToken(s)
		if !contains(err, want) {
			t.Errorf("%.80q: %v, want %q", s, err, want)
		}
		if err != nil && (strings.Contains(err.Error(), "cdcd") || strings.Contains(err.Error(), "CDCD") || len(err.Error()) > 300) {
			t.Errorf("the error shows the token: %.300v", err)
		}
	}
}

// admitted does what a join does with a token: both ends have their say.
func admitted(c *cluster, s string) bool {
	tok, err := identity.ParseToken(s)
	return err == nil && tok.VerifyCA(c.authority.CertificateDER()) == nil && identity.Matches(c.secret, tok)
}

// Whichever character is changed, the token is one no more.
func TestTamperedTokenAdmitsNobody(t *testing.T) {
	c := newCluster()
	good := identity.FormatToken(c.authority.Digest(), c.secret)
	if !admitted(c, good) {
		t.Fatal("the token itself admits nobody")
	}
	for i := range good {
		for _, with := range []byte("0123456789abcdefABCDEFXO-_ \n\x00\xff") {
			if with == good[i] {
				continue
			}
			if admitted(c, good[:i]+string(with)+good[i+1:]) {
				t.Errorf("admitted with %q in place of %q at %d", with, good[i], i)
			}
		}
		if admitted(c, good[:i]) || admitted(c, good[:i]+good[i+1:]) || admitted(c, good[:i]+"a"+good[i:]) {
			t.Errorf("admitted with a character more or less at %d", i)
		}
	}
}

func TestMatches(t *testing.T) {
	c := newCluster()
	old := c.token()
	rotated := identity.NewSecret()
	if !identity.Matches(c.secret, old) || identity.Matches(rotated, old) {
		t.Error("a token outlives the rotation of its secret")
	}
	for name, x := range map[string]struct {
		secret []byte
		given  string
	}{
		"no secret, empty token": {nil, ""},
		"no secret":              {nil, old.Secret},
		"a short secret":         {c.secret[:8], hex.EncodeToString(c.secret[:8])},
		"empty token":            {c.secret, ""},
		"a part":                 {c.secret, old.Secret[:30]},
		"more":                   {c.secret, old.Secret + "00"},
		"no hexadecimal":         {c.secret, strings.Repeat("zz", 16)},
	} {
		if identity.Matches(x.secret, identity.Token{Secret: x.given}) {
			t.Errorf("%s: matches", name)
		}
	}
}

func TestVerifyCARefuses(t *testing.T) {
	a, b := newCluster(), newCluster()
	for name, der := range map[string][]byte{
		"another cluster's": b.authority.CertificateDER(),
		"damaged":           flip(a.authority.CertificateDER(), 100),
		"none":              nil,
	} {
		if err := a.token().VerifyCA(der); !contains(err, "not the one that the token names") {
			t.Errorf("%s: %v", name, err)
		}
	}
	// A token that names what is no authority at all.
	leaf := a.node(manager).CertificateDER()
	if err := (identity.Token{Digest: digestOf(leaf)}).VerifyCA(leaf); !contains(err, "not one of an authority") {
		t.Errorf("a node's certificate: %v", err)
	}
	if err := (identity.Token{}).VerifyCA(nil); err == nil {
		t.Error("an empty token verifies nothing")
	}
}

func FuzzParseToken(f *testing.F) {
	digest, secret := strings.Repeat("0a", 32), strings.Repeat("f9", 16)
	good := "OVLTKN-1-" + digest + "-" + secret
	for _, s := range []string{"", good, " " + good + "\n", good[:40], "OVLTKN-2-x-y", "OVLTKN-1---", strings.ToUpper(good), good + "-" + good} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		tok, err := identity.ParseToken(s)
		if err != nil {
			if tok != (identity.Token{}) || len(err.Error()) > 300 {
				t.Errorf("%q with an error of %d bytes", tok.Digest, len(err.Error()))
			}
			return
		}
		raw, err := hex.DecodeString(tok.Secret)
		if err != nil || identity.FormatToken(tok.Digest, raw) != strings.TrimSpace(s) {
			t.Errorf("%q is read as %q, %q", s, tok.Digest, tok.Secret)
		}
	})
}
