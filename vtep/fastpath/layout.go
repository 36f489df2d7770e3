package fastpath

import (
	"encoding/binary"
	"net/netip"

	"github.com/overlayd/overlayd/dataplane/addr"
	"github.com/overlayd/overlayd/dataplane/forward"
	"github.com/overlayd/overlayd/dataplane/header"
)

// What both sides, the programs and this package, must agree on. Numbers are in host byte order but for what is taken
// out of packets as it is.
const (
	maxPairs = 16384 // in each direction
	maxSlots = 2 * maxPairs
	gates    = 4096 // a power of two, in each direction
	maxPorts = 16   // outer source ports; a power of two

	outerLen = header.IPv4MinLen + header.UDPLen + header.VXLANLen
	// encapLen is what a frame grows by: the outer headers behind Ethernet's, and then Ethernet's own once more.
	encapLen = outerLen + header.EthernetLen
)

// LeaveKey names the packets of a pair of stations at a TAP. It is made by Table.Leaving.
type LeaveKey struct {
	Outlet   uint32
	Ethernet [header.EthernetLen]byte // header of the frame
	Pad      [2]byte
	From     [16]byte // source address; IPv4 in the first four bytes
}

// ArriveKey names the packets of a pair of stations in datagrams from one VTEP to one of ours. It is made by
// Table.Arriving.
type ArriveKey struct {
	VNI          [4]byte // as in the VXLAN header: 24 bits and a zero
	Outer, Local [4]byte // outer source and destination
	Ethernet     [header.EthernetLen]byte
	Pad          [2]byte
	From         [16]byte
}

// Pair returns the pair of stations, without addresses if it has none that make sense.
func (k *LeaveKey) Pair() forward.Pair { return pairOf(&k.Ethernet, &k.From) }

// Pair returns the pair of stations.
func (k *ArriveKey) Pair() forward.Pair { return pairOf(&k.Ethernet, &k.From) }

func pairOf(eth *[header.EthernetLen]byte, from *[16]byte) forward.Pair {
	p := forward.Pair{Dst: addr.MAC(eth[0:6]), Src: addr.MAC(eth[6:12])}
	if isIPv4(eth) {
		p.From = netip.AddrFrom4([4]byte(from[:4]))
	} else {
		p.From = netip.AddrFrom16(*from)
	}
	return p
}

func isIPv4(eth *[header.EthernetLen]byte) bool {
	return binary.BigEndian.Uint16(eth[12:]) == header.EtherTypeIPv4
}

// Network returns the VNI.
func (k *ArriveKey) Network() addr.VNI { return addr.VNI(binary.BigEndian.Uint32(k.VNI[:]) >> 8) }

// leaveValue says what becomes of the packets of a LeaveKey.
type leaveValue struct {
	Slot     uint32 // of the counters
	Device   uint32 // index of the underlay device
	MaxIP    uint32 // longest packet, or segment of a superframe, in bytes from the IP header on
	MSS      uint32 // that a SYN may state
	MaxSuper uint32 // longest superframe, in bytes with its Ethernet header; 0 = none
	Sum      uint32 // of the outer IPv4 header's 16-bit words, where length, traffic class and checksum are 0
	Ports    [maxPorts]uint16
	Pad      uint16
	Header   [header.EthernetLen + outerLen]byte // its parts are where 4 divides their place, as the stack has it
	Pad2     uint32
}

// arriveValue says what becomes of the packets of an ArriveKey.
type arriveValue struct {
	Slot   uint32
	Device uint32 // index of the TAP, or of the relay's end on the host
	MaxIP  uint32
	MSS    uint32
	Relay  uint32 // 1: Device is that of a relay
}

// Places of the fields of leaveValue and arriveValue.
const (
	valueSlot, valueDevice, valueMaxIP, valueMSS = 0, 4, 8, 12
	valueMaxSuper, valueSum, valuePorts          = 16, 20, 24
	valueHeader                                  = valuePorts + 2*maxPorts + 2
	valueRelay                                   = 16
)

// counter counts what was forwarded by one entry.
type counter struct {
	Frames, Bytes uint64 // wire frames: a superframe counts as its segments
	Lost          uint64 // frames that could not be wrapped or unwrapped
}

const counterFrames, counterBytes, counterLost = 0, 8, 16

// gate keeps the order of the flows that go through it: see the package comment.
type gate struct {
	slow uint64 // what was left to userspace, by the programs
	done uint64 // and what of that userspace has dealt with
	// When the last UDP packet came, in nanoseconds of the kernel's monotonic clock, and how many came in quick succession.
	last, run uint64
}

const gateSlow, gateDone, gateLast, gateRun = 0, 8, 16, 24
