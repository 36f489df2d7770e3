package interop

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/gopacket/layers"

	"github.com/overlayd/overlayd/bench/capture"
	"github.com/overlayd/overlayd/bench/lab"
	"github.com/overlayd/overlayd/dataplane/addr"
	"github.com/overlayd/overlayd/dataplane/frametest"
	"github.com/overlayd/overlayd/dataplane/header"
	"github.com/overlayd/overlayd/dataplane/mtu"
	"github.com/overlayd/overlayd/dataplane/probe"
)

// Terms. A packet is what crosses a link between a host and the router. It carries a datagram, or it is a
// train of several that the link's other end will cut apart (UDP GSO), or a superframe: a datagram whose
// inner TCP segment will be cut (tunnel GSO, which the kernel's vxlan device does). A packet is finished when
// nothing is left to do to it: it is one datagram and all its checksums are there.

// wire looks at every packet that a host sends on its link.
type wire struct {
	senders  map[netip.Addr]sender
	finished bool // the links have no offloads, so every packet must be finished
	captures []*capture.Capture

	mu     sync.Mutex
	faults []string // the first ones
	count  int      // of all faults
	seen   sightings
	ports  map[flow]uint16 // outer source port
}

// sender is what is known of a host that sends VXLAN.
type sender struct {
	kind     lab.Kind
	mtu      int  // of its link
	entropy  bool // source ports from a pool
	checksum bool // of the outer UDP header
	fast     bool // what the kernel sends by itself has none
	probes   bool // sends path probes
}

// sightings counts what went by, so that a test can tell whether it tested what it says.
type sightings struct {
	datagrams   int
	trains      map[netip.Addr]int // packets, by sender
	superframes map[netip.Addr]int
	unfinished  map[netip.Addr]int // packets with a partial checksum
	inner       map[string]int     // frames by kind, such as arp
	ecn         [4]int             // datagrams by outer ECN field
	missed      uint64
}

// flow is an inner flow as its sender sees it.
type flow struct {
	sender   netip.Addr
	protocol uint8
	src, dst string
	ports    [2]uint16
}

// fastPath reports whether the kernel may send by itself.
func fastPath(s *lab.OverlaydSettings) bool {
	return s.Checksum != "on" && !slices.ContainsFunc([]string{"fast-path", "tap-vnet", "tap-tso", "tap-uso"}, func(f string) bool {
		return slices.Contains(s.Disable, f)
	})
}

// watch starts to look at the links of all hosts. finished says that their offloads are off.
func watch(t *testing.T, l *lab.Lab, finished bool) *wire {
	t.Helper()
	w := newWire(finished)
	for _, h := range l.Hosts() {
		spec := h.Spec()
		s := sender{
			kind: h.Kind(network), mtu: int(spec.MTU),
			entropy:  !slices.Contains(spec.Overlayd.Disable, "source-port-entropy"),
			checksum: spec.Overlayd.Checksum != "off" || underlay(h).Is6(),
			fast:     fastPath(&spec.Overlayd) && underlay(h).Is4(),
			probes:   h.Kind(network) == lab.Overlayd && !slices.Contains(spec.Overlayd.Disable, "path-probes"),
		}
		w.senders[underlay(h)] = s
	}
	for _, h := range l.Hosts() {
		c, err := capture.Open(l.Router(), h.Name(), capture.Received, w.packet)
		if err != nil {
			w.stop()
			t.Fatal(err)
		}
		w.captures = append(w.captures, c)
	}
	t.Cleanup(func() { w.stop() }) // the second time it does nothing
	return w
}

func newWire(finished bool) *wire {
	return &wire{
		senders: map[netip.Addr]sender{}, finished: finished, ports: map[flow]uint16{},
		seen: sightings{
			trains: map[netip.Addr]int{}, superframes: map[netip.Addr]int{},
			unfinished: map[netip.Addr]int{}, inner: map[string]int{},
		},
	}
}

// stop ends the captures.
func (w *wire) stop() error {
	var errs []error
	for _, c := range w.captures {
		errs = append(errs, c.Stop())
	}
	return errors.Join(errs...)
}

