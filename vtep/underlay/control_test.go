package underlay

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/dataplane/forward"
	"github.com/overlayd/overlayd/dataplane/frametest"
	"github.com/overlayd/overlayd/dataplane/header"
	"github.com/overlayd/overlayd/vtep/link"
	"github.com/overlayd/overlayd/vtep/link/linktest"
)

// A datagram goes out as it is, from the pool, as large as the device takes and no larger.
func TestSendSendsOneWholeDatagram(t *testing.T) {
	for family, ends := range families {
		for _, sources := range []int{8, 0} {
			t.Run(fmt.Sprintf("%s, %d sources", family, sources), func(t *testing.T) {
				h := newHosts(t)
				from := all(ends[0])
				from.Sources = sources
				a, b := h.openAt(t, here, from), h.openAt(t, there, all(ends[1]))
				capture := h.capture(t)
				most := 1500 - header.UDPLen - map[bool]int{true: header.IPv4MinLen, false: header.IPv6Len}[ends[0].Is4()]
				for _, n := range []int{72, most} {
					must(t, a.Send(ends[1], frametest.Pattern(n)))
					awaitEvent(t, b.Receivers[0].FD(), unix.POLLIN)
					batch := make([]forward.Received, maxBatch)
					k, err := b.Receivers[0].Receive(batch)
					if err != nil || k != 1 || !bytes.Equal(batch[0].Data, frametest.Pattern(n)) || batch[0].From != ends[0] {
						t.Errorf("%d bytes: %d datagrams, %v, of %d bytes from %v", n, k, err, len(batch[0].Data), batch[0].From)
					}
					p := capture()
					if uint16(p.UDP.SrcPort) != a.ports[0] || p.UDP.DstPort != port || p.IPv4 != nil && p.IPv4.Flags.String() != "DF" {
						t.Errorf("%d bytes: %+v", n, p)
					}
				}
				if err := a.Send(ends[1], frametest.Pattern(most+1)); !errors.Is(err, unix.EMSGSIZE) {
					t.Errorf("too large: %v", err)
				}
			})
		}
	}
}

// tooBig sends, from the host that the test is on, what a router says of a datagram from one address and port to the VXLAN
// port of another that is too big for a path of mtu bytes.
func tooBig(t *testing.T, from netip.Addr, source uint16, to netip.Addr, mtu int, payload []byte) {
	t.Helper()
	udp := binary.BigEndian.AppendUint16(nil, source)
	udp = binary.BigEndian.AppendUint16(udp, port)
	udp = binary.BigEndian.AppendUint16(udp, uint16(header.UDPLen+1400))
	udp = append(append(udp, 0, 0), payload...)
	network, m := "ip4:icmp", icmp.Message{Type: ipv4.ICMPTypeDestinationUnreachable, Code: 4}
	if from.Is4() {
		quote := (&ipv4.Header{
			Version: 4, Len: header.IPv4MinLen, TotalLen: 1428, TTL: 60, Protocol: unix.IPPROTO_UDP,
			Flags: ipv4.DontFragment, Src: from.AsSlice(), Dst: to.AsSlice(),
		})
		b, err := quote.Marshal()
		must(t, err)
		body := binary.BigEndian.AppendUint16([]byte{0, 0}, uint16(mtu))
		m.Body = &icmp.RawBody{Data: append(append(body, b...), udp...)}
	} else {
		ip := []byte{6 << 4, 0, 0, 0, 1408 >> 8, 1408 & 0xff, unix.IPPROTO_UDP, 60}
		ip = append(append(ip, from.AsSlice()...), to.AsSlice()...)
		network, m = "ip6:ipv6-icmp", icmp.Message{
			Type: ipv6.ICMPTypePacketTooBig, Body: &icmp.PacketTooBig{MTU: mtu, Data: append(ip, udp...)},
		}
	}
	b, err := m.Marshal(nil)
	must(t, err)
	c, err := net.ListenPacket(network, "")
	must(t, err)
	defer c.Close()
	_, err = c.WriteTo(b, &net.IPAddr{IP: from.AsSlice()})
	must(t, err)
}

type hint struct {
	remote netip.Addr
	path   int
	quoted string
}

// What comes back by ICMP of sizes is handed up with what it quotes, and datagrams go on as they are. What quotes the
// port that everybody knows is not even looked at by the kernel.
func TestHintsAreHandedUp(t *testing.T) {
	for family, ends := range families {
		t.Run(family, func(t *testing.T) {
			h := newHosts(t)
			var hints []hint
			from := all(ends[0])
			from.Hint = func(remote netip.Addr, path int, quoted []byte) {
				hints = append(hints, hint{remote, path, string(quoted)})
			}
			a, b := h.openAt(t, here, from), h.openAt(t, there, all(ends[1]))
			quote := string(frametest.Pattern(100))
			h.enter(t, there)
			tooBig(t, ends[0], port, ends[1], 1300, []byte("known port"))
			tooBig(t, ends[0], a.ports[0]^1, ends[1], 1300, []byte("nobody's port"))
			h.enter(t, here)
			for range 3 {
				must(t, a.Send(ends[1], frametest.Pattern(72)))
			}
			if r, err := link.RouteTo(ends[1]); err != nil || r.MTU != 1500 || linktest.Believed(t, ends[1]) != 1500 || len(hints) != 0 {
				t.Fatalf("a stranger made it %+v, %v, %+v", r, err, hints)
			}
			h.enter(t, there)
			tooBig(t, ends[0], a.ports[0], ends[1], 1300, []byte(quote))
			h.enter(t, here)
			sent := 3
			await(t, "hint", func() bool {
				must(t, a.Send(ends[1], frametest.Pattern(1400)))
				sent++
				receiveN(t, b.Receivers[0], sent)
				sent = 0
				return len(hints) > 0
			})
			if want := (hint{ends[1], 1300, quote}); len(hints) != 1 || hints[0] != want {
				t.Errorf("hints %+v, want %+v", hints, want)
			}
			// The kernel believes it, and nobody else does.
			if r, err := link.RouteTo(ends[1]); err != nil || r.MTU != 1500 || linktest.Believed(t, ends[1]) != 1300 {
				t.Errorf("route %+v, %v", r, err)
			}
			// Data that is on its way meets it, too, and is not held up.
			h.enter(t, there)
			tooBig(t, ends[0], a.ports[3], ends[1], 1290, bytes.Repeat([]byte{1}, 500))
			h.enter(t, here)
			s, dest := NewSender(), destinations(a, ends[1])
			await(t, "hint from a sender", func() bool {
				var x traffic
				x.add(0, 3, 0, 1, 1300)
				x.send(s, dest).want(t, map[forward.DropReason]int{forward.NotDropped: 1})
				receiveN(t, b.Receivers[0], 1)
				return len(hints) > 1
			})
			if last := hints[len(hints)-1]; last.path != 1290 || len(last.quoted) != maxQuote {
				t.Errorf("hint %+v", last)
			}
		})
	}
}
