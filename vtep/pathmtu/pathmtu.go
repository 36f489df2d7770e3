package pathmtu

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	"github.com/overlayd/overlayd/dataplane/mtu"
)

// ErrTooLarge is what Config.Send returns, wrapped or not, for a datagram that is larger than the device
// takes. unix.EMSGSIZE counts as it.
var ErrTooLarge = errors.New("datagram larger than the device takes")

// Config is what a Prober needs from its surroundings. The functions are called by the goroutine of Run alone,
// one at a time and without a lock of the Prober held.
type Config struct {
	// Send sends a UDP datagram from the VXLAN port of local to that of remote, with DF set and never cut by the
	// host, whatever the host believes of the path. The payload is borrowed until Send returns. It must not block.
	Send func(local, remote netip.Addr, payload []byte) error
	// Route says how datagrams to remote leave the host. An error says that they cannot now.
	Route func(remote netip.Addr) (Route, error)
	// Traffic returns how many datagrams were sent to the peer so far; probes do not count.
	Traffic func(peer netip.Addr) uint64
	// Changed is told whenever what is to be used for a peer has changed, and once for each new peer. A peer
	// that is taken away is not told.
	Changed func(Choice)
	Log     *slog.Logger     // nil = slog.Default
	Now     func() time.Time // nil = time.Now
}

