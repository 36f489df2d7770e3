package forward

import (
	"slices"
	"sync/atomic"

	"github.com/overlayd/overlayd/dataplane/addr"
	"github.com/overlayd/overlayd/dataplane/fdb"
	"github.com/overlayd/overlayd/dataplane/gro"
	"github.com/overlayd/overlayd/dataplane/mtu"
)

// Network is the forwarding state of one VNI. The exported fields are set before AddNetwork and stay as they
// are; the tables that they point to change at any time.
type Network struct {
	Name        string
	VNI         addr.VNI
	Learning    bool     // learn MAC to VTEP from received frames
	Isolate     bool     // every address is registered, and no frame may claim another; see isolate.go. Nothing is learned
	AllowNested bool     // let VXLAN inside VXLAN pass
	TAP         Offload  // what the TAP takes
	LocalMAC    addr.MAC // of the TAP: no frame from the underlay may bear it as its source
	GatewayMAC  addr.MAC // of the gateway that each host has for its own containers; zero = none. Isolated networks only
	FDB         *fdb.Table
	Neighbors   *fdb.Neighbors
	Counters    *Counters
	Limit       *Limiter // of the frames from the TAP that are flooded; nil: none

	// Changed, if it is not nil, is called after SetMembers, SetMTU and SetMSS have published something different, by
	// whoever called them.
	Changed func()

	members atomic.Pointer[members]
	mtu     atomic.Int64 // overlay MTU of the TAP
	mss     atomic.Int64 // of every SYN; 0: as the path leaves
	errors  bucket       // of the ICMP errors to its stations
}

// What bounds the ICMP errors of one network: a thousand a second, and a hundred at once. A station needs one for each
// address that it talks to; the rest only tells it again (RFC 1812, section 4.3.2.8; RFC 4443, section 2.4(f)).
const (
	errorInterval = int64(1e9 / 1000)
	errorDepth    = 100 * errorInterval
)

// Offload says what a TAP does for those who write to it.
type Offload struct {
	Checksum bool      // takes frames with partial checksums
	Super    gro.Kinds // takes superframes of these kinds
}

// members is the flood list of a network, and who may send to it.
type members struct {
	list []fdb.VTEPID
	has  []bool // indexed by VTEPID
}

// SetMembers publishes the VTEPs that take part in n: broadcast, unknown unicast and multicast frames go
// to each, and only from them frames are accepted. fdb.Local is passed over.
func (n *Network) SetMembers(ids []fdb.VTEPID) {
	m := &members{list: slices.DeleteFunc(slices.Clone(ids), func(id fdb.VTEPID) bool { return id == fdb.Local })}
	for _, id := range m.list {
		if int(id) >= len(m.has) {
			m.has = append(m.has, make([]bool, int(id)+1-len(m.has))...)
		}
		m.has[id] = true
	}
	if was := n.members.Swap(m); was == nil || !slices.Equal(was.list, m.list) {
		n.changed()
	}
}

func (n *Network) changed() {
	if n.Changed != nil {
		n.Changed()
	}
}

func (n *Network) flood() []fdb.VTEPID {
	if m := n.members.Load(); m != nil {
		return m.list
	}
	return nil
}

func (n *Network) isMember(id fdb.VTEPID) bool {
	m := n.members.Load()
	return m != nil && int(id) < len(m.has) && m.has[id]
}

// SetMTU publishes the overlay MTU: the inner IP MTU of n's TAP.
func (n *Network) SetMTU(m mtu.OverlayMTU) {
	if n.mtu.Swap(int64(m)) != int64(m) {
		n.changed()
	}
}

// MTU returns what SetMTU published.
func (n *Network) MTU() mtu.OverlayMTU { return mtu.OverlayMTU(n.mtu.Load()) }

// SetMSS publishes the MSS that no SYN of the network exceeds, even where the path would carry more. 0 leaves it to the
// paths alone. A fixed MSS never makes up for a path that carries less.
func (n *Network) SetMSS(m mtu.MSS) {
	if n.mss.Swap(int64(m)) != int64(m) {
		n.changed()
	}
}

// MSS returns what SetMSS published.
func (n *Network) MSS() mtu.MSS { return mtu.MSS(n.mss.Load()) }
