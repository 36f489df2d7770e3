package fastpath

import (
	"encoding/binary"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"sync/atomic"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/google/gopacket/layers"
	"go.uber.org/goleak"

	"github.com/overlayd/overlayd/dataplane/addr"
	"github.com/overlayd/overlayd/dataplane/checksum"
	"github.com/overlayd/overlayd/dataplane/frametest"
	"github.com/overlayd/overlayd/dataplane/header"
	"github.com/overlayd/overlayd/vtep/link/linktest"
)

const (
	port   = 4789
	vni    = addr.VNI(0x123456)
	ttl    = 63
	source = 50000
	outlet = 7

	// encapsulated is where the inner frame is in a wrapped one.
	encapsulated = header.EthernetLen + outerLen
)

var (
	here4, there4 = netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	elsewhere4    = netip.MustParseAddr("203.0.113.1")
)

func TestMain(m *testing.M) {
	if os.Getenv(actEnv) != "" {
		act()
		return
	}
	goleak.VerifyTestMain(m)
}

// newTable opens a table that ends with the test.
func newTable(t testing.TB) *Table {
	t.Helper()
	table, err := Open(port)
	if err != nil {
		if os.Getenv("CI") != "true" {
			t.Skipf("needs root and a kernel that can: %v", err)
		}
		t.Fatal(err)
	}
	t.Cleanup(func() { linktest.Must(t, table.Close()) })
	return table
}

// rig is a table, and its programs, which run on packets that are on no device.
type rig struct {
	*Table
	t             failer
	wrap, unwrap  *ebpf.Program
	left, arrived [gates]uint64 // what the gates had counted when news last looked
}

// failer is the test that uses a rig, or a run of a property of it.
type failer interface {
	Helper()
	Fatalf(format string, args ...any)
}

func newRig(t testing.TB) *rig {
	t.Helper()
	r := &rig{Table: newTable(t), t: t}
	for prog, p := range map[**ebpf.Program]*program{&r.wrap: r.leaving(outlet, 0), &r.unwrap: r.arriving()} {
		loaded, err := p.load("test")
		linktest.Must(t, err)
		t.Cleanup(func() { loaded.Close() })
		*prog = loaded
	}
	linktest.Must(t, r.SetLocals([]netip.Addr{here4}))
	return r
}

// outcome is what a program made of a packet.
type outcome struct {
	verdict int32
	packet  []byte
	slow    map[uint32]uint64 // what the gates counted, by their numbers
}

// leaves runs the program of a TAP on a frame, or superframe, if gsoSize is not 0.
func (r *rig) leaves(frame []byte, gsoSize int) outcome {
	r.t.Helper()
	return r.run(r.wrap, frame, gsoSize, &r.leaveGates, &r.left)
}

// arrives is the same for the program of an underlay device.
func (r *rig) arrives(packet []byte, gsoSize int) outcome {
	r.t.Helper()
	return r.run(r.unwrap, packet, gsoSize, &r.arriveGates, &r.arrived)
}

func (r *rig) run(prog *ebpf.Program, packet []byte, gsoSize int, g *gateways, was *[gates]uint64) outcome {
	r.t.Helper()
	skb := make([]byte, 192) // struct __sk_buff
	binary.NativeEndian.PutUint32(skb[skbGSOSize:], uint32(gsoSize))
	run := ebpf.RunOptions{Data: packet, DataOut: make([]byte, len(packet)+2*encapLen), Context: skb}
	verdict, err := prog.Run(&run)
	if err != nil {
		r.t.Fatalf("running a program on %x: %v", packet, err)
	}
	return outcome{verdict: int32(verdict), packet: run.DataOut, slow: news(g, was)}
}

// news returns what the gates have counted since it last looked.
func news(g *gateways, was *[gates]uint64) map[uint32]uint64 {
	m := map[uint32]uint64{}
	for i := range g.all {
		if n := atomic.LoadUint64(&g.all[i].slow); n != was[i] {
			m[uint32(i)], was[i] = n-was[i], n
		}
	}
	return m
}

// closed returns the number of a gate that is closed, if there is one.
func closed(g *gateways) (int, bool) {
	for i := range g.all {
		if atomic.LoadUint64(&g.all[i].slow) != atomic.LoadUint64(&g.all[i].done) {
			return i, true
		}
	}
	return 0, false
}

// reopen opens all gates, and forgets of bursts.
func (r *rig) reopen() {
	for _, g := range []*gateways{&r.leaveGates, &r.arriveGates} {
		for i := range g.all {
			atomic.StoreUint64(&g.all[i].done, atomic.LoadUint64(&g.all[i].slow))
			atomic.StoreUint64(&g.all[i].run, 0)
		}
	}
}

// way is the way of all entries of tests that care for none.
func way() *Way {
	return &Way{Device: 1, Local: here4, Peer: there4, VNI: vni, TTL: ttl, Sources: []uint16{source}, MaxSuper: MaxSuper(65535)}
}

// roomy admits all frames of 1500 bytes behind their Ethernet header.
var roomy = Limit{MaxFrame: 1500 + header.EthernetLen, MSS: 1400}