// end stops to look and fails the test if anything was wrong.
func (w *wire) end(t *testing.T) sightings {
	t.Helper()
	if err := w.stop(); err != nil {
		t.Error(err)
	}
	for _, c := range w.captures {
		w.seen.missed += c.Stats().Missed
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, f := range w.faults {
		t.Errorf("on the wire: %s", f)
	}
	if w.count > len(w.faults) {
		t.Errorf("on the wire: %d more faults", w.count-len(w.faults))
	}
	t.Logf("on the wire: %d datagrams, %v, packets: %d trains, %d superframes, %d unfinished; %d not looked at",
		w.seen.datagrams, w.seen.inner, total(w.seen.trains), total(w.seen.superframes), total(w.seen.unfinished), w.seen.missed)
	return w.seen
}

// so far is what has gone by until now.
func (w *wire) soFar(kind string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.seen.inner[kind]
}

func total(by map[netip.Addr]int) int {
	n := 0
	for _, v := range by {
		n += v
	}
	return n
}

// packet is the handler of the captures.
func (w *wire) packet(p *capture.Packet) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.check(p); err != nil {
		if w.count++; w.count <= 5 {
			w.faults = append(w.faults, fmt.Sprintf("%v; offload %+v, the first of %d bytes:\n%s",
				err, p.Offload, len(p.Data), hex.Dump(p.Data[:min(len(p.Data), 160)])))
		}
	}
}

// check looks at one packet. It finishes a partial checksum in place, as the hardware would: the result is
// right only if what was there before was right.
func (w *wire) check(p *capture.Packet) error {
	o := p.Offload
	if w.finished && (o.Flags&header.VirtioFlagNeedsCsum != 0 || o.GSOType != header.GSONone) {
		return errors.New("unfinished, though the link has no offloads")
	}
	if o.Flags&header.VirtioFlagNeedsCsum != 0 {
		if err := finish(p.Data, int(o.CsumStart), int(o.CsumOffset)); err != nil {
			return err
		}
	}
	if isSuperframe(&o) {
		// The outer checksum will differ from segment to segment, so there is just the pseudo-header's sum, or 0 for
		// none.
		start := header.EthernetLen + header.IPv4MinLen
		if binary.BigEndian.Uint16(p.Data[12:]) == header.EtherTypeIPv6 {
			start = header.EthernetLen + header.IPv6Len
		}
		if at := start + header.UDPChecksumOffset; len(p.Data) < at+2 || binary.BigEndian.Uint16(p.Data[at:]) != 0 {
			if err := finish(p.Data, start, header.UDPChecksumOffset); err != nil {
				return err
			}
		}
	}
	outer, err := frametest.Verify(p.Data)
	if err != nil {
		return fmt.Errorf("outer: %w", err)
	}
	if outer.Fragment {
		return errors.New("outer: a fragment, and VXLAN must not be fragmented (RFC 7348, section 4.3)")
	}
	if outer.UDP == nil || uint16(outer.UDP.DstPort) != header.VXLANPort {
		if outer.UDP != nil {
			return fmt.Errorf("outer: UDP to port %d, which nobody here speaks", outer.UDP.DstPort)
		}
		return nil // neighbour discovery and the like of the underlay
	}
	src, s, err := w.outer(outer)
	if err != nil {
		return fmt.Errorf("outer: %w", err)
	}
	if o.Flags&header.VirtioFlagNeedsCsum != 0 {
		w.seen.unfinished[src]++
	}
	return w.datagrams(p, outer, src, s)
}

// outer checks the headers below VXLAN and returns who sent them.
func (w *wire) outer(p *frametest.Packet) (netip.Addr, sender, error) {
	var src, dst netip.Addr
	var tos, ttl uint8
	var df bool
	if p.IPv4 != nil {
		src, _ = netip.AddrFromSlice(p.IPv4.SrcIP.To4())
		dst, _ = netip.AddrFromSlice(p.IPv4.DstIP.To4())
		tos, ttl, df = p.IPv4.TOS, p.IPv4.TTL, p.IPv4.Flags == layers.IPv4DontFragment
		if len(p.IPv4.Options) > 0 {
			return src, sender{}, fmt.Errorf("IPv4 options %v", p.IPv4.Options)
		}
	} else {
		src, _ = netip.AddrFromSlice(p.IPv6.SrcIP)
		dst, _ = netip.AddrFromSlice(p.IPv6.DstIP)
		tos, ttl, df = p.IPv6.TrafficClass, p.IPv6.HopLimit, true // routers do not fragment IPv6
		if len(p.Extensions) > 0 {
			return src, sender{}, fmt.Errorf("IPv6 extension headers %v", p.Extensions)
		}
	}
	s, known := w.senders[src]
	_, toHost := w.senders[dst]
	switch {
	case !known || !toHost || src == dst:
		return src, s, fmt.Errorf("from %v to %v, which are not two of the hosts", src, dst)
	case s.kind != lab.Overlayd: // the kernel has its own ways with what follows
		return src, s, nil
	case !df:
		return src, s, errors.New("DF is not set")
	case ttl != 64:
		return src, s, fmt.Errorf("TTL %d, want 64", ttl)
	case tos&^header.ECNMask != 0:
		return src, s, fmt.Errorf("traffic class %#02x has more than ECN in it", tos)
	case s.checksum != (p.UDP.Checksum != 0) && !(s.fast && p.UDP.Checksum == 0):
		return src, s, fmt.Errorf("UDP checksum %#04x", p.UDP.Checksum)
	case s.entropy && p.UDP.SrcPort < 49152:
		return src, s, fmt.Errorf("source port %d is not in the dynamic range (RFC 7348, section 5)", p.UDP.SrcPort)
	case !s.entropy && uint16(p.UDP.SrcPort) != header.VXLANPort:
		return src, s, fmt.Errorf("source port %d without entropy, want that of VXLAN", p.UDP.SrcPort)
	}
	w.seen.ecn[tos&header.ECNMask]++
	return src, s, nil
}

