package identity

import (
	"fmt"
	"io"
	"log/slog"
)

// shown gives a type that holds a secret one text for every verb of fmt that vet lets pass. A pointer receiver or a String method alone
// would leave %#v, %x or %d to show the fields.
func shown(f fmt.State, text string) { _, _ = io.WriteString(f, text) }

// String says which authority the token is of.
func (t Token) String() string {
	if !isHex(t.Digest, len(t.Digest)/2) {
		return "token (not shown)"
	}
	return fmt.Sprintf("token of the authority %.12s (not shown)", t.Digest)
}

// GoString is String.
func (t Token) GoString() string { return t.String() }

// Format writes String, whatever the verb.
func (t Token) Format(f fmt.State, _ rune) { shown(f, t.String()) }

// LogValue is String.
func (t Token) LogValue() slog.Value { return slog.StringValue(t.String()) }

// MarshalText is String: what a token is sent as is FormatToken's to write.
func (t Token) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

// String says whose authority it is.
func (a Authority) String() string { return "authority of cluster " + a.cluster }

// Format writes String, whatever the verb.
func (a Authority) Format(f fmt.State, _ rune) { shown(f, a.String()) }

// LogValue is String.
func (a Authority) LogValue() slog.Value { return slog.StringValue(a.String()) }

// String says that it is a key.
func (k Key) String() string { return "key (not shown)" }

// Format writes String, whatever the verb.
func (k Key) Format(f fmt.State, _ rune) { shown(f, k.String()) }

// LogValue is String.
func (k Key) LogValue() slog.Value { return slog.StringValue(k.String()) }

// String says whose credentials they are.
func (c Credentials) String() string { return "credentials of " + c.id.String() }

// Format writes String, whatever the verb.
func (c Credentials) Format(f fmt.State, _ rune) { shown(f, c.String()) }

// LogValue is String.
func (c Credentials) LogValue() slog.Value { return slog.StringValue(c.String()) }

// String says whose credentials are in use.
func (c *Current) String() string {
	if now := c.Load(); now != nil {
		return now.String()
	}
	return "no credentials"
}

// Format writes String, whatever the verb.
func (c *Current) Format(f fmt.State, _ rune) { shown(f, c.String()) }

// LogValue is String.
func (c *Current) LogValue() slog.Value { return slog.StringValue(c.String()) }
