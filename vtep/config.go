package vtep

import (
	"log/slog"
	"net/netip"
	"time"

	"github.com/overlayd/overlayd/dataplane/addr"
	"github.com/overlayd/overlayd/dataplane/mtu"
)

// Config is what a VTEP is made from. It is checked once, by New.
type Config struct {
	Underlay Underlay
	Networks []Network
	Disable  []string // names of features that are to stay off; see FeatureNames
	Queues   int      // workers, each with queues of its own of each TAP and underlay address; 0 = chosen by the number of CPUs
	// BusyPoll is how long a worker that has nothing to do looks again and again before it sleeps, if it is
	// likely that something comes; at most 10 ms. 0 = it sleeps at once.
	BusyPoll time.Duration
	Log      *slog.Logger // nil = slog.Default()
}

// Underlay says how datagrams travel between hosts.
type Underlay struct {
	Port      uint16         // UDP port of VXLAN, here and at the peers; 0 = 4789
	Addresses []netip.Addr   // local addresses, in order of preference; empty = the sources of the routes to the peers
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

// Network is one VNI on this host. Its TAP is an interface of the host, with addresses of its own, or, with
// Sandbox, the uplink of a bridge in a network namespace of its own, to which containers are attached.
type Network struct {
	Name        string
	VNI         addr.VNI
	Device      string         // name of the TAP; in a sandbox, where it has a default, it need not be stated
	Addresses   []netip.Prefix // given to the TAP; none in a sandbox
	Peers       []netip.Addr   // member VTEPs; BUM frames go to each
	Learning    bool           // learn MAC to VTEP from received frames
	AllowNested bool           // let VXLAN inside VXLAN pass
	MTU         mtu.OverlayMTU // 0 = what the paths to the peers carry
	MSS         mtu.MSS        // that no TCP connection exceeds; 0 = what each path carries
	Mappings    []addr.Mapping // static entries: never learned over, never aged

	Sandbox bool // the TAP lives in a network namespace of its own, on a bridge for containers
	// Isolate drops frames whose source MAC or IP is not registered behind the VTEP, or on this side of the
	// TAP, that they come from: see SetMapping and Attach. In a sandbox the bridge then knows only the stations
	// that are attached.
	Isolate bool
	// Gateways are addresses that the bridge of the sandbox answers for, on every host alike, so that the
	// default route of a container leads somewhere. At most one of each family.
	Gateways []netip.Addr
	// FloodRate is how many broadcast, unknown unicast and multicast frames a second are taken from the TAP to
	// be replicated; 0 = 1000 in a sandbox and no limit otherwise.
	FloodRate int
	// FloodBurst is how many of them may come at once; 0 = twice FloodRate.
	FloodBurst int
}

// Attachment says how a container is to be connected to a network with a sandbox.
type Attachment struct {
	ID        string         // of the endpoint: names it in Detach, and across restarts; up to 64 letters and digits
	Name      string         // for people
	NetNS     string         // network namespace of the container: a name in /run/netns, or a path
	Interface string         // name of the interface in there; "" = the first of eth0, eth1 and so on that is free
	MAC       addr.MAC       // of that interface
	Addresses []netip.Prefix // of that interface
	Gateways  []netip.Addr   // default routes lead there, at most one of each family; each must be on-link by one of Addresses
}

// Attached is an attachment as it is now.
type Attached struct {
	ID, Name  string
	NetNS     string
	Interface string // the name that it has got
	MAC       addr.MAC
	Addresses []netip.Prefix
	Gateways  []netip.Addr
	MTU       mtu.OverlayMTU // of the interface
	Problem   string         // what is not as it was asked for; "" when nothing is known against it
}
