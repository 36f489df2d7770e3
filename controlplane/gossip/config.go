package gossip

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	"github.com/hashicorp/memberlist"
)

// Config says how to open a Gossip. All fields without a default are required.
type Config struct {
	NodeID  string // 16 lower-case hexadecimal digits, unique in the cluster
	Cluster string // ID of the cluster, 16 lower-case hexadecimal digits

	// Bind lists the addresses to listen on, UDP and TCP, at most one of each family. Not used with Transport.
	Bind []netip.AddrPort
	// Advertise is where other nodes reach this one.
	Advertise netip.AddrPort

	// Addresses returns where a member may be reached, if that is at more than the address that it advertises: by its ID or,
	// if that is "", by one of its addresses; none for one of which nothing is known. The one that is preferred comes first,
	// but as long as nothing comes from any of them a packet goes to all. nil = each has one. It is called by several
	// goroutines, and must be cheap.
	Addresses func(nodeID string, to netip.AddrPort) []netip.AddrPort

	Keys [][]byte // 32 bytes each; the first one seals, all of them open

	// PacketSize returns the UDP payload in bytes that the paths to all members carry: the smallest path MTU
	// less 28 for IPv4 or 48 for IPv6. It is asked for every packet, so that a change is in force at once.
	PacketSize func() int

	// Deliver takes a message that arrived and says whether to spread it. It should answer true once for
	// each message that is genuine and was not known, as nobody but the sender's few direct targets gets to
	// see a message that others do not spread. Messages come in any order. Copies of a message that has been
	// here lately are not delivered again, older ones may be, so it must be idempotent. The bytes must not be
	// changed, and may be kept. It is called by several goroutines.
	Deliver func(message []byte) (spread bool)

	// State returns what this node knows. It is called often and must be cheap.
	State func() Digest

	// Behind tells that another node knows more, or at the same index something else, than State says. It
	// comes again until that has changed. A node can claim what it likes, so the caller must bound how often
	// it acts on this. It is called by several goroutines.
	Behind func(nodeID string, theirs Digest)

	// Events tells of nodes that come and go, this one excepted. It is called by one goroutine of Run. A node
	// that changes several times while Events is busy is reported in its last state only.
	Events func(Event)

	// Rejoin returns the gossip addresses of all managers. It is asked every 10 to 30 s; those that are not
	// members are joined. This heals partitions.
	Rejoin func() []netip.AddrPort
	// RejoinAfter returns how long to wait until Rejoin is asked next. Default: random, 10 to 30 s.
	RejoinAfter func() time.Duration

	Timing Timing
	Log    *slog.Logger // default: discard

	// Transport replaces the sockets on Bind. Close shuts it down.
	Transport memberlist.Transport
}

// Timing has the intervals of the protocol. All nodes of a cluster should have the same. Zero values mean the
// defaults.
type Timing struct {
	// Probe is how often one other node, each in turn, is asked whether it is there. 1 s.
	Probe time.Duration
	// ProbeTimeout is how long its answer may take before others are asked to try. 500 ms.
	ProbeTimeout time.Duration
	// Suspicion is how long a node that does not answer is suspect before it is dead. This is the shortest
	// time, with up to 10 nodes. It grows with the logarithm of their number, and to at most twice that while
	// nobody else confirms it. In a cluster of three nobody is there to confirm, so it has to be long
	// enough for a machine that stalls. 10 s.
	Suspicion time.Duration
	// Gossip is how often messages are sent to some nodes, while there are any; the first one after a quiet time goes at
	// once. 100 ms.
	Gossip time.Duration
	// PushPull is how often full membership and digests are exchanged with one other node; longer with more
	// than 32 nodes. 30 s.
	PushPull time.Duration
}

const (
	defaultProbe        = time.Second
	defaultProbeTimeout = 500 * time.Millisecond
	defaultSuspicion    = 10 * time.Second
	defaultGossip       = 100 * time.Millisecond
	defaultPushPull     = 30 * time.Second

	// reclaimAfter is how long a node must have been dead before its ID may appear at another address.
	reclaimAfter = 7 * time.Second
	// streamTimeout bounds dialling, and each step of an exchange over a stream.
	streamTimeout = 5 * time.Second
	// maxSuspicion is the factor by which suspicion is longer while nobody confirms it.
	maxSuspicion = 2
)

// ErrConfig is in the chain of every error that New returns for a Config that cannot work.
var ErrConfig = errors.New("gossip configuration")