// datagrams cuts a train apart and checks each datagram, and the size that packets will have in the end.
func (w *wire) datagrams(p *capture.Packet, outer *frametest.Packet, src netip.Addr, s sender) error {
	o, payload := p.Offload, outer.Payload
	below := len(p.Data) - header.EthernetLen - len(payload) // outer IP and UDP headers
	switch o.GSOType &^ header.GSOECN {
	case header.GSONone:
		if below+len(payload) > s.mtu {
			return fmt.Errorf("IP packet of %d bytes on a link of %d", below+len(payload), s.mtu)
		}
		return w.datagram(payload, outer, src, s, 0)
	case header.GSOUDPL4:
		size := int(o.GSOSize)
		if size == 0 || below+size > s.mtu {
			return fmt.Errorf("train whose IP packets have %d bytes, on a link of %d", below+size, s.mtu)
		}
		w.seen.trains[src]++
		for len(payload) > 0 {
			n := min(size, len(payload))
			if err := w.datagram(payload[:n], outer, src, s, 0); err != nil {
				return fmt.Errorf("in a train of %d with %d to go: %w", size, len(payload), err)
			}
			payload = payload[n:]
		}
		return nil
	case header.GSOTCPv4, header.GSOTCPv6:
		w.seen.superframes[src]++
		return w.datagram(payload, outer, src, s, int(o.GSOSize))
	}
	return fmt.Errorf("a superframe of an unknown kind, %#x", o.GSOType)
}

// datagram checks VXLAN and the frame inside. segment is the payload of each segment of a superframe, or 0.
func (w *wire) datagram(b []byte, outer *frametest.Packet, src netip.Addr, s sender, segment int) error {
	if probe.Is(b) {
		return w.probe(b, outer, s)
	}
	got, frame, err := frametest.Datagram(b)
	if err != nil {
		return err
	}
	if got != vni {
		return fmt.Errorf("VNI %v, want %d", got, vni)
	}
	in, err := frametest.Verify(frame)
	if err != nil {
		return fmt.Errorf("inner: %w", err)
	}
	w.seen.datagrams++
	family := mtu.IPv4
	if outer.IPv6 != nil {
		family = mtu.IPv6
	}
	if segment > 0 {
		if in.TCP == nil {
			return errors.New("a superframe, and no TCP in it")
		}
		headers := len(frame) - len(in.Payload)
		if size := headers - header.EthernetLen + mtu.Overhead(family, 0) + segment; size > s.mtu {
			return fmt.Errorf("superframe whose IP packets have %d bytes, on a link of %d", size, s.mtu)
		}
	}
	w.seen.inner[kindOf(in)]++
	if s.kind != lab.Overlayd {
		return nil
	}
	if outerECN, innerECN := ecnOf(outer), ecnOf(in); outerECN != innerECN {
		return fmt.Errorf("outer ECN %d, inner %d (RFC 6040, section 4.1: a copy)", outerECN, innerECN)
	}
	f := flowOf(src, in)
	if port, known := w.ports[f]; known && port != uint16(outer.UDP.SrcPort) {
		return fmt.Errorf("outer source port %d, and %d before for the same flow %+v", outer.UDP.SrcPort, port, f)
	}
	w.ports[f] = uint16(outer.UDP.SrcPort)
	return nil
}

