package interop

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/overlayd/overlayd/bench/lab"
	"github.com/overlayd/overlayd/controlplane/api"
	"github.com/overlayd/overlayd/controlplane/api/overlayd/v1"
)

// ask calls the daemon behind a socket.
func ask[T any](t *testing.T, socket string, call func(*api.Client) (T, error)) T {
	t.Helper()
	c := api.NewClient(socket)
	defer c.Close()
	v, err := call(c)
	if err != nil {
		t.Fatalf("ask %s: %s", socket, api.Message(err))
	}
	return v
}

func statusOf(t *testing.T, socket string) *overlaydv1.NodeStatus {
	t.Helper()
	return ask(t, socket, func(c *api.Client) (*overlaydv1.NodeStatus, error) {
		r, err := c.GetStatus(within(t), &overlaydv1.GetStatusRequest{})
		return r.GetStatus(), err
	})
}

func networksOf(t *testing.T, socket string) []*overlaydv1.Network {
	t.Helper()
	return ask(t, socket, func(c *api.Client) ([]*overlaydv1.Network, error) {
		r, err := c.ListNetworks(within(t), &overlaydv1.ListNetworksRequest{})
		return r.GetNetworks(), err
	})
}

func peersOf(t *testing.T, socket string) []*overlaydv1.Peer {
	t.Helper()
	return ask(t, socket, func(c *api.Client) ([]*overlaydv1.Peer, error) {
		r, err := c.ListPeers(within(t), &overlaydv1.ListPeersRequest{})
		return r.GetPeers(), err
	})
}

func dropsOf(t *testing.T, socket string) []*overlaydv1.Drop {
	t.Helper()
	return ask(t, socket, func(c *api.Client) ([]*overlaydv1.Drop, error) {
		r, err := c.ListDrops(within(t), &overlaydv1.ListDropsRequest{})
		return r.GetDrops(), err
	})
}

// fdbOf lists a forwarding database as "MAC VTEP", sorted, without the ages.
func fdbOf(t *testing.T, socket, network string) []string {
	t.Helper()
	return ask(t, socket, func(c *api.Client) ([]string, error) {
		var rows []string
		for e, err := range c.FDB(within(t), network) {
			if err != nil {
				return nil, err
			}
			rows = append(rows, e.Mac+" "+e.Vtep)
		}
		slices.Sort(rows)
		return rows, nil
	})
}

// in, out and dropped are the sides of the law of conservation, in frames.
func in(k *overlaydv1.Counters) uint64 {
	return k.GetTapIn().GetFrames() + k.GetUnderlayIn().GetFrames() + k.GetFramesCreated()
}

func out(k *overlaydv1.Counters) uint64 {
	return k.GetTapOut().GetFrames() + k.GetUnderlayOut().GetFrames() + k.GetFramesDropped()
}

// conserved waits until all that went into each network has come out or is counted as dropped, which takes a
// moment as frames are under way when counters are read. It returns the networks as they are then, by name.
func conserved(t *testing.T, socket string) map[string]*overlaydv1.Network {
	t.Helper()
	var all map[string]*overlaydv1.Network
	eventually(t, "frames in = frames out + drops", func() (bool, string) {
		all = make(map[string]*overlaydv1.Network)
		var states []string
		ok := true
		for _, n := range networksOf(t, socket) {
			all[n.Name] = n
			k := n.GetCounters()
			ok = ok && in(k) == out(k)
			states = append(states, fmt.Sprintf("%s: in %d, out and dropped %d", n.Name, in(k), out(k)))
		}
		return ok && len(all) > 0, strings.Join(states, "; ")
	})
	for _, n := range all {
		var sum uint64
		for _, c := range n.GetCounters().GetDropsByReason() {
			sum += c
		}
		if want := n.GetCounters().GetFramesDropped(); sum != want {
			t.Errorf("network %s: drops by reason add up to %d, the sum says %d", n.Name, sum, want)
		}
	}
	return all
}

// tally is how often each reason has counted, in all networks and outside of any.
type tally map[string]uint64

// drops reads a tally.
func drops(t *testing.T, socket string) tally {
	t.Helper()
	sums := make(tally)
	for _, n := range networksOf(t, socket) {
		for reason, c := range n.GetCounters().GetDropsByReason() {
			sums[reason] += c
		}
	}
	for reason, c := range statusOf(t, socket).GetUnderlay().GetDropsByReason() {
		sums[reason] += c
	}
	return sums
}

// since is what has been counted after before was read.
func (n tally) since(before tally) tally {
	d := make(tally)
	for reason, c := range n {
		if c != before[reason] {
			d[reason] = c - before[reason]
		}
	}
	return d
}

func (n tally) String() string {
	var parts []string
	for _, reason := range slices.Sorted(maps.Keys(n)) {
		parts = append(parts, fmt.Sprintf("%s %d", reason, n[reason]))
	}
	if len(parts) == 0 {
		return "nothing"
	}
	return strings.Join(parts, ", ")
}

// dropped waits until exactly want has been dropped since before, and looks that it stays at that.
func dropped(t *testing.T, socket string, before, want tally) {
	t.Helper()
	var got tally
	eventually(t, "the drops "+want.String(), func() (bool, string) {
		got = drops(t, socket).since(before)
		return covers(got, want), got.String()
	})
	conserved(t, socket)
	if got = drops(t, socket).since(before); !maps.Equal(got, want) {
		t.Errorf("dropped %v, want %v", got, want)
	}
}

// covers reports whether got has at least what want has.
func covers(got, want tally) bool {
	for reason, c := range want {
		if got[reason] < c {
			return false
		}
	}
	return true
}

// alive fails when the daemon of a host is another process than before, or none.
func alive(t *testing.T, h *lab.Host, pid int) {
	t.Helper()
	if now := h.PID(); now != pid || pid == 0 {
		t.Fatalf("overlayd of %s is process %d, was %d", h.Name(), now, pid)
	}
}
