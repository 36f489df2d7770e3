package mss_test

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/google/gopacket/layers"
	"pgregory.net/rapid"

	"github.com/overlayd/overlayd/dataplane/checksum"
	ft "github.com/overlayd/overlayd/dataplane/frametest"
	"github.com/overlayd/overlayd/dataplane/header"
	. "github.com/overlayd/overlayd/dataplane/mss"
	"github.com/overlayd/overlayd/dataplane/mtu"
)

func opt(kind uint8, data ...byte) layers.TCPOption {
	return layers.TCPOption{OptionType: layers.TCPOptionKind(kind), OptionLength: uint8(2 + len(data)), OptionData: data}
}

var (
	wscale = opt(header.TCPOptionWindowScale, 7)
	sackOK = opt(header.TCPOptionSACKPermitted)
	end    = layers.TCPOption{OptionType: layers.TCPOptionKindEndList, OptionLength: 1}
)

// handshakes are the options of SYNs, with an MSS of mss, as they are sent.
func handshakes(mss uint16) map[string][]layers.TCPOption {
	m, nop, ts := ft.MSS(mss), ft.Nop(), ft.Timestamps(0xfedcba98, 0)
	return map[string][]layers.TCPOption{
		"Linux":             {m, sackOK, ts, nop, wscale},
		"Windows":           {m, nop, wscale, nop, nop, sackOK},
		"macOS":             {m, nop, wscale, nop, nop, ts, sackOK, end, end},
		"FreeBSD":           {m, nop, wscale, sackOK, ts},
		"alone":             {m},
		"last":              {sackOK, ts, nop, wscale, m},
		"at an odd place":   {nop, m, nop, nop, nop},
		"behind wscale":     {wscale, m, nop},
		"fast open":         {m, sackOK, opt(34, 1, 2, 3, 4, 5, 6, 7, 8)},
		"twice":             {m, nop, m, nop, nop, nop},
		"unknown before":    {opt(253, 1, 2, 3, 4, 5), m},
		"signed, TCP-MD5":   {ft.MD5(), m, nop, nop},
		"with the longest":  {opt(254, make([]byte, 34)...), m},
		"behind seven NOPs": {nop, nop, nop, nop, nop, nop, nop, m, nop},
	}
}

// syn builds a SYN with data, whose TCP header is at the returned offset.
func syn(v6 bool, flags uint8, payload int, options []layers.TCPOption) (*ft.Builder, int) {
	o := ft.Opts{Flags: flags, Options: options, Payload: payload, Seq: 0x01020304}
	if v6 {
		return ft.TCP6(o), 14 + 40
	}
	return ft.TCP4(o), 14 + 20
}

func families(t *testing.T, run func(t *testing.T, v6 bool)) {
	t.Run("IPv4", func(t *testing.T) { run(t, false) })
	t.Run("IPv6", func(t *testing.T) { run(t, true) })
}

// What Clamp makes of a SYN is what its sender would have sent with the smaller option.
func TestClamp(t *testing.T) {
	families(t, func(t *testing.T, v6 bool) {
		for name := range handshakes(0) {
			for _, flags := range []uint8{header.TCPSyn, header.TCPSyn | header.TCPAck, header.TCPSyn | header.TCPEce | header.TCPCwr} {
				for _, payload := range []int{0, 7} {
					for _, c := range []struct{ had, most, want uint16 }{
						{1460, 1410, 1410}, {65535, 1398, 1398}, {1411, 1410, 1410}, {256, 255, 255}, {0xff00, 0x00ff, 0x00ff}, {2, 1, 1},
						{1410, 1410, 1410}, {1409, 1410, 1409}, {536, 8910, 536}, {1, 1, 1}, {0, 1410, 0},
					} {
						b, at := syn(v6, flags, payload, handshakes(c.had)[name])
						wanted, _ := syn(v6, flags, payload, handshakes(c.want)[name])
						for _, partial := range []bool{false, true} {
							got, want := b.Bytes(), wanted.Bytes()
							if partial {
								got, want = b.Partial(), wanted.Partial()
							}
							if Clamp(got[at:], mtu.MSS(c.most), partial) != (c.had != c.want) {
								t.Errorf("%s: from %d to at most %d: wrong verdict", name, c.had, c.most)
							}
							if !bytes.Equal(got, want) {
								t.Errorf("%s: from %d to at most %d, partial %v\n got % x\nwant % x", name, c.had, c.most, partial, got[at:], want[at:])
							}
						}
					}
				}
			}
		}
	})
}

