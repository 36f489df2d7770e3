package underlay

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/dataplane/forward"
	"github.com/overlayd/overlayd/dataplane/frametest"
	"github.com/overlayd/overlayd/dataplane/header"
	"github.com/overlayd/overlayd/dataplane/mtu"
)

// families has the addresses of both hosts in each family.
var families = map[string][2]netip.Addr{"IPv4": {here4, there4}, "IPv6": {here6, there6}}

// Whatever is on or off at either side, the same datagrams arrive.
func TestDatagramsArriveAsTheyWereSent(t *testing.T) {
	h := newHosts(t)
	for family, ends := range families {
		for bits := range 1 << 5 {
			from, to := all(ends[0]), all(ends[1])
			from.GSO, to.GRO = bits&1 == 0, bits&2 == 0
			from.Batch, to.Batch = bits&4 == 0, bits&4 == 0
			if bits&8 != 0 {
				from.Sources = 0
			}
			from.Checksum = bits&16 == 0
			name := fmt.Sprintf("%s, GSO %v, GRO %v, batch %v, %d sources, checksum %v", family, from.GSO, to.GRO, from.Batch, from.Sources, from.Checksum)
			t.Run(name, func(t *testing.T) {
				h := h.again(t)
				a, b := h.openAt(t, here, from), h.openAt(t, there, to)
				gso := from.GSO && (from.Checksum || ends[0].Is6())
				if a.GSO() != gso || (a.Missing["gso"] != nil) != (from.GSO && !gso) {
					t.Errorf("GSO %v, missing %v", a.GSO(), a.Missing)
				}
				if want := max(1, from.Sources); a.Buckets() != want || len(b.Receivers) != 1 || a.Local != ends[0] {
					t.Errorf("%d sources, %d receivers, local %v", a.Buckets(), len(b.Receivers), a.Local)
				}
				full := 1500 - mtu.Overhead(mtu.FamilyOf(ends[0]), 0) + header.EthernetLen + header.VXLANLen
				var x traffic
				x.add(0, 3, 2, 1, 100)
				x.add(0, 3, 3, 3, full)
				x.train(0, 1, 5, 1000)
				x.train(0, 1, MaxSegments, 1000)
				x.add(0, 1, 0, 1, 22)
				for i := range 3 * maxBatch {
					x.add(0, i/10, 0, 2, 200+i)
				}
				x.train(0, 0, 44, 1400)
				r := x.send(NewSender(), destinations(a, ends[1]))
				r.want(t, map[forward.DropReason]int{forward.NotDropped: len(x.sent)})
				total := 0
				for _, s := range x.sent {
					total += len(s) - header.VXLANLen
				}
				if r.bytes[forward.NotDropped] != total {
					t.Errorf("%d bytes reported, %d sent", r.bytes[forward.NotDropped], total)
				}

				came := receiveN(t, b.Receivers[0], len(x.sent))
				var datagrams []string
				trains := 0
				for _, g := range came {
					datagrams = append(datagrams, g.data)
					if g.from != ends[0] {
						t.Fatalf("it came from %v", g.from)
					}
					if g.stride != 0 {
						trains++
					}
					if want := map[int]uint8{100: 2, full: 3}[len(g.data)]; g.tos != want {
						t.Errorf("a datagram of %d bytes came with TOS %d, not %d", len(g.data), g.tos, want)
					}
				}
				// Over one veth pair nothing overtakes.
				if !slices.Equal(datagrams, x.sent) {
					t.Errorf("other datagrams than were sent, or in another order")
				}
				if (trains > 0) != (gso && to.GRO) {
					t.Errorf("%d datagrams came in trains", trains)
				}
				if n := b.Overflow(); n != 0 {
					t.Errorf("overflow %d", n)
				}
			})
		}
	}
}

// again makes a subtest, which has a thread of its own, go on with the same hosts.
func (h *hosts) again(t *testing.T) *hosts {
	t.Helper()
	lockThread(t)
	h.enter(t, here)
	return h
}

