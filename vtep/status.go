package vtep

import (
	"net/netip"
	"time"

	"github.com/overlayd/overlayd/dataplane/addr"
	"github.com/overlayd/overlayd/dataplane/forward"
	"github.com/overlayd/overlayd/dataplane/mtu"
)

// Feature is one thing that the kernel may or may not be able to do, as found at the start.
type Feature struct {
	Name   string // see FeatureNames
	On     bool
	Reason string // why it is off: turned off by the operator, or the kernel's answer; "" when it is on
}

// Traffic counts wire frames and their bytes: a superframe counts as the segments that it stands for.
// Bytes are those of the inner frames, without frame check sequence.
type Traffic struct {
	Frames uint64
	Bytes  uint64
}

// Counters are those of one network. Always
// TAPIn + UnderlayIn + Created = TAPOut + UnderlayOut + the sum of Drops, in frames.
type Counters struct {
	TAPIn, TAPOut           Traffic
	UnderlayIn, UnderlayOut Traffic
	Created                 uint64 // extra copies of replicated frames and extra segments
	Suppressed              uint64 // ARP and ND requests answered from the table
	MSSClamped              uint64 // SYNs whose MSS was lowered
	ICMPSent                uint64 // errors that told a station what the path carries
	ICMPLimited             uint64 // errors that were not sent, for the rate
	Fragmented              uint64 // IPv4 packets that were cut into fragments
	Resegmented             uint64 // TCP superframes that were cut smaller than asked
	Split                   uint64 // single TCP segments that were cut
	Drops                   [forward.NumReasons]uint64
}

// NetworkStatus is a snapshot of one network.
type NetworkStatus struct {
	Name        string
	VNI         addr.VNI
	Device      string
	MAC         addr.MAC
	Backend     string // "vnet" or "water"
	Queues      int
	MTU         mtu.OverlayMTU
	MTUDerived  bool    // false when the operator fixed it
	MSS         mtu.MSS // fixed by the operator; 0 = as each path leaves
	Addresses   []netip.Prefix
	Peers       []netip.Addr
	Learning    bool
	AllowNested bool
	Isolate     bool
	Sandbox     string       // name of its network namespace; "" when the TAP is an interface of the host
	Gateways    []netip.Addr // of the bridge in the sandbox
	Attachments int
	FDBEntries  int
	Healed      uint64 // entries and settings that were found other than stated, and put right
	Problem     string // what in the kernel is not as stated, and could not be put right so far; "" when all is well
	Counters    Counters
	// What the kernel forwards by itself: how many pairs of stations at present, each direction for itself, and how much of
	// Counters that was.
	Pairs           int
	FastOut, FastIn Traffic
	TAPOverflow     uint64 // frames that the kernel dropped because the TAP's queue was full; never seen by us
}

// FDBEntry is one row of a network's forwarding database.
type FDBEntry struct {
	MAC    addr.MAC
	VTEP   netip.Addr
	Static bool
	Local  bool          // behind this host's own bridge; VTEP is this host then
	Age    time.Duration // since a frame from it was last seen; 0 for a static entry
	IPs    []netip.Addr  // known addresses of a static entry
}

// PeerStatus is one remote VTEP.
type PeerStatus struct {
	Address     netip.Addr // names it
	Remote      netip.Addr // datagrams go there
	Local       netip.Addr // outer source towards it
	Device      string     // underlay device towards it
	UnderlayMTU mtu.UnderlayMTU
	PathMTU     mtu.PathMTU
	Learned     string         // how the path MTU was: LearnedRoute or LearnedProbe
	Overhead    int            // bytes of encapsulation towards it
	OverlayMTU  mtu.OverlayMTU // what fits towards it
	Networks    []string
	Heard       time.Time // when the last datagram came from it; zero if none has
	Problem     string    // why it cannot be reached now (no route); "" when nothing is known against it
	Candidates  []CandidateStatus
}

// DropCount is one reason's sum.
type DropCount struct {
	Network string // "" for datagrams that belong to no network
	Reason  forward.DropReason
	Count   uint64
	Last    time.Time // zero when there is no sample
}

// DropSample holds the first bytes of one dropped frame.
type DropSample struct {
	Seq     uint64 // rises by one a sample; gaps are samples that were overwritten
	Time    time.Time
	Network string // "" as in DropCount
	Reason  forward.DropReason
	Egress  bool       // true: it came from the TAP
	Peer    netip.Addr // the VTEP it came from or was to go to, if known
	Length  int        // bytes of the whole
	Data    []byte     // its first bytes
	Outer   bool       // Data begins with the VXLAN header; otherwise with Ethernet
}

// Status is a snapshot of the VTEP as a whole.
type Status struct {
	Port            uint16
	Addresses       []netip.Addr
	Features        []Feature
	Unattributed    [forward.NumReasons]uint64 // drops of datagrams that belong to no network
	DatagramsIn     uint64                     // UDP datagrams received
	DatagramsOut    uint64                     // UDP datagrams sent
	ReceiveOverflow uint64                     // datagrams that the kernel dropped because our receive buffer was full
}
