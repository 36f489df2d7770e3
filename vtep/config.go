package vtep

import (
	"log/slog"
	"net/netip"

	"github.com/overlayd/overlayd/dataplane/addr"
	"github.com/overlayd/overlayd/dataplane/mtu"
)

// Config is what a VTEP is made from. It is checked once, by New.
type Config struct {
	Underlay Underlay
	Networks []Network
	Disable  []string     // names of features that are to stay off; see FeatureNames
	Queues   int          // TAP queues a network, and receive sockets an underlay address; 0 = chosen by the number of CPUs
	Log      *slog.Logger // nil = slog.Default()
}

// Underlay says how datagrams travel between hosts.
type Underlay struct {
	Port      uint16         // UDP port of VXLAN, here and at the peers; 0 = 4789
	Addresses []netip.Addr   // local addresses, at most one of each family; empty = the source of the route to the peers
	TTL       int            // TTL or hop limit of datagrams; 0 = 64
	Checksum  ChecksumPolicy // of the outer UDP header
}

// ChecksumPolicy says whether outgoing datagrams carry an outer UDP checksum. Incoming ones are taken
// either way (RFC 7348, section 5), unless they carry a wrong one.
type ChecksumPolicy uint8

const (
	ChecksumAuto ChecksumPolicy = iota // on: receive offload needs it
	ChecksumOn
	ChecksumOff // IPv4 only; over IPv6 the checksum is always there (RFC 8200, section 8.1)
)

// Network is one VNI on this host.
type Network struct {
	Name        string
	VNI         addr.VNI
	Device      string         // name of the TAP
	Addresses   []netip.Prefix // given to the TAP
	Peers       []netip.Addr   // member VTEPs; BUM frames go to each
	Learning    bool           // learn MAC to VTEP from received frames
	AllowNested bool           // let VXLAN inside VXLAN pass
	MTU         mtu.OverlayMTU // 0 = derived from the underlay
	Mappings    []addr.Mapping // static entries: never learned over, never aged
}
