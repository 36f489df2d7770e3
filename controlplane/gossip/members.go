package gossip

import (
	"cmp"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// Kind is what is known of a node.
type Kind uint8

// The kinds, each of which replaces any other one.
const (
	Alive   Kind = iota + 1
	Suspect      // it did not answer; still a member
	Dead         // it has not answered for long: not a member, until it comes back
	Left         // it said that it goes
)

// String returns the name of a kind in lower case.
func (k Kind) String() string {
	switch k {
	case Alive:
		return "alive"
	case Suspect:
		return "suspect"
	case Dead:
		return "dead"
	case Left:
		return "left"
	}
	return "unknown"
}

// Event says that a node has become what Kind says.
type Event struct {
	NodeID string
	Kind   Kind
}

// Member is a node that is in the cluster, or was lately.
type Member struct {
	NodeID string
	Addr   netip.AddrPort // as it advertises itself
	State  Kind
	Since  time.Time // when that began, as seen from here
}

const (
	// settleAfter is how long a node must have been gone before that is reported. Its farewell may take
	// that long to be noticed.
	settleAfter = time.Second
	// forgetAfter is how long a node that is gone stays in the list.
	forgetAfter = 10 * time.Minute
)

// members is what this node knows of all. memberlist tells who comes and goes while it holds its lock, so nothing
// here calls back; the rest is read off the parts that it sends and receives.
//
// memberlist sends everything on that it takes for new, so what goes out is what it believes. Two things are looked
// for in what comes in as well: farewells, as in a cluster of two there is nobody to send one on to, and life
// signs, as memberlist v0.7.0 may lose one that it is to send on: its queue numbers messages from the start whenever
// it is empty, and of two with the same number, length and age the newer one replaces the other.
type members struct {
	self    string
	changed chan struct{} // holds one token if something is to be reported

	mu      sync.Mutex
	nodes   map[string]*node
	present int // alive or suspect, self included
	suspect int
}

type node struct {
	addr     netip.AddrPort
	state    Kind
	since    time.Time
	reported Kind // in an event, 0 = none yet

	// The order of events in memberlist. A node raises its incarnation to contradict, and of equal ones the
	// worse news wins.
	incarnation uint64 // the highest seen
	suspected   uint64 // of the suspicion
	farewell    bool   // there was one, with
	left        uint64 // this incarnation
}

func newMembers(self string) *members {
	return &members{self: self, changed: make(chan struct{}, 1), nodes: map[string]*node{}}
}

// set changes the state of n. The lock must be held.
func (m *members) set(id string, n *node, k Kind) {
	if n.state == k {
		return
	}
	m.present += in(k) - in(n.state)
	m.suspect += is(k == Suspect) - is(n.state == Suspect)
	n.state, n.since = k, time.Now()
	if id == m.self {
		return
	}
	select {
	case m.changed <- struct{}{}:
	default:
	}
}

func in(k Kind) int { return is(k == Alive || k == Suspect) }

func is(b bool) int {
	if b {
		return 1
	}
	return 0
}

// joined notes that a node is a member now.
func (m *members) joined(id string, addr netip.AddrPort) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := m.nodes[id]
	if n == nil {
		n = &node{}
		m.nodes[id] = n
	}
	n.addr, n.farewell = addr, false
	m.set(id, n, Alive)
}

// gone notes that a node is no member any more.
func (m *members) gone(id string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := m.nodes[id]
	if n == nil {
		return
	}
	if n.saidFarewell() {
		m.set(id, n, Left)
	} else {
		m.set(id, n, Dead)
	}
}

func (n *node) saidFarewell() bool { return n.farewell && n.left >= n.incarnation }