// A peer that leaves the outer checksum out is heard (RFC 7348, section 5; RFC 6935).
func TestZeroChecksumIsAccepted(t *testing.T) {
	h := newHosts(t)
	for family, ends := range families {
		b := h.openAt(t, there, all(ends[1]))
		s := plainSocket(t, ends[0], 0, false)
		if ends[0].Is4() {
			must(t, unix.SetsockoptInt(s, unix.SOL_SOCKET, unix.SO_NO_CHECK, 1))
		} else {
			must(t, unix.SetsockoptInt(s, unix.IPPROTO_UDP, unix.UDP_NO_CHECK6_TX, 1))
		}
		wire := h.listen(t)
		must(t, unix.Sendto(s, frametest.Pattern(100), 0, sockaddr(ends[1], port)))
		for f := wire(); ; f = wire() {
			if n := len(f) - 100; n > 0 && string(f[n:]) == string(frametest.Pattern(100)) {
				if sum := binary.BigEndian.Uint16(f[n-2:]); sum != 0 {
					t.Errorf("%s: it was sent with checksum %#x", family, sum)
				}
				break
			}
		}
		if g := receiveN(t, b.Receivers[0], 1); g[0].data != string(frametest.Pattern(100)) || g[0].from != ends[0] {
			t.Errorf("%s: from %v: % x", family, g[0].from, g[0].data)
		}
	}
}

func sockaddr(a netip.Addr, port int) unix.Sockaddr {
	if a.Is4() {
		return &unix.SockaddrInet4{Addr: a.As4(), Port: port}
	}
	return &unix.SockaddrInet6{Addr: a.As16(), Port: port}
}

// What is on the wire: an independent decoder says that all headers are right.
func TestHeadersOnTheWire(t *testing.T) {
	h := newHosts(t)
	for family, ends := range families {
		for _, sources := range []int{0, 8} {
			for _, checksum := range []bool{true, false} {
				t.Run(fmt.Sprintf("%s, %d sources, checksum %v", family, sources, checksum), func(t *testing.T) {
					h := h.again(t)
					c := all(ends[0])
					c.Sources, c.Checksum, c.TTL = sources, checksum, 37
					a := h.openAt(t, here, c)
					h.openAt(t, there, all(ends[1]))
					capture := h.capture(t)
					s, dest := NewSender(), destinations(a, ends[1])
					ports := map[uint16]int{}
					for i := range 3 * 8 {
						bucket, tos := i%8, uint8(i%4)
						x := new(traffic)
						x.add(0, bucket, tos, 1+i%2, 100+i)
						x.send(s, dest).want(t, map[forward.DropReason]int{forward.NotDropped: 1})
						p := capture()
						if string(p.Payload) != x.sent[0] || uint16(p.UDP.DstPort) != port {
							t.Fatalf("to port %d: % x", p.UDP.DstPort, p.Payload)
						}
						src := uint16(p.UDP.SrcPort)
						if old, seen := ports[src]; seen && old != bucket && sources != 0 {
							t.Errorf("port %d is that of buckets %d and %d", src, old, bucket)
						}
						ports[src] = bucket
						if sources == 0 && src != port || sources != 0 && src < firstSource {
							t.Errorf("source port %d", src)
						}
						var ttl, class uint8
						if p.IPv4 != nil {
							ttl, class = p.IPv4.TTL, p.IPv4.TOS
							if p.IPv4.Flags.String() != "DF" || p.IPv4.FragOffset != 0 {
								t.Errorf("flags %v", p.IPv4.Flags)
							}
						} else {
							ttl, class = p.IPv6.HopLimit, p.IPv6.TrafficClass
						}
						if ttl != 37 || class != tos {
							t.Errorf("TTL %d, traffic class %d in place of %d", ttl, class, tos)
						}
						// Over IPv6 it is never left out.
						if want := checksum || p.IPv6 != nil; (p.UDP.Checksum != 0) != want {
							t.Errorf("checksum %#x", p.UDP.Checksum)
						}
					}
					if want := max(1, sources); len(ports) != want {
						t.Errorf("%d source ports in place of %d", len(ports), want)
					}
				})
			}
		}
	}
}

// Nobody but us has a use for the source ports, so that what arrives there is thrown away unread.
func TestSourcesDiscardWhatStrangersSend(t *testing.T) {
	h := newHosts(t)
	for family, ends := range families {
		a := h.openAt(t, here, all(ends[0]))
		h.enter(t, there)
		s := plainSocket(t, ends[1], 0, false)
		h.enter(t, here)
		for _, fd := range a.sources {
			sa, err := unix.Getsockname(fd)
			must(t, err)
			h.enter(t, there)
			for range 10 {
				must(t, unix.Sendto(s, frametest.Pattern(1000), 0, sa))
			}
			h.enter(t, here)
			var buf [2000]byte
			if n, _, err := unix.Recvfrom(fd, buf[:], unix.MSG_DONTWAIT); err != unix.EAGAIN {
				t.Errorf("%s: %d bytes waited at a source, %v", family, n, err)
			}
			if used, err := unix.IoctlGetInt(fd, unix.SIOCINQ); err != nil || used != 0 {
				t.Errorf("%s: %d bytes wait, %v", family, used, err)
			}
		}
		if n := dropped(a.sources); n != 10*len(a.sources) {
			t.Errorf("%s: %d datagrams were discarded, %d sent", family, n, 10*len(a.sources))
		}
	}
}

