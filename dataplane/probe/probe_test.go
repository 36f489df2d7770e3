package probe

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/overlayd/overlayd/dataplane/header"
)

func secret(letter byte) []byte { return bytes.Repeat([]byte{letter}, KeyLen) }

func keysOf(t testing.TB, letters string) Keys {
	t.Helper()
	var secrets [][]byte
	for i := range letters {
		secrets = append(secrets, secret(letters[i]))
	}
	k, err := NewKeys(secrets)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

var samples = []struct {
	m      Message
	length int
}{
	{Message{Type: Probe, Size: 100, Nonce: 1, Sender: netip.MustParseAddr("192.0.2.1")}, Len},
	{Message{Type: Probe, Size: 1500, Nonce: 0xfedcba9876543210, Sender: netip.MustParseAddr("2001:db8::1")}, 1452},
	{Message{Type: Probe, Size: 65535, Nonce: 1 << 63}, MaxLen - 20},
	{Message{Type: Ack, Size: 1499, Nonce: 7, Sender: netip.MustParseAddr("192.0.2.2"), Observed: netip.MustParseAddr("203.0.113.9")}, Len},
	{Message{Type: Ack, Size: 120, Nonce: 7, Sender: netip.MustParseAddr("2001:db8::2"), Observed: netip.MustParseAddr("2001:db8:f::9")}, Len},
}

func TestRoundTrip(t *testing.T) {
	for _, letters := range []string{"", "a", "ab"} {
		keys := keysOf(t, letters)
		for _, s := range samples {
			b := keys.Append([]byte("before"), s.m, s.length)
			if string(b[:6]) != "before" || len(b) != 6+s.length {
				t.Fatalf("%q: %d bytes were appended, want %d", letters, len(b)-6, s.length)
			}
			got, err := keys.Parse(b[6:])
			if err != nil || got != s.m || !Is(b[6:]) {
				t.Errorf("keys %q: %+v became %+v, %v", letters, s.m, got, err)
			}
		}
	}
}

// The bytes are what the package says they are, put together by hand.
func TestBytes(t *testing.T) {
	m := Message{Type: Ack, Size: 0x0102, Nonce: 0x1112131415161718, Sender: netip.MustParseAddr("192.0.2.1"), Observed: netip.MustParseAddr("2001:db8::5")}
	got := keysOf(t, "k").Append(nil, m, 0)
	id := sha256.Sum256(secret('k'))
	want := "006f766c70726231" + "0200" + "0102" + hex.EncodeToString(id[:4]) + "1112131415161718" +
		"00000000000000000000ffffc0000201" + "20010db8000000000000000000000005"
	mac := hmac.New(sha256.New, secret('k'))
	raw, err := hex.DecodeString(want)
	if err != nil {
		t.Fatal(err)
	}
	mac.Write(raw)
	want += hex.EncodeToString(mac.Sum(nil)[:16])
	if hex.EncodeToString(got) != want {
		t.Errorf("got  %x\nwant %s", got, want)
	}
	if h := header.VXLAN(got); h.ValidVNI() || h.Flags() != 0 {
		t.Error("a VTEP would take it for a frame")
	}
}

func TestKeys(t *testing.T) {
	m := samples[1].m
	old, both, other, public := keysOf(t, "a"), keysOf(t, "ba"), keysOf(t, "c"), Keys{}
	for _, c := range []struct {
		name       string
		seal, open Keys
		want       error
	}{
		{"an old key among new ones", old, both, nil},
		{"a new key that an old node has not", both, old, ErrUnknownKey},
		{"another cluster", other, both, ErrUnknownKey},
		{"no keys against keys", public, both, ErrUnknownKey},
		{"keys against no keys", both, public, ErrUnknownKey},
		{"no keys", public, public, nil},
	} {
		if _, err := c.open.Parse(c.seal.Append(nil, m, 200)); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
	if !public.Public() || old.Public() {
		t.Error("which keys are public is wrong")
	}
	for _, secrets := range [][][]byte{{nil}, {secret('a'), secret('b')[1:]}, {append(secret('a'), 1)}} {
		if _, err := NewKeys(secrets); err == nil || strings.Contains(err.Error(), "bbb") {
			t.Errorf("keys of wrong lengths: %v", err)
		}
	}
	for _, verb := range []string{"%v", "%+v", "%s"} {
		if s := fmt.Sprintf(verb, both); strings.Contains(s, "bbb") || strings.Contains(s, "98 98") || strings.Contains(s, "6262") {
			t.Errorf("%s shows the keys: %s", verb, s)
		}
	}
}

// Each bit of a message is sealed, the padding included.
func TestSeal(t *testing.T) {
	keys := keysOf(t, "k")
	for _, s := range samples {
		if s.length > 2000 {
			continue
		}
		b := keys.Append(nil, s.m, s.length)
		for i := range len(b) * 8 {
			b[i/8] ^= 1 << (i % 8)
			if m, err := keys.Parse(b); err == nil {
				t.Fatalf("bit %d of %d turned over: %+v", i, len(b)*8, m)
			}
			b[i/8] ^= 1 << (i % 8)
		}
		for n := range len(b) {
			if _, err := keys.Parse(b[:n]); err == nil {
				t.Fatalf("the first %d of %d bytes were taken", n, len(b))
			}
		}
		if _, err := keys.Parse(append(b, 0)); err == nil {
			t.Fatal("a byte more was taken")
		}
	}
}

func TestErrors(t *testing.T) {
	keys := keysOf(t, "k")
	good := keys.Append(nil, samples[0].m, 100)
	with := func(at int, value byte) []byte {
		b := bytes.Clone(good)
		b[at] = value
		return b
	}
	sealed := func(m Message, length int) []byte { return keys.Append(nil, m, length) }
	for _, c := range []struct {
		name string
		b    []byte
		want error
	}{
		{"nothing", nil, ErrNotProbe},
		{"a frame", append([]byte{8, 0, 0, 0, 0, 0, 5, 0}, good[8:]...), ErrNotProbe},
		{"the I flag", with(0, 8), ErrNotProbe},
		{"short", good[:Len-1], ErrTruncated},
		{"very short", good[:8], ErrTruncated},
		{"endless", make([]byte, MaxLen+1), ErrNotProbe},
		{"too long", append(bytes.Clone(good), make([]byte, MaxLen)...), ErrTruncated},
		{"type 0", sealed(Message{}, 100), ErrType},
		{"type 3", sealed(Message{Type: 3}, 100), ErrType},
		{"a padded acknowledgement", sealed(Message{Type: Ack}, 100), ErrType},
		{"the reserved byte", with(offReserved, 1), ErrType},
		{"another key", with(offKey, ^good[offKey]), ErrUnknownKey},
		{"padding", with(99, 1), ErrBadTag},
	} {
		if _, err := keys.Parse(c.b); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
}

func TestQuotedNonce(t *testing.T) {
	b := keysOf(t, "k").Append(nil, samples[1].m, 200)
	if nonce, ok := QuotedNonce(b[:offSender]); !ok || nonce != samples[1].m.Nonce {
		t.Errorf("%x, %v", nonce, ok)
	}
	for n := range offSender {
		if _, ok := QuotedNonce(b[:n]); ok {
			t.Fatalf("%d bytes were enough", n)
		}
	}
	if _, ok := QuotedNonce(keysOf(t, "k").Append(nil, samples[3].m, 0)); ok {
		t.Error("an acknowledgement was taken for a probe")
	}
}

func TestType(t *testing.T) {
	for want, typ := range map[string]Type{"probe": Probe, "acknowledgement": Ack, "Type(9)": 9} {
		if typ.String() != want {
			t.Errorf("%v, want %s", typ, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	keys := keysOf(f, "ka")
	for _, s := range samples {
		if s.length < 2000 {
			b := keys.Append(nil, s.m, s.length)
			f.Add(b)
			f.Add(b[:len(b)-1])
			f.Add(Keys{}.Append(nil, s.m, s.length))
		}
	}
	f.Add([]byte{0, 0x6f, 0x76, 0x6c, 0x70, 0x72, 0x62, 0x31})
	f.Fuzz(func(t *testing.T, b []byte) {
		QuotedNonce(b)
		for _, k := range []Keys{keys, {}} {
			m, err := k.Parse(b)
			if err != nil {
				continue
			}
			if !Is(b) || header.VXLAN(b).ValidVNI() {
				t.Fatal("it was parsed and is none")
			}
			if again, err := k.Parse(k.Append(nil, m, len(b))); err != nil || again != m {
				t.Fatalf("%+v became %+v, %v", m, again, err)
			}
		}
	})
}

func BenchmarkIs(b *testing.B) {
	d := Keys{}.Append(nil, samples[0].m, Len)
	for b.Loop() {
		Is(d)
	}
}

func BenchmarkParse(b *testing.B) {
	keys := keysOf(b, "k")
	d := keys.Append(nil, samples[1].m, 1472)
	b.SetBytes(int64(len(d)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := keys.Parse(d); err != nil {
			b.Fatal(err)
		}
	}
}