// validate checks a Config and fills in what may be left out.
func (c *Config) validate() error {
	for name, missing := range map[string]bool{
		"Send": c.Send == nil, "Route": c.Route == nil, "Traffic": c.Traffic == nil, "Changed": c.Changed == nil,
	} {
		if missing {
			return fmt.Errorf("path prober: Config.%s is nil: give it a function", name)
		}
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	return nil
}

// Route is the way on which the host sends to an address.
type Route struct {
	Local  netip.Addr // source address of what is sent
	Device string     // name of the interface
	MTU    mtu.UnderlayMTU
}

// Peer is a remote VTEP.
type Peer struct {
	Address    netip.Addr   // its name
	Candidates []netip.Addr // where it may be reached, the preferred first; Address is added last if it is not among them
}

// Learned says from where a path MTU is known.
type Learned uint8

// Where a path MTU is known from.
const (
	LearnedRoute Learned = iota // the MTU of the route: nobody has answered a probe
	LearnedProbe                // proven by acknowledged probes
)

func (l Learned) String() string {
	if l == LearnedProbe {
		return "probe"
	}
	return "route"
}

// Origin says from where an address of a peer is known.
type Origin uint8

// Where an address is known from.
const (
	OriginStated   Origin = iota // it is among Peer.Candidates
	OriginObserved               // an authenticated probe of the peer came from it
)

func (o Origin) String() string {
	if o == OriginObserved {
		return "observed"
	}
	return "stated"
}

// State says what is known of a candidate.
type State uint8

// The states of a candidate.
const (
	StateUnanswered State = iota // it has never acknowledged a probe
	StateReachable
	StateLost    // it did once, and no longer does
	StateNoRoute // the host has no route to it
)

func (s State) String() string {
	switch s {
	case StateUnanswered:
		return "unanswered"
	case StateReachable:
		return "reachable"
	case StateLost:
		return "lost"
	case StateNoRoute:
		return "no route"
	default:
		return fmt.Sprintf("State(%d)", uint8(s))
	}
}

// Choice is what is to be used for a peer.
type Choice struct {
	Peer     netip.Addr // its name
	Remote   netip.Addr // datagrams go there
	Local    netip.Addr // and come from here; invalid without a route
	Device   string     // the interface
	Underlay mtu.UnderlayMTU
	Path     mtu.PathMTU // 0 if there was no route so far
	Settled  bool        // Path is no longer searched for: it is exact, or nobody answers
	Learned  Learned
	State    State        // of Remote
	Accept   []netip.Addr // all sources from which datagrams of this peer are to be taken; not to be changed
}

// PeerStatus is what is known of a peer.
type PeerStatus struct {
	Choice
	Since      time.Time // when Remote was chosen
	LearnedAt  time.Time // when Path was found out, or confirmed for the last time
	BlackHoles uint64    // how often a path that had been proven was found to have become narrower
	Moves      uint64    // how often another candidate was chosen after the first
	Candidates []CandidateStatus
}

// CandidateStatus is what is known of one address of a peer.
type CandidateStatus struct {
	Remote  netip.Addr
	Local   netip.Addr // invalid without a route
	Device  string
	Origin  Origin
	State   State
	Chosen  bool
	RTT     time.Duration // the least of the last few measured; 0 = not known
	Path    mtu.PathMTU
	Settled bool
	SeenAs  netip.Addr // the address from which the peer sees our probes come; invalid = not known
	Why     string     // why it is not chosen, or, of the one that is, what is wrong with it; may be empty
}

// Ignore is a reason for which something that arrived was left unheeded.
type Ignore uint8

// Reasons to ignore probes and acknowledgements.
const (
	IgnoreMalformed   Ignore = iota // no whole message
	IgnoreUnknownKey                // sealed with a key that is not known here
	IgnoreBadTag                    // its seal is broken
	IgnoreStranger                  // without keys, anything from an address of no peer
	IgnoreStale                     // an acknowledgement of nothing that is outstanding: too late, repeated or made up
	IgnoreWrongSource               // an acknowledgement from another address than was asked
	IgnoreWrongSize                 // an acknowledgement of another size than was sent
	IgnoreWrongNode                 // an acknowledgement of another node than was asked
	IgnoreObserved                  // a probe from a new address of a peer of which enough are on trial, or that belongs to another
	NumIgnores
)

func (i Ignore) String() string {
	names := [NumIgnores]string{
		IgnoreMalformed: "malformed", IgnoreUnknownKey: "unknown key", IgnoreBadTag: "bad tag", IgnoreStranger: "stranger",
		IgnoreStale: "stale", IgnoreWrongSource: "wrong source", IgnoreWrongSize: "wrong size", IgnoreWrongNode: "wrong node",
		IgnoreObserved: "observed address refused",
	}
	if i < NumIgnores {
		return names[i]
	}
	return fmt.Sprintf("Ignore(%d)", uint8(i))
}

// HintIgnore is a reason for which an ICMP error was left unheeded.
type HintIgnore uint8

// Reasons to ignore ICMP errors.
const (
	HintNoQuote    HintIgnore = iota // it quotes nothing that we have sent
	HintAbsurd                       // the MTU is below any that is searched for, or not below the one that is used
	HintUnknown                      // it is about an address of no peer
	HintUnanswered                   // the peer answers no probes, so nothing can be proven
	HintLimited                      // another one was heeded moments ago
	NumHintIgnores
)

func (h HintIgnore) String() string {
	names := [NumHintIgnores]string{
		HintNoQuote: "no quote", HintAbsurd: "absurd MTU", HintUnknown: "unknown peer", HintUnanswered: "unanswered",
		HintLimited: "limited",
	}
	if h < NumHintIgnores {
		return names[h]
	}
	return fmt.Sprintf("HintIgnore(%d)", uint8(h))
}

// Counters count since New.
type Counters struct {
	ProbesSent    uint64
	ProbesAcked   uint64
	ProbesLost    uint64 // not acknowledged in time
	AcksSent      uint64
	AcksLimited   uint64 // not sent because there were too many
	BytesSent     uint64 // of probes and acknowledgements, with their IP headers
	SendErrors    uint64 // datagrams that the host did not send, for another reason than their size
	BlackHoles    uint64
	Moves         uint64
	HintsAccepted uint64
	QueueLosses   uint64 // datagrams and hints that came faster than they could be looked at
	Ignored       [NumIgnores]uint64
	HintsIgnored  [NumHintIgnores]uint64
}
