package gossip

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"sync/atomic"
	"testing"
)

// The vectors of the specification, https://c2sp.org/XAES-256-GCM.
func TestXAES(t *testing.T) {
	for _, c := range []struct {
		key        byte
		aad, want  string
		nonce, msg string
	}{
		{0x01, "", "ce546ef63c9cc60765923609b33a9a1974e96e52daf2fcf7075e2271", "ABCDEFGHIJKLMNOPQRSTUVWX", "XAES-256-GCM"},
		{0x03, "c2sp.org/XAES-256-GCM", "986ec1832593df5443a179437fd083bf3fdb41abd740a21f71eb769d", "ABCDEFGHIJKLMNOPQRSTUVWX", "XAES-256-GCM"},
	} {
		k, err := newSealKey(bytes.Repeat([]byte{c.key}, 32))
		if err != nil {
			t.Fatal(err)
		}
		aead, err := k.derive([]byte(c.nonce))
		if err != nil {
			t.Fatal(err)
		}
		if got := hex.EncodeToString(aead.Seal(nil, []byte(c.nonce)[12:], []byte(c.msg), []byte(c.aad))); got != c.want {
			t.Errorf("key of 0x%02x: sealed %s, want %s", c.key, got, c.want)
		}
	}
}

func ringOf(t testing.TB, bs ...byte) *keyring {
	t.Helper()
	var keys [][]byte
	for _, b := range bs {
		keys = append(keys, bytes.Repeat([]byte{b}, 32))
	}
	r, err := newKeyring(keys)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

var (
	here  = [8]byte{1, 2, 3}
	there = [8]byte{4, 5, 6}
)

func TestPacketSeal(t *testing.T) {
	plain := []byte("content")
	sealed, err := ringOf(t, 1, 2).sealPacket(here, plain)
	if err != nil {
		t.Fatal(err)
	}
	if len(sealed) != len(plain)+packetOverhead {
		t.Errorf("sealed has %d bytes, want %d", len(sealed), len(plain)+packetOverhead)
	}
	for _, c := range []struct {
		name    string
		ring    *keyring
		cluster [8]byte
		want    error
	}{
		{"same keys", ringOf(t, 1, 2), here, nil},
		{"key not first", ringOf(t, 2, 3, 1), here, nil},
		{"sealed under the first only", ringOf(t, 2), here, errKey},
		{"other cluster", ringOf(t, 1), there, errCluster},
	} {
		got, err := c.ring.openPacket(c.cluster, sealed)
		if !errors.Is(err, c.want) || err == nil && !bytes.Equal(got, plain) {
			t.Errorf("%s: %q, %v, want %v", c.name, got, err, c.want)
		}
	}
	if empty, err := ringOf(t, 1).sealPacket(here, nil); err != nil {
		t.Error(err)
	} else if _, err := ringOf(t, 1).openPacket(here, empty); !errors.Is(err, errMalformed) {
		t.Errorf("an empty packet: %v, want that it is malformed", err)
	}
}

func FuzzOpenPacket(f *testing.F) {
	r := ringOf(f, 1)
	sealed, err := r.sealPacket(here, []byte("content"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(sealed)
	f.Add(sealed[:packetOverhead])
	f.Add([]byte{kindPacket})
	f.Fuzz(func(t *testing.T, b []byte) {
		// Each process of a fuzz run seals a seed of its own, with the same content.
		if plain, err := r.openPacket(here, b); err == nil && string(plain) != "content" {
			t.Errorf("opened %q, which nobody sealed", plain)
		}
	})
}

// recorder is a connection of which one side is bytes.
type recorder struct {
	net.Conn
	in  io.Reader
	out bytes.Buffer
}

func (r *recorder) Read(p []byte) (int, error)  { return r.in.Read(p) }
func (r *recorder) Write(p []byte) (int, error) { return r.out.Write(p) }

func streamOver(t testing.TB, in []byte, dialled bool, cluster [8]byte, keys ...byte) (*stream, *recorder) {
	t.Helper()
	ring := &atomic.Pointer[keyring]{}
	ring.Store(ringOf(t, keys...))
	c := &recorder{in: bytes.NewReader(in)}
	return newStream(c, &transport{cluster: cluster, keys: ring, count: &counters{}}, dialled), c
}

// records splits a sealed stream.
func records(b []byte) (preamble []byte, recs [][]byte) {
	preamble, b = b[:preambleLen], b[preambleLen:]
	for len(b) > 0 {
		n := 4 + int(binary.BigEndian.Uint32(b))
		recs = append(recs, b[:n])
		b = b[n:]
	}
	return preamble, recs
}

// question is a valid push/pull of no nodes, followed by filling.
func question(n int) []byte {
	return append([]byte{partPushPull, 0x80}, bytes.Repeat([]byte("x"), n)...)
}

func TestStream(t *testing.T) {
	ask := question(3*maxRecord + 5)
	asker, askWire := streamOver(t, nil, true, here, 2, 1)
	if _, err := asker.Write(ask); err != nil {
		t.Fatal(err)
	}
	wire := askWire.out.Bytes()
	preamble, recs := records(wire)
	if len(recs) != 4 {
		t.Fatalf("%d records, want 4", len(recs))
	}
	answerer, answerWire := streamOver(t, wire, false, here, 1, 2)
	if _, err := answerer.Write([]byte("early")); err == nil {
		t.Error("a stream was answered before anything was read from it")
	}
	if got, err := io.ReadAll(answerer); err != nil || !bytes.Equal(got, ask) {
		t.Fatalf("read %d bytes, %v, want %d", len(got), err, len(ask))
	}
	if _, err := answerer.Write(question(1)); err != nil {
		t.Fatal(err)
	}
	answer := bytes.Clone(answerWire.out.Bytes())
	askWire.in = bytes.NewReader(answer)
	if got, err := io.ReadAll(asker); err != nil || !bytes.Equal(got, question(1)) {
		t.Errorf("the answer is %q, %v", got, err)
	}

	cat := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	_, early := records(answer)
	for name, c := range map[string]struct {
		wire []byte
		want error
	}{
		"swapped":            {cat(preamble, recs[0], recs[2], recs[1]), errKey},
		"left out":           {cat(preamble, recs[0], recs[2]), errKey},
		"twice":              {cat(preamble, recs[0], recs[0]), errKey},
		"first one missing":  {cat(preamble, recs[1]), errKey},
		"cut":                {wire[:len(wire)-1], io.ErrUnexpectedEOF},
		"cut in a length":    {cat(preamble, recs[0], recs[1][:2]), io.ErrUnexpectedEOF},
		"other salt":         {cat(preamble[:headerLen], make([]byte, saltLen), recs[0]), errKey},
		"empty record":       {cat(preamble, []byte{0, 0, 0, 16}, make([]byte, 16)), errMalformed},
		"too long record":    {cat(preamble, []byte{0, 1, 0, 17}), errMalformed},
		"endless record":     {cat(preamble, []byte{255, 255, 255, 255}), errMalformed},
		"answer as question": {answer, errMalformed},
		"answer's record":    {cat(preamble, early[0]), errKey},
		"other cluster":      {cat(preamble[:1], there[:], preamble[headerLen:], recs[0]), errCluster},
	} {
		s, _ := streamOver(t, c.wire, false, here, 1, 2)
		if _, err := io.ReadAll(s); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
		if _, err := s.Read(make([]byte, 1)); !errors.Is(err, c.want) {
			t.Errorf("%s: read again: %v, want %v", name, err, c.want)
		}
	}
	s, _ := streamOver(t, wire, false, here, 1)
	if _, err := io.ReadAll(s); !errors.Is(err, errKey) {
		t.Errorf("without the key: %v, want %v", err, errKey)
	}
	bad, badWire := streamOver(t, nil, true, here, 1)
	if _, err := bad.Write([]byte{9, 0x80}); err != nil {
		t.Fatal(err)
	}
	s, _ = streamOver(t, badWire.out.Bytes(), false, here, 1)
	if got, err := io.ReadAll(s); !errors.Is(err, errMalformed) || len(got) != 0 {
		t.Errorf("a compressed stream: %q, %v, want that it is malformed", got, err)
	}
	// An answer to another question.
	other, otherWire := streamOver(t, nil, true, here, 1, 2)
	if _, err := other.Write(ask); err != nil {
		t.Fatal(err)
	}
	otherWire.in = bytes.NewReader(answer)
	if _, err := io.ReadAll(other); !errors.Is(err, errKey) {
		t.Errorf("an answer to another question: %v, want %v", err, errKey)
	}
}

// What only a member that means harm would send.
func TestStreamStart(t *testing.T) {
	header := func(nodes, state []byte) []byte {
		b := append([]byte{partPushPull, 0x83, 0xa5}, "Nodes"...)
		b = append(append(b, nodes...), 0xac)
		b = append(append(b, "UserStateLen"...), state...)
		return append(append(b, 0xa4), "Join\xc3"...)
	}
	for name, c := range map[string]struct {
		b    []byte
		want bool
	}{
		"push/pull":       {header([]byte{5}, []byte{33}), true},
		"many nodes":      {header([]byte{0xcd, 0x40, 0x00}, []byte{33}), true},
		"too many nodes":  {header([]byte{0xcd, 0x40, 0x01}, []byte{33}), false},
		"a million nodes": {header([]byte{0xce, 0, 0x10, 0, 0}, []byte{33}), false},
		"signed nodes":    {header([]byte{0xd1, 0x40, 0x00}, []byte{33}), true},
		"too many signed": {header([]byte{0xd1, 0x40, 0x01}, []byte{33}), false},
		"negative nodes":  {header([]byte{0xff}, []byte{33}), false},
		"very negative":   {header([]byte{0xd1, 0x80, 0x01}, []byte{33}), false},
		"large state":     {header([]byte{5}, []byte{0xce, 1, 0, 0, 0}), false},
		"ping":            {[]byte{partPing, 0x80}, true},
		"ack":             {[]byte{partAck, 0x80}, true},
		"error":           {[]byte{partError, 0x80}, true},
		"compressed":      {[]byte{9, 0x80}, false},
		"user":            {[]byte{partUser, 0x80}, false},
		"sealed again":    {[]byte{10, 0, 0, 0, 0}, false},
		"cut":             {header([]byte{5}, []byte{33})[:9], false},
		"empty":           {nil, false},
	} {
		if got := streamStart(c.b); got != c.want {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
	// The limit counts for all that a stream brings.
	s, w := streamOver(t, nil, true, here, 1)
	if _, err := s.Write(question(maxStream)); err != nil {
		t.Fatal(err)
	}
	r, _ := streamOver(t, w.out.Bytes(), false, here, 1)
	if n, err := io.Copy(io.Discard, r); !errors.Is(err, errMalformed) || n > maxStream {
		t.Errorf("read %d bytes, %v, want at most %d and that it is malformed", n, err, maxStream)
	}
}

func FuzzStream(f *testing.F) {
	s, w := streamOver(f, nil, true, here, 1)
	if _, err := s.Write(question(10)); err != nil {
		f.Fatal(err)
	}
	valid := w.out.Bytes()
	f.Add(valid)
	f.Add(valid[:preambleLen+4])
	f.Fuzz(func(t *testing.T, b []byte) {
		r, _ := streamOver(t, b, false, here, 1)
		got, _ := io.ReadAll(r)
		if len(got) > 0 && !bytes.Equal(got, question(10)) {
			t.Errorf("read %q, which nobody sealed", got)
		}
	})
}