func TestClampLeavesAlone(t *testing.T) {
	m := ft.MSS(9000)
	for name, c := range map[string]struct {
		flags   uint8
		most    mtu.MSS
		options []layers.TCPOption
	}{
		"no option":                  {header.TCPSyn, 100, []layers.TCPOption{sackOK, wscale, ft.Nop(), ft.Nop(), ft.Nop()}},
		"no options":                 {header.TCPSyn, 100, nil},
		"an acknowledgement":         {header.TCPAck, 100, []layers.TCPOption{m}},
		"a reset":                    {header.TCPRst | header.TCPAck, 100, []layers.TCPOption{m}},
		"no maximum":                 {header.TCPSyn, 0, []layers.TCPOption{m}},
		"a maximum that cannot be":   {header.TCPSyn, -7, []layers.TCPOption{m}},
		"signed, TCP-AO, behind":     {header.TCPSyn, 100, []layers.TCPOption{m, ft.AO()}},
		"signed, TCP-AO, before":     {header.TCPSyn, 100, []layers.TCPOption{ft.AO(), m}},
		"an MSS of one byte":         {header.TCPSyn, 100, []layers.TCPOption{opt(2, 0x23), ft.Nop()}},
		"an MSS of three bytes":      {header.TCPSyn, 100, []layers.TCPOption{opt(2, 0x23, 0x28, 0), ft.Nop(), ft.Nop(), ft.Nop()}},
		"behind the end of the list": {header.TCPSyn, 100, []layers.TCPOption{end, m, end, end, end}},
		"MSS 0":                      {header.TCPSyn, 100, []layers.TCPOption{ft.MSS(0)}},
	} {
		b, at := syn(false, c.flags, 0, c.options)
		got, want := b.Bytes(), b.Bytes()
		if Clamp(got[at:], c.most, false) || !bytes.Equal(got, want) {
			t.Errorf("%s: changed\n got % x\nwant % x", name, got[at:], want[at:])
		}
	}
}

// An option whose length cannot be ends the list: what is in front of it counts, and nothing behind it is touched.
func TestClampMalformed(t *testing.T) {
	for _, length := range []byte{0, 1, 255, 13, 9} {
		for _, kind := range []byte{2, 3, 8, 34, 254} {
			b, at := syn(false, header.TCPSyn, 0, []layers.TCPOption{ft.MSS(9000), opt(254, 1, 1), ft.MSS(9001)})
			got := b.Bytes()[at:]
			bad := got[24:28]
			bad[0], bad[1] = kind, length // 8 bytes are left from here
			want := bytes.Clone(got)
			binary.BigEndian.PutUint16(want[22:], 1400)
			if !Clamp(got, 1400, true) || !bytes.Equal(got, want) {
				t.Errorf("kind %d, length %d:\n got % x\nwant % x", kind, length, got, want)
			}
		}
	}
}

// Every truncation of every handshake, wherever it comes from: nothing outside is read or written, and an option that
// is not there as a whole is left alone.
func TestClampTruncated(t *testing.T) {
	for name, options := range handshakes(9000) {
		b, at := syn(false, header.TCPSyn, 0, options)
		all := b.Bytes()[at:]
		for n := range len(all) + 1 {
			got := bytes.Clone(all)
			changed := Clamp(got[:n:n], 1400, true)
			if !bytes.Equal(got[n:], all[n:]) {
				t.Fatalf("%s, %d of %d bytes: wrote behind the end", name, n, len(all))
			}
			if changed == bytes.Equal(got, all) {
				t.Errorf("%s, %d of %d bytes: wrong verdict", name, n, len(all))
			}
			if changed && n < header.TCPMinLen+header.TCPOptionMSSLen {
				t.Errorf("%s: clamped in %d bytes", name, n)
			}
		}
		// The header says that it is longer, or shorter, than it is.
		for words := range 16 {
			got := bytes.Clone(all)
			got[12] = byte(words << 4)
			want := bytes.Clone(got)
			Clamp(got, 1400, true)
			if end := max(words*4, header.TCPMinLen); end < len(got) && !bytes.Equal(got[end:], want[end:]) {
				t.Errorf("%s with a header of %d words: changed what is behind it", name, words)
			}
		}
	}
}

