package vtep

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/dataplane/header"
	"github.com/overlayd/overlayd/dataplane/probe"
	"github.com/overlayd/overlayd/vtep/link"
	"github.com/overlayd/overlayd/vtep/link/linktest"
	"github.com/overlayd/overlayd/vtep/pathmtu"
	"github.com/overlayd/overlayd/vtep/underlay"
)

// sourcesOf returns the UDP ports that a VTEP at a sends from, in the namespace that the test is in. Whoever tries all of
// them finds them, too.
func sourcesOf(t *testing.T, a netip.Addr) (ports []uint16) {
	t.Helper()
	b, err := os.ReadFile("/proc/thread-self/net/udp")
	linktest.Must(t, err)
	for line := range strings.Lines(string(b)) {
		var n int
		var local uint32
		var port uint16
		if k, _ := fmt.Sscanf(strings.TrimSpace(line), "%d: %X:%X", &n, &local, &port); k != 3 {
			continue
		}
		if at := a.As4(); local == binary.NativeEndian.Uint32(at[:]) && port >= 49152 {
			ports = append(ports, port)
		}
	}
	if len(ports) < sourcePorts {
		t.Fatalf("only %d ports of %v", len(ports), a)
	}
	return ports
}

// saysTooBig sends what a router says of a datagram, with this payload, that was too big for a path of m bytes.
func saysTooBig(t *testing.T, from netip.Addr, source uint16, to netip.Addr, m int, payload []byte) {
	t.Helper()
	quote, err := (&ipv4.Header{
		Version: 4, Len: header.IPv4MinLen, TotalLen: 1500, TTL: 60, Protocol: unix.IPPROTO_UDP,
		Flags: ipv4.DontFragment, Src: from.AsSlice(), Dst: to.AsSlice(),
	}).Marshal()
	linktest.Must(t, err)
	body := append(binary.BigEndian.AppendUint16([]byte{0, 0}, uint16(m)), quote...)
	for _, v := range []uint16{source, header.VXLANPort, 1480, 0} {
		body = binary.BigEndian.AppendUint16(body, v)
	}
	b, err := (&icmp.Message{
		Type: ipv4.ICMPTypeDestinationUnreachable, Code: 4, Body: &icmp.RawBody{Data: append(body, payload...)},
	}).Marshal(nil)
	linktest.Must(t, err)
	c, err := net.ListenPacket("ip4:icmp", "")
	linktest.Must(t, err)
	defer c.Close()
	_, err = c.WriteTo(b, &net.IPAddr{IP: from.AsSlice()})
	linktest.Must(t, err)
}

// flows sends a datagram in each of many flows through the overlay, so that some go out by each source port.
func (p *pair) flows(t *testing.T) {
	t.Helper()
	p.enter(t, 0)
	for range 12 * sourcePorts {
		s, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(overlay(1), 9)))
		linktest.Must(t, err)
		_, _ = s.Write([]byte("x")) // nobody need hear it
		linktest.Must(t, s.Close())
	}
}