// check validates c and fills in defaults.
func (c *Config) check() error {
	if err := checkID("node", c.NodeID); err != nil {
		return err
	}
	if err := checkID("cluster", c.Cluster); err != nil {
		return err
	}
	if err := checkAddress("advertised", c.Advertise); err != nil {
		return err
	}
	if c.Advertise.Addr().IsUnspecified() || c.Advertise.Addr().IsMulticast() {
		return fmt.Errorf("the advertised address %v is not one that others can reach: give one of this host's addresses", c.Advertise)
	}
	if err := c.checkBind(); err != nil {
		return err
	}
	for name, missing := range map[string]bool{
		"PacketSize": c.PacketSize == nil, "Deliver": c.Deliver == nil, "State": c.State == nil,
		"Behind": c.Behind == nil, "Events": c.Events == nil, "Rejoin": c.Rejoin == nil,
	} {
		if missing {
			return fmt.Errorf("the function %s is missing", name)
		}
	}
	if c.RejoinAfter == nil {
		c.RejoinAfter = rejoinAfter
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c.Timing.check()
}

func (c *Config) checkBind() error {
	if c.Transport != nil {
		return nil
	}
	if len(c.Bind) == 0 {
		return errors.New("no address to listen on")
	}
	var four, six int
	for _, a := range c.Bind {
		if err := checkAddress("listening", a); err != nil {
			return err
		}
		if a.Addr().Is4() {
			four++
		} else {
			six++
		}
	}
	if four > 1 || six > 1 {
		return fmt.Errorf("%d IPv4 and %d IPv6 addresses to listen on, at most one of each is possible: which one to send from would be anybody's guess", four, six)
	}
	return nil
}

func (t *Timing) check() error {
	for _, d := range []struct {
		name  string
		value *time.Duration
		byDef time.Duration
	}{
		{"Probe", &t.Probe, defaultProbe}, {"ProbeTimeout", &t.ProbeTimeout, defaultProbeTimeout},
		{"Suspicion", &t.Suspicion, defaultSuspicion}, {"Gossip", &t.Gossip, defaultGossip},
		{"PushPull", &t.PushPull, defaultPushPull},
	} {
		if *d.value < 0 {
			return fmt.Errorf("the interval %s is %v, must be positive", d.name, *d.value)
		}
		if *d.value == 0 {
			*d.value = d.byDef
		}
	}
	if t.ProbeTimeout >= t.Probe {
		return fmt.Errorf("ProbeTimeout is %v, must be shorter than Probe, %v", t.ProbeTimeout, t.Probe)
	}
	if t.Suspicion < 3*t.Probe {
		return fmt.Errorf("suspicion is %v, must be at least three times Probe, %v: one lost probe would kill a node", t.Suspicion, t.Probe)
	}
	return nil
}

func checkAddress(what string, a netip.AddrPort) error {
	switch {
	case !a.IsValid():
		return fmt.Errorf("the %s address is missing", what)
	case a.Addr().Zone() != "":
		return fmt.Errorf("the %s address %v has a zone: give a global address", what, a)
	case a.Addr().Is4In6():
		return fmt.Errorf("the %s address %v is an IPv4 address in IPv6 form: give it as IPv4", what, a)
	case a.Port() == 0:
		return fmt.Errorf("the %s address %v has port 0: choose a port", what, a)
	}
	return nil
}

func checkID(what, id string) error {
	if _, ok := parseID(id); !ok {
		return fmt.Errorf("the ID of the %s is %q, must be 16 lower-case hexadecimal digits", what, id)
	}
	return nil
}

// parseID turns the text form of an ID into 8 bytes.
func parseID(id string) (b [8]byte, ok bool) {
	if len(id) != 16 {
		return b, false
	}
	for _, c := range []byte(id) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return b, false
		}
	}
	_, err := hex.Decode(b[:], []byte(id))
	return b, err == nil
}

const (
	keyLen  = 32 // bytes
	maxKeys = 8
)

// checkKeys never shows a key.
func checkKeys(keys [][]byte) error {
	if len(keys) == 0 || len(keys) > maxKeys {
		return fmt.Errorf("%d gossip keys, must be 1 to %d", len(keys), maxKeys)
	}
	for i, k := range keys {
		if len(k) != keyLen {
			return fmt.Errorf("gossip key %d has %d bytes, must have %d", i, len(k), keyLen)
		}
		for j := range i {
			if bytes.Equal(k, keys[j]) {
				return fmt.Errorf("gossip keys %d and %d are the same", j, i)
			}
		}
	}
	return nil
}
