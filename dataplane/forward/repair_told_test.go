package forward

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/google/gopacket/layers"

	"github.com/overlayd/overlayd/dataplane/addr"
	"github.com/overlayd/overlayd/dataplane/frame"
	ft "github.com/overlayd/overlayd/dataplane/frametest"
	"github.com/overlayd/overlayd/dataplane/gso"
	"github.com/overlayd/overlayd/dataplane/header"
	"github.com/overlayd/overlayd/dataplane/icmperr"
	"github.com/overlayd/overlayd/dataplane/mtu"
)

// toldTo checks that there is one answer, an ICMP error about b, with the MTU of the path.
func toldTo(t testing.TB, answers [][]byte, b []byte, path int) {
	t.Helper()
	if len(answers) != 1 {
		t.Fatalf("%d answers, want an ICMP error", len(answers))
	}
	p, q := ft.Check(t, answers[0]), ft.Check(t, b)
	if addr.MAC(p.Ethernet.DstMAC) != addr.MAC(q.Ethernet.SrcMAC) || addr.MAC(p.Ethernet.SrcMAC) != addr.MAC(q.Ethernet.DstMAC) {
		t.Errorf("from %v to %v", p.Ethernet.SrcMAC, p.Ethernet.DstMAC)
	}
	m, quoted := 0, p.Payload
	if q.IPv4 != nil {
		if p.ICMP == nil || p.ICMP.TypeCode != layers.CreateICMPv4TypeCode(3, 4) {
			t.Fatalf("not the error: %+v", p)
		}
		m = int(p.ICMP.Seq)
	} else {
		if p.ICMPv6 == nil || p.ICMPv6.TypeCode != layers.CreateICMPv6TypeCode(2, 0) {
			t.Fatalf("not the error: %+v", p)
		}
		m, quoted = int(binary.BigEndian.Uint32(p.Payload)), p.Payload[4:]
	}
	l3 := 14 + 4*len(q.VLANs)
	if want := path - 50 - 4*len(q.VLANs); m != want {
		t.Errorf("MTU %d, want %d", m, want)
	}
	if !bytes.HasPrefix(b[l3:], quoted) || len(quoted) < 500 {
		t.Errorf("quotes % x, of % x", quoted[:60], b[l3:l3+60])
	}
}

// What can neither be cut nor fragmented is dropped, and its sender is told, once a superframe.
func TestSenderIsTold(t *testing.T) {
	md5 := []layers.TCPOption{ft.Nop(), ft.Nop(), ft.MD5()}
	ao := []layers.TCPOption{ft.AO()}
	for name, c := range map[string]struct {
		b      *ft.Builder
		size   int
		frames uint64
	}{
		"UDP":                     {ft.UDP4(ft.Opts{Payload: 1422}), 0, 1},
		"UDP IPv6":                {ft.UDP6(ft.Opts{Payload: 1402}), 0, 1},
		"UDP tagged":              {ft.UDP4(ft.Opts{Payload: 1422, VLANs: []uint16{7}}), 0, 1},
		"run of UDP":              {ft.UDP4(ft.Opts{Payload: 14000}), 1400, 10},
		"run of UDP IPv6":         {ft.UDP6(ft.Opts{Payload: 14000}), 1400, 10},
		"TCP with MD5":            {ft.TCP4(ft.Opts{Payload: 1300, Options: md5}), 0, 1},
		"TCP with MD5 IPv6":       {ft.TCP6(ft.Opts{Payload: 1300, Options: md5}), 0, 1},
		"TCP with AO":             {ft.TCP4(ft.Opts{Payload: 1300, Options: ao}), 0, 1},
		"superframe with MD5":     {ft.TCP4(ft.Opts{Payload: 13000, Options: md5, Flags: allFlags}), 1300, 10},
		"a superframe of one":     {ft.TCP4(ft.Opts{Payload: 1300, Options: md5, Flags: allFlags}), 1300, 1},
		"superframe with AO IPv6": {ft.TCP6(ft.Opts{Payload: 13001, Options: ao}), 1300, 11},
		"urgent TCP":              {ft.TCP4(ft.Opts{Payload: 1300, Flags: header.TCPAck | header.TCPUrg}), 0, 1},
		"SYN with data":           {ft.TCP4(ft.Opts{Payload: 1300, Flags: header.TCPSyn}), 0, 1},
		"reset with data":         {ft.TCP6(ft.Opts{Payload: 1300, Flags: header.TCPRst}), 0, 1},
		"echo":                    {ft.Ping4(ft.Opts{Payload: 1300}), -1, 1},
		"echo IPv6":               {ft.Ping6(ft.Opts{Payload: 1300}), -1, 1},
	} {
		t.Run(name, func(t *testing.T) {
			w := narrow(t, 1300)
			f, first := plain(c.b.Bytes()), c.b.Bytes()
			if c.size >= 0 {
				f = offloaded(c.b, c.size)
			}
			if c.size > 0 {
				first = mustSegment(t, c.b, c.size)[0]
			}
			if got := w.send(t, f); len(got) != 0 {
				t.Errorf("%d datagrams", len(got))
			}
			toldTo(t, w.answers(), first, 1300)
			w.wantDropped(t, ExceedsPathMTU, c.frames)
			w.wantRepaired(t, repaired{Told: 1})
			w.checkLaw(t)
		})
	}
}

