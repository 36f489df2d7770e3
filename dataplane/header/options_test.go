package header_test

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/google/gopacket/layers"
	"pgregory.net/rapid"

	"github.com/overlayd/overlayd/dataplane/frametest"
	"github.com/overlayd/overlayd/dataplane/header"
)

// tlv is one option as a walk reports it.
type tlv struct {
	kind byte
	data string
}

// tcpWith returns a TCP header whose option area holds opts, padded with ends of list.
func tcpWith(opts []byte) header.TCP {
	b := make([]byte, header.TCPMaxLen)
	n := copy(b[header.TCPMinLen:], opts)
	header.TCP(b).SetDataOffset((header.TCPMinLen + n + 3) &^ 3)
	return b
}

func ipv4With(opts []byte) header.IPv4 {
	b := make([]byte, header.IPv4MaxLen)
	n := copy(b[header.IPv4MinLen:], opts)
	header.IPv4(b).SetHeaderLen((header.IPv4MinLen + n + 3) &^ 3)
	return b
}

func collect(walk func(func(byte, []byte) bool) bool) (got []tlv, ok bool) {
	ok = walk(func(kind byte, data []byte) bool {
		got = append(got, tlv{kind, string(data)})
		return true
	})
	return got, ok
}

func TestOptionWalk(t *testing.T) {
	for _, c := range []struct {
		name string
		opts []byte
		want []tlv
		ok   bool
	}{
		{"none", nil, nil, true},
		{"mss", []byte{2, 4, 5, 0xb4}, []tlv{{2, "\x05\xb4"}}, true},
		{"nops between", []byte{1, 1, 4, 2, 1, 3, 3, 7}, []tlv{{4, ""}, {3, "\x07"}}, true},
		{"all nops", []byte{1, 1, 1, 1}, nil, true},
		{"end, then what looks like an option", []byte{0, 2, 4, 0}, nil, true},
		{"end, then what looks malformed", []byte{4, 2, 0, 2}, []tlv{{4, ""}}, true},
		{"length 0", []byte{2, 0, 5, 0xb4}, nil, false},
		{"length 1", []byte{4, 2, 2, 1}, []tlv{{4, ""}}, false},
		{"length over the end", []byte{2, 5, 5, 0xb4}, nil, false},
		{"kind without length", []byte{1, 1, 1, 2}, nil, false},
		{"length of all that is left", []byte{1, 1, 8, 2}, []tlv{{8, ""}}, true},
		{"length 255", []byte{1, 1, 8, 255}, nil, false},
		{"forty bytes", append([]byte{254, 40}, make([]byte, 38)...), []tlv{{254, string(make([]byte, 38))}}, true},
	} {
		for name, walk := range map[string]func(func(byte, []byte) bool) bool{
			"TCP": tcpWith(c.opts).WalkOptions, "IPv4": ipv4With(c.opts).WalkOptions,
		} {
			got, ok := collect(walk)
			if ok != c.ok || fmt.Sprint(got) != fmt.Sprint(c.want) {
				t.Errorf("%s, %s: %v, %v, want %v, %v", name, c.name, got, ok, c.want, c.ok)
			}
		}
	}
}

func TestOptionWalkStops(t *testing.T) {
	h := tcpWith([]byte{2, 4, 1, 2, 3, 1, 1, 1}) // the second is malformed
	calls := 0
	if ok := h.WalkOptions(func(byte, []byte) bool { calls++; return false }); !ok || calls != 1 {
		t.Errorf("stopped at the first of two: %v after %d calls, want true after 1", ok, calls)
	}
	if ok := h.WalkOptions(func(byte, []byte) bool { return true }); ok {
		t.Error("the malformed one went unseen")
	}
}

// Data is the header itself, at Offset, and cannot grow into what follows.
func TestOptionDataIsInPlace(t *testing.T) {
	h := tcpWith([]byte{1, 1, 2, 4, 0x05, 0xb4, 4, 2})
	o := h.OptionList()
	for o.Next() {
		if o.Kind() == header.TCPOptionMSS {
			if o.Offset() != 2 || cap(o.Data()) != 2 {
				t.Errorf("offset %d and capacity %d, want 2 and 2", o.Offset(), cap(o.Data()))
			}
			o.Data()[1] = 0x64
		}
	}
	if h[header.TCPMinLen+5] != 0x64 {
		t.Error("writing to Data did not change the header")
	}
	if o.Next() || o.Malformed() {
		t.Error("the walk goes on behind its end")
	}
}