// ICMP errors that a stranger makes up move nothing, whatever they quote and claim, whether the peer answers probes or
// not. The counters say why.
func TestForgedICMP(t *testing.T) {
	for _, kernel := range []bool{false, true} {
		t.Run(fmt.Sprintf("kernel peer %v", kernel), func(t *testing.T) {
			p := newPair(t)
			ends := underlays["IPv4"]
			var h *host
			if kernel {
				p.enter(t, 1)
				linktest.Must(t, netlink.LinkAdd(&netlink.Vxlan{
					LinkAttrs: netlink.LinkAttrs{Name: "blue0", MTU: 1450}, VxlanId: 42, Port: 4789, Learning: true,
					SrcAddr: ends[1].AsSlice(), Group: ends[0].AsSlice(),
				}))
				linktest.Must(t, link.AddAddress("blue0", netip.PrefixFrom(overlay(1), 24)))
				up(t, "blue0")
				h = p.startAt(t, 0, Config{Networks: []Network{blue(0, "IPv4")}})
				linktest.Await(t, "end of waiting for an answer", func() bool { return h.path().Settled })
			} else {
				h = p.startBoth(t, "IPv4")[0]
			}
			p.exchange(t, overlay, 1000)
			p.enter(t, 0)
			ports := sourcesOf(t, ends[0])
			ours := make([]byte, 64)
			header.VXLAN(ours).Encode(42)
			nobodys := bytes.Repeat([]byte{0x55}, 64)
			made := probe.Keys{}.Append(nil, probe.Message{Type: probe.Probe, Size: 1500, Nonce: 1}, probe.Len)
			for _, lie := range []struct {
				m      int
				quoted []byte
				why    pathmtu.HintIgnore
			}{
				{1300, nobodys, pathmtu.HintNoQuote}, {1300, made, pathmtu.HintNoQuote}, {1300, nil, pathmtu.HintNoQuote},
				{68, ours, pathmtu.HintAbsurd}, {0, ours, pathmtu.HintAbsurd}, {1500, ours, pathmtu.HintAbsurd},
				{1300, ours, pathmtu.NumHintIgnores}, // which is heeded, and found to be a lie
			} {
				count := func() uint64 {
					c := h.tell("paths").Probes
					switch {
					case kernel && lie.why != pathmtu.HintNoQuote:
						return c.HintsIgnored[pathmtu.HintUnanswered]
					case lie.why == pathmtu.NumHintIgnores:
						return c.HintsAccepted
					}
					return c.HintsIgnored[lie.why]
				}
				before := count()
				linktest.Await(t, fmt.Sprintf("word of %d", lie.m), func() bool {
					p.enter(t, 1)
					for _, port := range ports {
						saysTooBig(t, ends[0], port, ends[1], lie.m, lie.quoted)
					}
					p.flows(t)
					if at := h.path(); at.PathMTU != 1500 || at.OverlayMTU != 1450 || h.network().MTU != 1450 {
						t.Fatalf("%d: shrunk to %+v", lie.m, at)
					}
					return count() > before
				})
			}
			if kernel {
				if why := h.path().Candidates[0].Why; !strings.Contains(why, "an ICMP error said 1300") {
					t.Errorf("why: %q", why)
				}
			}
			// Nor later, when routes are looked at anew: the kernel believes it all.
			p.enter(t, 0)
			if m := linktest.Believed(t, ends[1]); m >= 1500 {
				t.Errorf("the kernel was told nothing: %d", m)
			}
			linktest.Must(t, link.SetMTU("eth0", 1600), link.SetMTU("eth0", 1500))
			linktest.Await(t, "an end of that", func() bool {
				at := h.path()
				return at.UnderlayMTU == 1500 && at.PathMTU == 1500 && h.network().MTU == 1450
			})
			p.exchange(t, overlay, 1400)
			if c := h.tell("paths").Probes; c.BlackHoles != 0 {
				t.Errorf("counters %+v", c)
			}
		})
	}
}

// liar is a VTEP at one address of the underlay that answers each probe of up to so many bytes, twice, and every one with
// lies.
type liar struct {
	t               *testing.T
	keys            probe.Keys
	carries         int
	own             netip.Addr
	elsewhere, conn *net.UDPConn
	told            atomic.Int64 // probes that were lied about
}

func (l *liar) run() {
	foreign, _ := probe.NewKeys([][]byte{bytes.Repeat([]byte{9}, probe.KeyLen)})
	for b := make([]byte, 1<<16); ; {
		n, from, err := l.conn.ReadFromUDPAddrPort(b)
		if err != nil {
			return
		}
		m, err := l.keys.Parse(b[:n])
		if err != nil || m.Type != probe.Probe {
			continue
		}
		to := netip.AddrPortFrom(from.Addr().Unmap(), header.VXLANPort)
		ack := probe.Message{Type: probe.Ack, Size: n + 28, Nonce: m.Nonce, Sender: l.own, Observed: to.Addr()}
		say := func(c *net.UDPConn, k probe.Keys, change func(*probe.Message), spoil bool) {
			m := ack
			change(&m)
			b := k.Append(nil, m, probe.Len)
			if spoil {
				b[probe.Len-1] ^= 1
			}
			_, _ = c.WriteToUDPAddrPort(b, to) // what is lost is not believed either
		}
		same := func(*probe.Message) {}
		say(l.conn, foreign, same, false)
		say(l.conn, probe.Keys{}, same, false)
		say(l.conn, l.keys, same, true)
		say(l.elsewhere, l.keys, same, false)
		say(l.conn, l.keys, func(m *probe.Message) { m.Nonce++ }, false)
		say(l.conn, l.keys, func(m *probe.Message) { m.Size++ }, false)
		say(l.conn, l.keys, func(m *probe.Message) { m.Sender = netip.MustParseAddr("192.0.2.77") }, false)
		if ack.Size <= l.carries {
			say(l.conn, l.keys, same, false)
			say(l.conn, l.keys, same, false)
		}
		l.told.Add(1)
	}
}

