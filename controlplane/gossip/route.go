package gossip

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/overlayd/overlayd/controlplane/wire"
)

const (
	// heardFor is how long an address from which something came is believed to be the one to answer to.
	heardFor = 5 * time.Second
	// maxHeard bounds the addresses that are remembered for that.
	maxHeard = 4096
)

// routes says where a node is reached that has several addresses. memberlist knows one, which not everybody can use: that of
// the network inside, say, and not the floating one by which it is found from outside.
type routes struct {
	all func(nodeID string, to netip.AddrPort) []netip.AddrPort // nil = nodes have one address

	mu    sync.Mutex
	heard map[netip.AddrPort]time.Time // when the last packet came from there
}

// note remembers that a packet which a key has opened came from an address.
func (r *routes) note(from net.Addr) {
	if r.all == nil {
		return
	}
	u, ok := from.(*net.UDPAddr)
	if !ok {
		return
	}
	p := u.AddrPort()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.heard == nil || len(r.heard) >= maxHeard {
		r.heard = map[netip.AddrPort]time.Time{} // what is forgotten costs a copy of a packet
	}
	r.heard[netip.AddrPortFrom(p.Addr().Unmap(), p.Port())] = time.Now()
}

// to returns the addresses to which a packet for a is to be sent: the first one of the node's from which something came a
// moment ago, or else all. A packet that arrives twice does no harm.
func (r *routes) to(a memberlist.Address) []string {
	all := r.addresses(a)
	if len(all) == 1 {
		return all
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range all {
		if at, ok := r.heard[parse(s)]; ok && time.Since(at) < heardFor {
			return []string{s}
		}
	}
	return all
}

// addresses returns all addresses of a node: the one that memberlist knows, if there is no other.
func (r *routes) addresses(a memberlist.Address) []string {
	if r.all == nil {
		return []string{a.Addr}
	}
	var out []string
	for _, p := range r.all(a.Name, parse(a.Addr)) {
		out = append(out, p.String())
	}
	if len(out) == 0 {
		return []string{a.Addr}
	}
	return out
}

func parse(s string) netip.AddrPort {
	p, _ := netip.ParseAddrPort(s) // what is none is nowhere
	return netip.AddrPortFrom(p.Addr().Unmap(), p.Port())
}

// dial connects to the first of a node's addresses that answers.
func (r *routes) dial(a memberlist.Address, timeout time.Duration, dial func(string, time.Duration) (net.Conn, error)) (net.Conn, error) {
	all := r.addresses(a)
	if len(all) == 1 {
		return dial(all[0], timeout)
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	return wire.First(ctx, all, func(_ context.Context, address string) (net.Conn, error) { return dial(address, timeout) })
}
