package pathmtu

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/overlayd/overlayd/dataplane/probe"
)

// Whoever is no peer can neither fill the queue for peers nor use up the acknowledgements for them.
func TestStrangersDoNotKeepPeersOut(t *testing.T) {
	keys := secretKeys(t, "k")
	w, x, _, _ := floating(t, 1, path{mtu: 1400, delay: 10 * ms}, path{mtu: 1400, delay: 10 * ms})
	packets := overhear(t, w, keys)
	w.run(25 * time.Second)
	var small heard
	for _, h := range *packets {
		if h.to == addrA && h.message.Type == probe.Probe && h.size == 100 {
			small = h
		}
	}
	w.tap = nil
	// What waits: more than there is room for, of which the peer's comes last.
	for range 2 * maxQueued {
		x.prober.Receive(addrA, stranger, small.payload, 100)
	}
	for range 100 {
		x.prober.Receive(addrA, addrB, small.payload, 100)
	}
	before := x.prober.Counters()
	x.wake()
	c := x.prober.Counters()
	if n := c.QueueLosses - before.QueueLosses; n != 2*maxQueued-maxQueued/strangersPart {
		t.Errorf("%d were lost", n)
	}
	// What is answered: again and again, and the peer's last.
	for range 10 {
		for range maxQueued / strangersPart {
			x.prober.Receive(addrA, stranger, small.payload, 100)
		}
		x.wake()
	}
	limited := x.prober.Counters().AcksLimited
	if limited == 0 {
		t.Error("strangers are answered without limit")
	}
	for range 100 {
		x.prober.Receive(addrA, addrB, small.payload, 100)
	}
	x.wake()
	if n := x.prober.Counters().AcksLimited - limited; n != 0 {
		t.Errorf("%d probes of the peer were not answered", n)
	}
}

// A node that states the address of another as one of its own is not taken for that one.
func TestClaimedAddressIsNotAccepted(t *testing.T) {
	w, x, _, _ := floating(t, 1, path{mtu: 1500, delay: 10 * ms}, path{mtu: 1500, delay: 30 * ms})
	addrC := netip.MustParseAddr("192.0.2.3")
	w.join(addrA, addrC, path{mtu: 1500, delay: ms})
	z := w.host(1500, addrC)
	z.prober.SetKeys(secretKeys(t, "k"), addrC)
	z.setPeers(peerAt(addrA))
	x.setPeers(peerAt(addrB, floatB), peerAt(addrC, floatB))
	w.run(5 * time.Second)
	if got := x.told[addrC].Accept; !slices.Equal(got, []netip.Addr{addrC}) {
		t.Errorf("of the node that claims it: %v", got)
	}
	if got := x.told[addrB].Accept; !slices.Equal(got, []netip.Addr{addrB, floatB}) {
		t.Errorf("of the node that has it: %v", got)
	}
	// When it answers there itself, it is its own.
	w.hosts[floatB] = z
	w.paths[pair{addrC, floatA}] = w.paths[pair{addrB, floatA}]
	w.inside[floatB] = addrC
	w.run(time.Minute)
	if got := x.told[addrC].Accept; !slices.Contains(got, floatB) {
		t.Errorf("of the node that has it now: %v", got)
	}
	if c := statusOf(x.prober.Status()[0].Candidates, floatB); c.State != StateLost || c.Why != "another node answers at this address now" {
		t.Errorf("of the node that had it: %+v", c)
	}
}