// keep adds an entry for the frames that have the Ethernet header of frame, and this source address. It returns
// the place of its counters.
func (r *rig) keep(frame []byte, from netip.Addr, w *Way, l Limit) Slot {
	r.t.Helper()
	k := LeaveKey{Outlet: outlet}
	copy(k.Ethernet[:], frame)
	copy(k.From[:], from.AsSlice())
	s := r.slot()
	r.must(r.SetLeave(k, s, w, l))
	return s
}

// await is keep for frames that come wrapped, from there4 to here4.
func (r *rig) await(frame []byte, from netip.Addr, l Limit) Slot {
	r.t.Helper()
	k := ArriveKey{VNI: [4]byte{0x12, 0x34, 0x56}, Outer: there4.As4(), Local: here4.As4()}
	copy(k.Ethernet[:], frame)
	copy(k.From[:], from.AsSlice())
	s := r.slot()
	r.must(r.SetArrive(k, s, Target{Device: 1}, l))
	return s
}

func (r *rig) slot() Slot {
	r.t.Helper()
	s, err := r.NewSlot()
	r.must(err)
	return s
}

func (r *rig) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatalf("%v", err)
	}
}

// carry returns the packet in which a VTEP sends a frame from there4 to here4, by an encoder that is not ours.
func carry(frame []byte, edit ...func(*layers.IPv4)) []byte {
	return carryData(append([]byte{header.VXLANFlagVNI, 0, 0, 0, 0x12, 0x34, 0x56, 0}, frame...), source, edit...)
}

// carryData returns a datagram with this payload, to the VXLAN port. The loopback device, which programs run on if there is
// none, has only zeros for its MAC address.
func carryData(payload []byte, from uint16, edit ...func(*layers.IPv4)) []byte {
	edit = append([]func(*layers.IPv4){func(l *layers.IPv4) { l.Id = 0 }}, edit...)
	return frametest.Ethernet(addr.MAC{}, frametest.MAC(9)).IPv4(there4, here4, edit...).UDP(from, port).Data(payload).Bytes()
}

// sample is a frame that tests begin with.
type sample struct {
	name  string
	frame []byte
	from  netip.Addr
}

// plain returns one frame of each kind that may take the fast path.
func plain(o frametest.Opts) []sample {
	six, reply4, reply6 := frametest.IP6(1), frametest.Ping4(o).Bytes(), frametest.Ping6(o).Bytes()
	// The type of the message is half of a word that its checksum covers.
	at4, at6 := header.EthernetLen+header.IPv4MinLen, header.EthernetLen+header.IPv6Len
	reply4[at4] = header.ICMPEchoReply
	binary.BigEndian.PutUint16(reply4[at4+2:], checksum.Update(binary.BigEndian.Uint16(reply4[at4+2:]), uint16(header.ICMPEcho)<<8, uint16(header.ICMPEchoReply)<<8))
	reply6[at6] = header.ICMPv6EchoReply
	binary.BigEndian.PutUint16(reply6[at6+2:], checksum.Update(binary.BigEndian.Uint16(reply6[at6+2:]), uint16(header.ICMPv6Echo)<<8, uint16(header.ICMPv6EchoReply)<<8))
	return []sample{
		{"TCP, IPv4", frametest.TCP4(o).Bytes(), frametest.IP4(1)},
		{"UDP, IPv4", frametest.UDP4(o).Bytes(), frametest.IP4(1)},
		{"ping, IPv4", frametest.Ping4(o).Bytes(), frametest.IP4(1)},
		{"its answer, IPv4", reply4, frametest.IP4(1)},
		{"TCP, IPv6", frametest.TCP6(o).Bytes(), six},
		{"UDP, IPv6", frametest.UDP6(o).Bytes(), six},
		{"ping, IPv6", frametest.Ping6(o).Bytes(), six},
		{"its answer, IPv6", reply6, six},
	}
}

// same reports how got and want differ.
func same(got, want []byte) error {
	if len(got) != len(want) {
		return fmt.Errorf("%d bytes, want %d", len(got), len(want))
	}
	for i := range got {
		if got[i] != want[i] {
			return fmt.Errorf("byte %d is %#02x, want %#02x", i, got[i], want[i])
		}
	}
	return nil
}

// untouched fails the test unless the packet was left to userspace as it was, and counted there as count says.
func (o *outcome) untouched(packet []byte, slow map[uint32]uint64) error {
	if o.verdict != next {
		return fmt.Errorf("verdict %d, want %d", o.verdict, next)
	}
	if err := same(o.packet, packet); err != nil {
		return fmt.Errorf("changed: %w", err)
	}
	if !maps.Equal(o.slow, slow) {
		return fmt.Errorf("the gates counted %v, want %v", o.slow, slow)
	}
	return nil
}

// sent returns an error unless the packet was changed to that one and sent on, uncounted at the gates.
func (o *outcome) sent(packet []byte) error {
	if o.verdict != redirected {
		return fmt.Errorf("verdict %d, want %d", o.verdict, redirected)
	}
	if len(o.slow) != 0 {
		return fmt.Errorf("the gates counted %v", o.slow)
	}
	if packet == nil {
		return nil
	}
	return same(o.packet, packet)
}