// On a path over IPv6, 20 bytes less are left.
func TestSenderIsToldOfAPathOverIPv6(t *testing.T) {
	w := newWorld(t, full, peerC)
	w.net.FDB.SetStatic(ft.MAC(2), w.id(t, peerC))
	b := ft.UDP4(ft.Opts{Payload: 1422}).Bytes()
	w.send(t, plain(b))
	toldTo(t, w.answers(), b, 1480)
	w.checkLaw(t)
}

// Errors are bounded. What is too much is dropped all the same, and counted.
func TestErrorsAreLimited(t *testing.T) {
	w := narrow(t, 1300)
	var batch []frame.Frame
	for range 150 {
		batch = append(batch, plain(ft.UDP4(ft.Opts{Payload: 1422}).Bytes()))
	}
	w.send(t, batch...)
	if n := len(w.answers()); n != 100 {
		t.Errorf("%d errors at once, want 100", n)
	}
	w.wantRepaired(t, repaired{Told: 100, Limited: 50})
	w.egress.Process(batch[:10], 1e9+3e6) // three milliseconds later
	if n := len(w.answers()); n != 3 {
		t.Errorf("%d errors after 3 ms, want 3", n)
	}
	w.wantDropped(t, ExceedsPathMTU, 160)
	w.checkLaw(t)
}

// One for which there is no memory in the batch is counted like one too many.
func TestErrorWithoutRoom(t *testing.T) {
	w := narrow(t, 1300)
	w.egress.arena = gso.NewArena(make([]byte, icmperr.MaxLen))
	w.send(t, plain(ft.UDP4(ft.Opts{Payload: 1422}).Bytes()), plain(ft.UDP4(ft.Opts{Payload: 1422}).Bytes()))
	if n := len(w.answers()); n != 1 {
		t.Errorf("%d errors, want 1", n)
	}
	w.wantRepaired(t, repaired{Told: 1, Limited: 1})
	w.checkLaw(t)
}

// Nobody is told of what is flooded, or could be told of it.
func TestNobodyIsTold(t *testing.T) {
	for name, b := range map[string]*ft.Builder{
		"unknown destination": ft.UDP4(ft.Opts{DstMAC: ft.MAC(9), Payload: 1422}),
		"broadcast":           ft.UDP4(ft.Opts{DstMAC: addr.Broadcast, Dst: netip.MustParseAddr("10.42.255.255"), Payload: 1422}),
		"group":               ft.UDP6(ft.Opts{DstMAC: addr.MAC{0x33, 0x33, 0, 0, 0, 1}, Dst: netip.MustParseAddr("ff02::1"), Payload: 1402}),
		"no IP":               ft.Ethernet(ft.MAC(2), ft.MAC(1), func(l *layers.Ethernet) { l.EthernetType = 0x88b5 }).Payload(1440),
		"an error":            ft.Ethernet(ft.MAC(2), ft.MAC(1)).IPv4(ft.IP4(1), ft.IP4(2)).ICMP(3, 4, 0, 900).Payload(1400),
	} {
		t.Run(name, func(t *testing.T) {
			w := narrow(t, 1300)
			w.setPath(t, peerB, 1300)
			copies := uint64(2)
			if header.Ethernet(b.Bytes()).Dst() == ft.MAC(2) {
				copies = 1
			}
			known := plain(ft.UDP4(ft.Opts{}).Bytes()) // goes to one VTEP; the next one does not
			if got := w.send(t, known, plain(b.Bytes())); len(got) != 1 {
				t.Errorf("%d datagrams, want that of the first", len(got))
			}
			if n := len(w.answers()); n != 0 {
				t.Errorf("%d answers", n)
			}
			w.wantDropped(t, ExceedsPathMTU, copies)
			w.wantRepaired(t, repaired{})
			w.checkLaw(t)
		})
	}
}

// A path that leaves no room for IP at all is nothing that a sender could keep to.
func TestHopelessPath(t *testing.T) {
	for _, path := range []mtu.PathMTU{0, 49, 50, 64, 100, 110, 117} {
		for _, b := range []*ft.Builder{ft.UDP4(ft.Opts{Payload: 1400}), ft.UDP6(ft.Opts{Payload: 1400})} {
			w := narrow(t, path)
			w.send(t, plain(b.Bytes()))
			if n := len(w.answers()); n != 0 {
				t.Errorf("path %d: %d answers", path, n)
			}
			w.wantDropped(t, ExceedsPathMTU, 1)
			w.checkLaw(t)
		}
		for _, f := range []frame.Frame{
			offloaded(ft.TCP4(ft.Opts{Payload: 60000}), 1400), offloaded(ft.UDP4(ft.Opts{Payload: 60000, Fragmentable: true}), 1400),
			plain(ft.TCP6(ft.Opts{Payload: 1400}).Bytes()), plain(ft.UDP4(ft.Opts{Payload: 1400, Fragmentable: true}).Bytes()),
		} {
			w := narrow(t, path)
			for _, d := range w.send(t, f) {
				if len(d) > max(0, int(path)-28) {
					t.Errorf("path %d: a datagram of %d bytes", path, len(d))
				}
			}
			w.answers()
			w.checkLaw(t)
		}
	}
}
