package frametest

import (
	"bytes"
	"testing"

	"github.com/google/gopacket/layers"
)

// piece is a fragment by hand: payload[from:to], with options and an edit.
func piece(payload []byte, from, to int, options []layers.IPv4Option, edit func(*layers.IPv4)) []byte {
	return Ethernet(MAC(2), MAC(1)).IPv4(IP4(1), IP4(2), func(l *layers.IPv4) {
		l.Flags, l.FragOffset, l.Protocol, l.Options = 0, uint16(from/8), 17, options
		if to < len(payload) {
			l.Flags = layers.IPv4MoreFragments
		}
		if edit != nil {
			edit(l)
		}
	}).Data(payload[from:to]).Bytes()
}

func TestReassemble(t *testing.T) {
	payload := UDP4(Opts{Payload: 92}).Bytes()[34:] // 100 bytes
	alert := layers.IPv4Option{OptionType: 148, OptionLength: 4, OptionData: []byte{0, 0}}
	record := layers.IPv4Option{OptionType: 7, OptionLength: 4, OptionData: []byte{4, 0}}
	all := func(from, to int) []byte { return piece(payload, from, to, []layers.IPv4Option{alert, record}, nil) }
	later := func(from, to int) []byte { return piece(payload, from, to, []layers.IPv4Option{alert}, nil) }
	whole, err := Reassemble([][]byte{all(0, 40), later(40, 48), later(48, 100)})
	if err != nil {
		t.Fatal(err)
	}
	if want := piece(payload, 0, 100, []layers.IPv4Option{alert, record}, nil); !bytes.Equal(whole, want) {
		t.Errorf("got % x\nwant % x", whole, want)
	}
	part, err := Reassemble([][]byte{later(8, 40), later(40, 48)})
	if err != nil || !bytes.Equal(part, later(8, 48)) {
		t.Errorf("a part of a packet: %v\n% x", err, part)
	}
	other := func(edit func(*layers.IPv4)) []byte {
		return piece(payload, 48, 100, []layers.IPv4Option{alert}, edit)
	}
	for name, last := range map[string][]byte{
		"a gap":               later(56, 100),
		"an overlap":          later(40, 100),
		"another packet":      other(func(l *layers.IPv4) { l.Id++ }),
		"another source":      other(func(l *layers.IPv4) { l.SrcIP = IP4(3).AsSlice() }),
		"another TTL":         other(func(l *layers.IPv4) { l.TTL-- }),
		"another TOS":         other(func(l *layers.IPv4) { l.TOS = 1 }),
		"another protocol":    other(func(l *layers.IPv4) { l.Protocol = 6 }),
		"an option too many":  all(48, 100),
		"an option too few":   piece(payload, 48, 100, nil, nil),
		"no IPv4":             Ping6(Opts{}).Bytes(),
		"a checksum is wrong": append(bytes.Clone(later(48, 100)[:24]), append([]byte{1, 1}, later(48, 100)[26:]...)...),
	} {
		if _, err := Reassemble([][]byte{all(0, 48), last}); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	if _, err := Reassemble([][]byte{later(48, 100), later(100, 100)}); err == nil {
		t.Error("something behind the last: taken")
	}
	if _, err := Reassemble(nil); err == nil {
		t.Error("nothing: taken")
	}
}
