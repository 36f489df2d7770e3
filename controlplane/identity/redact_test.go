package identity_test

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/big"
	"strings"
	"testing"

	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"

	"github.com/overlayd/overlayd/controlplane/identity"
)

func digestOf(der []byte) string { sum := sha256.Sum256(der); return hex.EncodeToString(sum[:]) }

// spellings are the ways in which a secret number could show: of all of them, a few digits from its middle.
func spellings(secret []byte) []string {
	decimals := make([]string, len(secret))
	for i, b := range secret {
		decimals[i] = fmt.Sprint(b)
	}
	hexa := hex.EncodeToString(secret)
	long := new(big.Int).SetBytes(secret).String()
	return []string{
		hexa[8:24], strings.ToUpper(hexa[8:24]), hex.EncodeToString([]byte(hexa))[8:24], long[4:16],
		strings.Join(decimals[2:6], " "), strings.Join(decimals[2:6], ", "), fmt.Sprintf("%#x, %#x", secret[2], secret[3]),
		base64.StdEncoding.EncodeToString(secret)[4:16], string(secret[2:10]),
	}
}

// No verb of fmt, no handler of slog and no encoder shows what is secret in an exported type.
func TestSecretsDoNotShow(t *testing.T) {
	c := newCluster()
	creds := c.node(manager)
	key := must(identity.NewKey())
	cur := identity.NewCurrent(creds)
	tok := c.token()
	scalarOf := func(der []byte) []byte {
		k := must(x509.ParsePKCS8PrivateKey(der)).(*ecdsa.PrivateKey)
		return must(k.Bytes())
	}
	dir := t.TempDir() + "/identity"
	if err := creds.Save(dir); err != nil {
		t.Fatal(err)
	}
	secrets := map[string][]byte{
		"the token's secret":  c.secret,
		"the authority's key": scalarOf(c.authority.KeyDER()),
		"the node's key":      scalarOf(pemBlock(t, dir)),
	}
	values := map[string]any{
		"Token": tok, "*Token": &tok, "[]Token": []identity.Token{tok}, "map of Token": map[string]identity.Token{"t": tok},
		"struct of Token": struct{ T identity.Token }{tok},
		"*Authority":      c.authority, "Authority": *c.authority, "struct of *Authority": struct{ A *identity.Authority }{c.authority},
		"*Key": key, "Key": *key,
		"*Credentials": creds, "Credentials": *creds, "struct of Credentials": struct{ C identity.Credentials }{*creds},
		"*Current": cur, "struct of *Current": struct{ C *identity.Current }{cur},
		"ServerTLS error": fmt.Errorf("with %v", creds), "Identity": identity.Identity{},
	}
	hidden := struct {
		a *identity.Authority
		c *identity.Credentials
		h *identity.Current
	}{c.authority, creds, cur}
	values["struct of unexported pointers"] = hidden
	for name, v := range values {
		var out bytes.Buffer
		// Not %p and %w: fmt asks no method about them where they do not fit, and vet refuses them.
		for _, verb := range strings.Fields("v +v #v s +s q #q x #x X d b o O c U e g t T z") {
			fmt.Fprintf(&out, "%"+verb+"\n", v)
		}
		fmt.Fprintln(&out, v)
		for _, h := range []slog.Handler{slog.NewTextHandler(&out, nil), slog.NewJSONHandler(&out, nil)} {
			slog.New(h).With("a", v).Info("b", "c", v, slog.Group("d", "e", v))
		}
		if b, err := json.Marshal(v); err == nil {
			out.Write(b)
		}
		for what, secret := range secrets {
			for _, s := range spellings(secret) {
				if strings.Contains(out.String(), s) {
					t.Errorf("%s shows %s as %q:\n%.2000s", name, what, s, out.String())
				}
			}
		}
	}
}

func TestWhatIsShown(t *testing.T) {
	c := newCluster()
	creds := c.issue("00112233445566ff", manager, must(x509.ParseCertificate(c.authority.CertificateDER())).NotBefore)
	id := c.authority.ClusterID()
	for want, v := range map[string]any{
		"token of the authority " + c.authority.Digest()[:12] + " (not shown)": c.token(),
		"token (not shown)":          identity.Token{Digest: "OVLTKN-1-", Secret: "x"},
		"authority of cluster " + id: c.authority,
		"key (not shown)":            must(identity.NewKey()),
		"credentials of manager 00112233445566ff of cluster " + id: creds,
		"no credentials":                    new(identity.Current),
		"node of unknown role  of cluster ": identity.Identity{},
	} {
		for _, verb := range []string{"v", "+v", "#v", "s", "q", "x", "d"} {
			if _, plain := v.(identity.Identity); plain && verb != "v" {
				continue // nothing in it is secret
			}
			if got := fmt.Sprintf("%"+verb, v); got != want {
				t.Errorf("%%%s: %q, want %q", verb, got, want)
			}
		}
	}
}