// probe checks a path probe or an acknowledgement. Without a cluster there are no keys but the public one.
func (w *wire) probe(b []byte, outer *frametest.Packet, s sender) error {
	m, err := probe.Keys{}.Parse(b)
	switch {
	case err != nil:
		return err
	case !s.probes:
		return errors.New("a path probe from a host that sends none")
	}
	family := mtu.IPv4
	if outer.IPv6 != nil {
		family = mtu.IPv6
	}
	// What the datagram would take of a packet if it were a frame with its VXLAN header.
	if size := mtu.Overhead(family, 0) - header.EthernetLen - header.VXLANLen + len(b); m.Type == probe.Probe && m.Size != size {
		return fmt.Errorf("a path probe that says %d in an IP packet of %d bytes", m.Size, size)
	}
	w.seen.inner["path-probe"]++
	return nil
}

// isSuperframe reports whether inner TCP is to be cut.
func isSuperframe(o *header.VirtioNet) bool {
	t := o.GSOType &^ header.GSOECN
	return t == header.GSOTCPv4 || t == header.GSOTCPv6
}

// finish completes the checksum at offset from start, plainly: the sum of everything from start on (RFC 1071).
func finish(b []byte, start, offset int) error {
	if start < header.EthernetLen || start+offset+2 > len(b) {
		return fmt.Errorf("a checksum to be completed from %d at %d, in %d bytes", start, start+offset, len(b))
	}
	sum := uint32(0)
	for i := start; i < len(b); i += 2 {
		word := uint32(b[i]) << 8
		if i+1 < len(b) {
			word |= uint32(b[i+1])
		}
		if sum += word; sum > 0xffff {
			sum -= 0xffff
		}
	}
	if sum == 0xffff { // 0 would say that there is none (RFC 768)
		sum = 0
	}
	binary.BigEndian.PutUint16(b[start+offset:], ^uint16(sum))
	return nil
}

func ecnOf(p *frametest.Packet) uint8 {
	switch {
	case p.IPv4 != nil:
		return p.IPv4.TOS & header.ECNMask
	case p.IPv6 != nil:
		return p.IPv6.TrafficClass & header.ECNMask
	}
	return header.ECNNotECT
}

func flowOf(src netip.Addr, p *frametest.Packet) flow {
	f := flow{sender: src}
	switch {
	case p.IPv4 != nil:
		f.protocol, f.src, f.dst = uint8(p.IPv4.Protocol), p.IPv4.SrcIP.String(), p.IPv4.DstIP.String()
	case p.IPv6 != nil:
		f.protocol, f.src, f.dst = uint8(p.IPv6.NextHeader), p.IPv6.SrcIP.String(), p.IPv6.DstIP.String()
	default:
		f.src, f.dst = p.Ethernet.SrcMAC.String(), p.Ethernet.DstMAC.String()
	}
	switch { // nil in fragments, whose ports are not in each
	case p.TCP != nil:
		f.ports = [2]uint16{uint16(p.TCP.SrcPort), uint16(p.TCP.DstPort)}
	case p.UDP != nil:
		f.ports = [2]uint16{uint16(p.UDP.SrcPort), uint16(p.UDP.DstPort)}
	}
	return f
}

// kindOf names a frame by what tests wait for.
func kindOf(p *frametest.Packet) string {
	var kind string
	switch {
	case p.ARP != nil && p.ARP.Operation == header.ARPRequest:
		kind = "arp-request"
	case p.ARP != nil:
		kind = "arp-reply"
	case p.Fragment:
		kind = "fragment"
	case p.TCP != nil:
		kind = "tcp"
	case p.UDP != nil:
		kind = "udp"
	case p.ICMP != nil:
		kind = "icmp"
	case p.ICMPv6 != nil:
		switch p.ICMPv6.TypeCode.Type() {
		case layers.ICMPv6TypeNeighborSolicitation:
			kind = "nd-solicitation"
		case layers.ICMPv6TypeNeighborAdvertisement:
			kind = "nd-advertisement"
		default:
			kind = "icmp"
		}
	default:
		kind = "other"
	}
	if dst := addr.MAC(p.Ethernet.DstMAC); kind == "udp" && dst == addr.Broadcast {
		kind = "broadcast"
	} else if kind == "udp" && dst.IsMulticast() {
		kind = "multicast"
	}
	if p.IPv6 != nil && !strings.HasPrefix(kind, "nd-") {
		kind += "6"
	}
	return kind
}