// sent takes up what memberlist tells others.
func (m *members) sent(part []byte) {
	v, ok := parseNotice(part)
	if !ok || v.node == m.self {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	n := m.nodes[v.node]
	if n == nil || v.incarnation < n.incarnation {
		return // old news that was on its way
	}
	n.incarnation = v.incarnation
	switch v.part {
	case partSuspect:
		if n.state == Alive {
			n.suspected = v.incarnation
			m.set(v.node, n, Suspect)
		}
	case partAlive:
		m.contradicted(v, n)
	case partDead:
		m.said(v, n)
	}
}

// received takes up farewells and life signs.
func (m *members) received(part []byte) {
	if len(part) == 0 || part[0] != partDead && part[0] != partAlive {
		return
	}
	v, ok := parseNotice(part)
	if !ok || v.node == m.self {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	n := m.nodes[v.node]
	switch {
	case n == nil:
	case v.part == partAlive:
		m.contradicted(v, n)
	default:
		m.said(v, n)
	}
}

// contradicted ends a suspicion that is older than a life sign. The lock must be held.
func (m *members) contradicted(v notice, n *node) {
	if n.state == Suspect && v.incarnation > n.suspected {
		n.incarnation = max(n.incarnation, v.incarnation)
		m.set(v.node, n, Alive)
	}
}

// said notes a farewell, which is a node's message that it is dead itself. The lock must be held.
func (m *members) said(v notice, n *node) {
	if v.node != v.from || v.incarnation < n.incarnation {
		return
	}
	n.farewell, n.left = true, v.incarnation
	if n.state == Dead {
		m.set(v.node, n, Left)
	}
}

// report returns what has not been reported yet, in the order in which it happened, and if something has to
// wait, for how long.
func (m *members) report() (events []Event, wait time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	since := map[string]time.Time{}
	for id, n := range m.nodes {
		if id == m.self || n.state == n.reported {
			continue
		}
		if left := settleAfter - now.Sub(n.since); n.state == Dead && left > 0 {
			if wait == 0 || left < wait {
				wait = left
			}
			continue
		}
		n.reported = n.state
		events = append(events, Event{NodeID: id, Kind: n.state})
		since[id] = n.since
	}
	slices.SortFunc(events, func(a, b Event) int {
		return cmp.Or(since[a.NodeID].Compare(since[b.NodeID]), cmp.Compare(a.NodeID, b.NodeID))
	})
	return events, wait
}

// forget drops nodes that have been gone for long.
func (m *members) forget() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for id, n := range m.nodes {
		if in(n.state) == 0 && n.state == n.reported && time.Since(n.since) > forgetAfter {
			delete(m.nodes, id)
		}
	}
}

// list returns all, by ID.
func (m *members) list() []Member {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make([]Member, 0, len(m.nodes))
	for id, n := range m.nodes {
		out = append(out, Member{NodeID: id, Addr: n.addr, State: n.state, Since: n.since})
	}
	slices.SortFunc(out, func(a, b Member) int { return cmp.Compare(a.NodeID, b.NodeID) })
	return out
}

// counts returns how many are members, and how many of these are suspect.
func (m *members) counts() (present, suspect int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.present, m.suspect
}

// random returns the address of one other member, if there is one.
func (m *members) random() []netip.AddrPort {
	m.mu.Lock()
	defer m.mu.Unlock()
	for id, n := range m.nodes { // in random order
		if id != m.self && in(n.state) == 1 {
			return []netip.AddrPort{n.addr}
		}
	}
	return nil
}

// missing returns those of addrs that no member has.
func (m *members) missing(addrs []netip.AddrPort) []netip.AddrPort {
	m.mu.Lock()
	defer m.mu.Unlock()
	absent := make(map[netip.AddrPort]bool, len(addrs)) // which are few, and the members may be many
	for _, a := range addrs {
		absent[a] = true
	}
	for _, n := range m.nodes {
		if in(n.state) == 1 {
			delete(absent, n.addr)
		}
	}
	var out []netip.AddrPort
	for _, a := range addrs {
		if absent[a] {
			out = append(out, a)
			delete(absent, a)
		}
	}
	return out
}