// dropped returns how many datagrams the kernel has dropped on the sockets.
func dropped(fds []int) int {
	n := 0
	for _, fd := range fds {
		r := Receiver{fd: fd}
		n += int(r.overflow())
	}
	return n
}

func TestOverflowIsCounted(t *testing.T) {
	h := newHosts(t)
	for family, ends := range families {
		for _, receivers := range []int{1, 3} {
			t.Run(fmt.Sprintf("%s, %d receivers", family, receivers), func(t *testing.T) {
				h := h.again(t)
				c := all(ends[1])
				c.Receivers, c.GRO = receivers, false
				a, b := h.openAt(t, here, all(ends[0])), h.openAt(t, there, c)
				for _, r := range b.Receivers {
					must(t, unix.SetsockoptInt(r.fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 20000))
				}
				var x traffic
				for i := range 600 {
					x.add(0, i%8, 0, 1, 1000)
				}
				x.send(NewSender(), destinations(a, ends[1])).want(t, map[forward.DropReason]int{forward.NotDropped: 600})
				kept := 0
				for _, r := range b.Receivers {
					batch := make([]forward.Received, maxBatch)
					for {
						n, err := r.Receive(batch)
						if err == unix.EAGAIN {
							break
						}
						must(t, err)
						kept += n
					}
				}
				if n := b.Overflow(); n == 0 || kept+int(n) != 600 {
					t.Errorf("%d received and %d dropped of 600", kept, n)
				}
			})
		}
	}
}

// Flows are spread over the receivers, and a flow stays with one.
func TestReceiversShareFlows(t *testing.T) {
	h := newHosts(t)
	from, to := all(here4), all(there4)
	from.Sources, to.Receivers = 64, 4
	a, b := h.openAt(t, here, from), h.openAt(t, there, to)
	var x traffic
	for i := range 5 * 64 {
		x.add(0, i%64, 0, 1, 100)
	}
	x.send(NewSender(), destinations(a, there4)).want(t, map[forward.DropReason]int{forward.NotDropped: 5 * 64})
	total, busy := 0, 0
	batch := make([]forward.Received, maxBatch)
	for _, r := range b.Receivers {
		n := 0
		for {
			k, err := r.Receive(batch)
			if err == unix.EAGAIN {
				break
			}
			must(t, err)
			n += k
		}
		if n%5 != 0 {
			t.Errorf("a receiver got %d datagrams: part of a flow", n)
		}
		if n > 0 {
			busy++
		}
		total += n
	}
	// That all of 64 flows go to one of 4 does not happen by chance.
	if total != 5*64 || busy < 2 {
		t.Errorf("%d datagrams of %d arrived, at %d receivers", total, 5*64, busy)
	}
}

func TestSendAndReceiveDoNotAllocate(t *testing.T) {
	h := newHosts(t)
	for family, ends := range families {
		for _, gso := range []bool{true, false} {
			c := all(ends[0])
			c.GSO = gso
			t.Run(fmt.Sprintf("%s, GSO %v", family, gso), func(t *testing.T) {
				h := h.again(t)
				a, b := h.openAt(t, here, c), h.openAt(t, there, all(ends[1]))
				var x traffic
				for i := range 40 {
					x.add(0, i/10, 3, 1, 100)
				}
				x.train(0, 2, 20, 1000)
				s, dest, to := NewSender(), destinations(a, ends[1]), new(tally)
				batch := make([]forward.Received, 2*maxBatch)
				failed := error(nil)
				run := func() {
					s.Send(x.sends, x.pieces, dest, to)
					for k := 0; ; {
						n, err := b.Receivers[0].Receive(batch)
						k += n
						if err == unix.EAGAIN {
							break
						}
						if err != nil {
							failed = err
							break
						}
					}
				}
				if n := testing.AllocsPerRun(50, run); n != 0 || failed != nil {
					t.Errorf("%v allocations, %v", n, failed)
				}
				if to.dropped != 0 || to.sent != 51*60 {
					t.Errorf("%d sent, %d dropped", to.sent, to.dropped)
				}
			})
		}
	}
}

// tally is a Reporter that allocates nothing.
type tally struct{ sent, dropped int }

func (r *tally) Report(_ *forward.Send, frames, _ int, outcome forward.DropReason) {
	if outcome == forward.NotDropped {
		r.sent += frames
	} else {
		r.dropped += frames
	}
}