// gopacket writes options; the walk reads them back.
func TestOptionWalkAgainstGopacket(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var opts []layers.TCPOption
		var want []tlv
		for room := 40; room >= 2; {
			n := rapid.IntRange(0, min(room-2, 12)).Draw(t, "n")
			kind := rapid.ByteRange(1, 255).Draw(t, "kind")
			if kind == header.OptionNop {
				opts = append(opts, frametest.Nop())
				room--
			} else {
				data := rapid.SliceOfN(rapid.Byte(), n, n).Draw(t, "data")
				opts = append(opts, layers.TCPOption{OptionType: layers.TCPOptionKind(kind), OptionLength: uint8(n + 2), OptionData: data})
				want = append(want, tlv{kind, string(data)})
				room -= n + 2
			}
			if rapid.Bool().Draw(t, "enough") {
				break
			}
		}
		h := header.TCP(frametest.TCP4(frametest.Opts{Options: opts}).Bytes()[header.EthernetLen+header.IPv4MinLen:])
		got, ok := collect(h.WalkOptions)
		if !ok || fmt.Sprint(got) != fmt.Sprint(want) {
			t.Fatalf("%v, %v, want %v", got, ok, want)
		}
	})
}

func TestNDOptionWalk(t *testing.T) {
	link := []byte{1, 1, 2, 0, 0, 0, 0, 9}
	for _, c := range []struct {
		name string
		opts []byte
		n    int
		ok   bool
	}{
		{"none", nil, 0, true},
		{"one", link, 1, true},
		{"two", append(bytes.Clone(link), 14, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0), 2, true},
		{"length 0", []byte{1, 0, 2, 0, 0, 0, 0, 9}, 0, false},
		{"length over the end", []byte{1, 2, 2, 0, 0, 0, 0, 9}, 0, false},
		{"fewer than eight bytes", append(bytes.Clone(link), 1, 1, 0), 1, false},
		{"one byte", []byte{1}, 0, false},
	} {
		h := header.NDNeighbor(append(make([]byte, header.NDNeighborLen), c.opts...))
		got, ok := collect(h.WalkOptions)
		if ok != c.ok || len(got) != c.n {
			t.Errorf("%s: %v, %v, want %d options, %v", c.name, got, ok, c.n, c.ok)
		}
	}
}

// TestNoAllocations covers what the packet path calls for every frame.
func TestNoAllocations(t *testing.T) {
	v4 := frametest.TCP4(frametest.Opts{Payload: 100, Options: []layers.TCPOption{frametest.MSS(1460), frametest.Timestamps(1, 2)}}).Bytes()
	v6 := frametest.NeighborSol(frametest.MAC(1), frametest.IP6(1), frametest.IP6(2)).Bytes()
	vnet := make([]byte, header.VirtioNetTunnelLen)
	var vh header.VirtioNet
	sum := 0
	if n := testing.AllocsPerRun(100, func() {
		eth, ip := header.Ethernet(v4), header.IPv4(v4[header.EthernetLen:])
		tcp := header.TCP(v4[header.EthernetLen+header.IPv4MinLen:])
		eth.SetSrc(eth.Src())
		ip.SetSrc(ip.Dst())
		ip.SetTTL(ip.TTL() - 1)
		ip.UpdateChecksum()
		tcp.WalkOptions(func(kind byte, data []byte) bool {
			sum += int(kind) + len(data)
			return true
		})
		for o := tcp.OptionList(); o.Next(); {
			sum += o.Offset()
		}
		nd, ip6 := header.NDNeighbor(v6[header.EthernetLen+header.IPv6Len:]), header.IPv6(v6[header.EthernetLen:])
		ip6.SetSrc(ip6.Src())
		nd.SetTarget(nd.Target())
		nd.WalkOptions(func(kind byte, data []byte) bool {
			sum += int(kind) + len(data)
			return true
		})
		vh.Decode(vnet)
		vh.Encode(vnet)
		header.VXLAN(vnet).Encode(header.VXLAN(vnet).VNI())
	}); n != 0 {
		t.Errorf("%v allocations a run, want 0", n)
	}
}