// A checksum that was wrong stays wrong by as much: the clamp does not vouch for a segment.
func TestClampKeepsWrongChecksums(t *testing.T) {
	b, at := syn(false, header.TCPSyn, 3, handshakes(9000)["Linux"])
	got := b.Bytes()
	got[at+4] ^= 0x40
	if !Clamp(got[at:], 1400, false) {
		t.Fatal("not clamped")
	}
	if _, err := ft.Verify(got); err == nil {
		t.Error("the checksum is right now")
	}
	got[at+4] ^= 0x40
	ft.Check(t, got)
}

func TestClampProperty(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		mss := rapid.Uint16Range(1, 65535).Draw(rt, "mss")
		most := rapid.Uint16Range(1, 65535).Draw(rt, "most")
		pool := []layers.TCPOption{ft.MSS(mss), sackOK, wscale, ft.Timestamps(rapid.Uint32().Draw(rt, "ts"), 1), ft.Nop(), ft.Nop(), ft.Nop()}
		options := rapid.Permutation(pool).Draw(rt, "options")
		at := 0
		for i := range options {
			if options[i].OptionType == layers.TCPOptionKindMSS {
				at = i
			}
		}
		v6 := rapid.Bool().Draw(rt, "v6")
		b, off := syn(v6, header.TCPSyn|rapid.Uint8().Draw(rt, "flags"), rapid.IntRange(0, 9).Draw(rt, "payload"), options)
		got := b.Bytes()
		changed := Clamp(got[off:], mtu.MSS(most), false)
		if changed != (most < mss) {
			rt.Fatalf("MSS %d, at most %d: changed is %v", mss, most, changed)
		}
		p, err := ft.Verify(got)
		if err != nil {
			rt.Fatal(err)
		}
		if v := binary.BigEndian.Uint16(p.TCP.Options[at].OptionData); v != min(mss, most) {
			rt.Fatalf("MSS %d, at most %d: is %d", mss, most, v)
		}
	})
}

// FuzzClamp looks at any bytes as a TCP header. Only numbers that were above the maximum and the checksum may change,
// the sum over all must not, and there must be nothing to do a second time.
func FuzzClamp(f *testing.F) {
	for _, options := range handshakes(9000) {
		b, at := syn(false, header.TCPSyn, 2, options)
		f.Add(b.Bytes()[at:], uint16(1400), false)
	}
	f.Add([]byte{}, uint16(1), true)
	f.Fuzz(func(t *testing.T, tcp []byte, most uint16, partial bool) {
		before := bytes.Clone(tcp)
		tcp = tcp[:len(tcp):len(tcp)]
		changed := Clamp(tcp, mtu.MSS(most), partial)
		if changed == bytes.Equal(tcp, before) {
			t.Fatalf("changed is %v", changed)
		}
		if !changed {
			return
		}
		if before[13]&header.TCPSyn == 0 || most == 0 {
			t.Fatal("changed what is no SYN")
		}
		if !partial && len(tcp)%2 == 0 && checksum.Fold(checksum.Sum(tcp, 1)) != checksum.Fold(checksum.Sum(before, 1)) {
			t.Fatal("the sum is another")
		}
		for i := 0; i < len(tcp); i++ {
			if tcp[i] == before[i] || !partial && (i == 16 || i == 17) {
				continue
			}
			// Either byte of the number may be the first that differs.
			if i+1 < len(tcp) && i >= 22 && before[i-2] == 2 && before[i-1] == 4 && binary.BigEndian.Uint16(before[i:]) > most && binary.BigEndian.Uint16(tcp[i:]) == most {
				i++
				continue
			}
			if i >= 23 && before[i-3] == 2 && before[i-2] == 4 && binary.BigEndian.Uint16(before[i-1:]) > most && binary.BigEndian.Uint16(tcp[i-1:]) == most {
				continue
			}
			t.Fatalf("byte %d changed from %d to %d", i, before[i], tcp[i])
		}
		if Clamp(tcp, mtu.MSS(most), partial) {
			t.Fatal("changed again")
		}
	})
}

func TestClampAllocatesNothing(t *testing.T) {
	b, at := syn(false, header.TCPSyn, 2, handshakes(9000)["Linux"])
	tcp := b.Bytes()[at:]
	most := mtu.MSS(8999)
	if n := testing.AllocsPerRun(100, func() {
		Clamp(tcp, most, false)
		most--
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkClamp(b *testing.B) {
	s, at := syn(false, header.TCPSyn, 0, handshakes(9000)["Linux"])
	tcp := s.Bytes()[at:]
	for b.Loop() {
		binary.BigEndian.PutUint16(tcp[22:], 9000)
		if !Clamp(tcp, 1410, false) {
			b.Fatal("not clamped")
		}
	}
}