// Acknowledgements that are made up or repeated prove nothing, as they come through the socket.
func TestForgedAcknowledgements(t *testing.T) {
	p := newPair(t)
	ends := underlays["IPv4"]
	key := bytes.Repeat([]byte{7}, probe.KeyLen)
	keys, err := probe.NewKeys([][]byte{key})
	linktest.Must(t, err)
	p.enter(t, 1)
	other := netip.MustParseAddr("192.0.2.66")
	linktest.Must(t, link.AddAddress("eth0", netip.PrefixFrom(other, 24)))
	l := &liar{
		t: t, keys: keys, carries: 1400, own: ends[1],
		conn:      linktest.UDP(t, netip.AddrPortFrom(ends[1], header.VXLANPort)),
		elsewhere: linktest.UDP(t, netip.AddrPortFrom(other, 0)),
	}
	var wait sync.WaitGroup
	wait.Go(l.run)
	t.Cleanup(func() {
		l.conn.Close()
		wait.Wait()
	})
	p.enter(t, 0)
	h := startHost(t)
	h.must(request{Op: "new", Config: &Config{Networks: []Network{blue(0, "IPv4")}}})
	h.must(request{Op: "set keys", Node: &Node{Address: ends[0]}, Keys: [][]byte{key}})
	h.tell("run")
	linktest.Await(t, "path of 1400", func() bool {
		at := h.path()
		if at.Learned == LearnedProbe && at.PathMTU > 1400 {
			t.Fatalf("a lie was believed: %+v", at)
		}
		return at.Settled && at.PathMTU == 1400 && h.network().MTU == 1350
	})
	c := h.tell("paths").Probes
	for _, why := range []pathmtu.Ignore{
		pathmtu.IgnoreUnknownKey, pathmtu.IgnoreBadTag, pathmtu.IgnoreStale, pathmtu.IgnoreWrongSource,
		pathmtu.IgnoreWrongSize, pathmtu.IgnoreWrongNode,
	} {
		if c.Ignored[why] == 0 {
			t.Errorf("none was ignored as %v: %+v", why, c)
		}
	}
	if n := l.told.Load(); c.ProbesAcked == 0 || int64(c.ProbesAcked) > n {
		t.Errorf("%d acknowledged, of %d", c.ProbesAcked, n)
	}
}

// A probe for which there is no room is a lost probe, and not one that the host cannot send.
func TestProbesLostForWantOfRoom(t *testing.T) {
	for name, c := range map[string]struct {
		limit uint32
		want  unix.Errno
	}{
		"in the device's queue": {20_000, unix.ENOBUFS}, "in the socket's buffer": {1 << 30, unix.EAGAIN},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPair(t)
			ends := underlays["IPv4"]
			p.enter(t, 0)
			linktest.Must(t, netlink.QdiscReplace(&netlink.Tbf{
				QdiscAttrs: netlink.QdiscAttrs{LinkIndex: linktest.Device(t, "eth0").Attrs().Index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT},
				Rate:       10_000, Limit: c.limit, Buffer: netlink.Xmittime(10_000, 2000),
			}))
			e, err := underlay.Open(underlay.Config{Local: ends[0], Port: header.VXLANPort, TTL: 64, Checksum: true, Receivers: 1, Sources: 1})
			linktest.Must(t, err)
			defer e.Close()
			v := &VTEP{endpoints: []*underlay.Endpoint{e}}
			payload := make([]byte, 1472)
			for range 100000 {
				if err = e.Send(ends[1], payload); err != nil {
					break
				}
			}
			if !errors.Is(err, c.want) {
				t.Fatalf("%v, want %v", err, c.want)
			}
			if err := v.sendProbe(ends[0], ends[1], payload); err != nil {
				t.Errorf("no room: %v", err)
			}
			if err := v.sendProbe(ends[0], ends[1], make([]byte, 1473)); !errors.Is(err, pathmtu.ErrTooLarge) && !errors.Is(err, unix.EMSGSIZE) {
				t.Errorf("too large: %v", err)
			}
			if err := v.sendProbe(ends[1], ends[0], payload); err == nil {
				t.Error("from an address that is not there")
			}
		})
	}
}
