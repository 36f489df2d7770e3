package identity

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
)

const (
	secretBytes = 16
	tokenKind   = "OVLTKN"
	tokenFormat = "1"
)

// NewSecret returns the secret part of a new token: 16 random bytes.
func NewSecret() []byte {
	b := make([]byte, secretBytes)
	_, _ = rand.Read(b) // does not fail: it ends the process where there is no randomness
	return b
}

// Token lets a host join a cluster. Which role it gives is known to the managers only. It does not show its secret
// when it is printed, logged or marshalled.
type Token struct {
	Digest string // of the authority: 64 lower-case hexadecimal digits
	Secret string // 32 lower-case hexadecimal digits
}

// FormatToken writes a token for an authority's digest and a secret of NewSecret: OVLTKN-1-<digest>-<secret>.
func FormatToken(caDigest string, secret []byte) string {
	return strings.Join([]string{tokenKind, tokenFormat, caDigest, hex.EncodeToString(secret)}, "-")
}

// ParseToken reads what FormatToken wrote; white space around it is ignored. Errors say what is wrong without
// repeating any of it.
func ParseToken(s string) (Token, error) {
	const again = "; copy it again from `overlayctl token show` on a manager"
	s = strings.TrimSpace(s)
	if s == "" {
		return Token{}, errors.New("read the token: it is empty" + again)
	}
	// Never more than this is looked at, whatever is handed in.
	part := strings.SplitN(s, "-", 5)
	if part[0] != tokenKind || len(part) < 2 {
		return Token{}, fmt.Errorf("read the token: it does not begin with %s-%s-%s", tokenKind, tokenFormat, again)
	}
	if part[1] != tokenFormat {
		return Token{}, fmt.Errorf("read the token: it is of another format than %s: use the release of overlayd that the cluster runs", tokenFormat)
	}
	if len(part) != 4 {
		return Token{}, fmt.Errorf("read the token: it has %d parts between its dashes, or more, and must have 4%s", len(part), again)
	}
	t := Token{Digest: part[2], Secret: part[3]}
	if !isHex(t.Digest, sha256.Size) {
		return Token{}, fmt.Errorf("read the token: its third part is not %d lower-case hexadecimal digits%s", 2*sha256.Size, again)
	}
	if !isHex(t.Secret, secretBytes) {
		return Token{}, fmt.Errorf("read the token: its last part is not %d lower-case hexadecimal digits%s", 2*secretBytes, again)
	}
	return t, nil
}

// isHex reports whether s is n bytes in the one way of writing them that is allowed.
func isHex(s string, n int) bool {
	b, err := hex.DecodeString(s)
	return err == nil && len(b) == n && s == strings.ToLower(s)
}

// VerifyCA reports whether a certificate is that of the authority which the token names.
func (t Token) VerifyCA(certDER []byte) error {
	if subtle.ConstantTimeCompare([]byte(digestOf(certDER)), []byte(t.Digest)) != 1 {
		return errors.New("verify the cluster: its authority is not the one that the token names: this is another cluster, or somebody in between; compare the address with the token")
	}
	if _, _, err := parseAuthorityCertificate(certDER); err != nil {
		return fmt.Errorf("verify the cluster: %w", err)
	}
	return nil
}

// Matches reports whether a token has the secret. It takes the same time wherever they differ. The digest is the
// joiner's to check. A secret that was never set matches nothing.
func Matches(secret []byte, t Token) bool {
	given, err := hex.DecodeString(t.Secret)
	if err != nil || len(secret) < secretBytes {
		return false
	}
	return subtle.ConstantTimeCompare(secret, given) == 1
}
