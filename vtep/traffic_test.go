package vtep

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/overlayd/overlayd/dataplane/frametest"
	"github.com/overlayd/overlayd/dataplane/mtu"
	"github.com/overlayd/overlayd/vtep/link/linktest"
)

// blue is the network of host i of a pair, whose other host is its peer.
func blue(i int, family string) Network {
	return Network{
		Name: "blue", VNI: 42, Device: "blue0", Learning: true, Peers: []netip.Addr{underlays[family][1-i]},
		Addresses: []netip.Prefix{netip.PrefixFrom(overlay(i), 24), netip.PrefixFrom(overlay6(i), 64)},
	}
}

// overlay is the address of host i in the network.
func overlay(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 42, 0, byte(1 + i)}) }

func overlay6(i int) netip.Addr {
	return netip.AddrFrom16([16]byte{0xfd, 0x42, 15: byte(1 + i)})
}

// startBoth runs a VTEP with two workers on both hosts.
func (p *pair) startBoth(t *testing.T, family string, disable ...string) [2]*host {
	t.Helper()
	var hosts [2]*host
	for i := range hosts {
		p.enter(t, i)
		hosts[i] = startHost(t)
		hosts[i].must(request{Op: "new", Config: &Config{Networks: []Network{blue(i, family)}, Disable: disable, Queues: 2}})
	}
	for _, h := range hosts { // once both can be asked, so that neither waits before it asks again
		h.tell("run")
	}
	for _, h := range hosts {
		// While a path is searched, a packet may be sent back to be made smaller.
		linktest.Await(t, "settled path", func() bool {
			at := h.path()
			return at.Settled && (at.Learned == LearnedProbe || slices.Contains(disable, FeaturePathProbes))
		})
	}
	return hosts
}

// exchange sends datagrams of all kinds of sizes through the overlay in turns.
func (p *pair) exchange(t *testing.T, address func(int) netip.Addr, most int) {
	t.Helper()
	var s [2]*net.UDPConn
	for i := range s {
		p.enter(t, i)
		s[i] = linktest.UDP(t, netip.AddrPortFrom(address(i), 0))
		linktest.Must(t, s[i].SetDeadline(time.Now().Add(linktest.Patience)))
	}
	defer s[0].Close()
	defer s[1].Close()
	buf := make([]byte, 1<<16)
	for _, n := range []int{0, 1, 100, most - 1, most} {
		for i := range s {
			data := frametest.Pattern(n)
			_, err := s[i].WriteToUDPAddrPort(data, s[1-i].LocalAddr().(*net.UDPAddr).AddrPort())
			linktest.Must(t, err)
			k, from, err := s[1-i].ReadFromUDPAddrPort(buf)
			if err != nil || !bytes.Equal(buf[:k], data) || from.Addr() != address(i) {
				t.Fatalf("of %d bytes sent by host %d, %d came from %v: %v", n, i, k, from, err)
			}
		}
	}
}

// stream moves 4 MB over TCP from host 0 to host 1.
func (p *pair) stream(t *testing.T) {
	t.Helper()
	p.enter(t, 1)
	l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(overlay(1), 0)))
	linktest.Must(t, err)
	defer l.Close()
	data := bytes.Repeat(frametest.Pattern(1<<16), 64)
	got := make(chan []byte, 1)
	go func() {
		defer close(got)
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		if b, err := io.ReadAll(c); err == nil {
			got <- b
		}
	}()
	p.enter(t, 0)
	c, err := net.DialTCP("tcp", nil, l.Addr().(*net.TCPAddr))
	linktest.Must(t, err)
	_, err = c.Write(data)
	linktest.Must(t, err, c.Close())
	if b := <-got; !bytes.Equal(b, data) {
		t.Errorf("of %d bytes %d arrived, or not the same", len(data), len(b))
	}
}

// inAndOut returns the two sides of the law of the counters.
func inAndOut(c Counters) (in, out uint64) {
	out = c.TAPOut.Frames + c.UnderlayOut.Frames
	for _, n := range c.Drops {
		out += n
	}
	return c.TAPIn.Frames + c.UnderlayIn.Frames + c.Created, out
}

// conserved checks the law of the counters of a VTEP that has been stopped: others have frames in hand, see
// settled.
func conserved(t *testing.T, who string, c Counters) {
	t.Helper()
	if in, out := inAndOut(c); in != out {
		t.Errorf("%s: %d frames in, %d out: %+v", who, in, out, c)
	}
}

// settled awaits that the law of the counters holds at a VTEP that runs. The kernel sends frames of its own,
// such as solicitations of routers, whenever it likes.
func (h *host) settled() {
	h.t.Helper()
	linktest.Await(h.t, "frames in = frames out + drops", func() bool {
		in, out := inAndOut(h.network().Counters)
		return in == out
	})
}

// Whatever is off, the overlay works, and says what is off.
func TestTrafficWithEachFeatureOff(t *testing.T) {
	cases := map[string][]string{"all on": nil, "all off": FeatureNames()}
	for _, f := range FeatureNames() {
		cases[f+" off"] = []string{f}
	}
	for name, off := range cases {
		for family, ends := range underlays {
			if family == "IPv6" && len(off) == 1 {
				continue
			}
			t.Run(name+", "+family, func(t *testing.T) {
				p := newPair(t)
				hosts := p.startBoth(t, family, off...)
				overhead := mtu.Overhead(mtu.FamilyOf(ends[0]), 0)
				m := 1500 - overhead
				p.exchange(t, overlay, m-28)
				p.exchange(t, overlay6, m-48)
				p.stream(t)
				for i, h := range hosts {
					h.tell("stop")
					n := h.network()
					conserved(t, n.Name, n.Counters)
					backend, queues := "vnet", 2*lanes
					if slices.Contains(off, FeatureFairQueues) {
						queues = 2
					}
					if slices.Contains(off, FeatureTAPMultiqueue) {
						queues = 1
					}
					if slices.Contains(off, FeatureTAPVNet) {
						backend, queues = "water", 1
					}
					if n.Name != "blue" || n.VNI != 42 || n.Device != "blue0" || n.MTU != mtu.OverlayMTU(m) || !n.MTUDerived ||
						!n.Learning || n.AllowNested || n.Backend != backend || n.Queues != queues || n.FDBEntries != 1 ||
						!slices.Equal(n.Peers, ends[1-i:2-i]) || len(n.Addresses) != 2 {
						t.Errorf("host %d: %+v", i, n)
					}
					peers := h.tell("peers").Peers
					if len(peers) != 1 {
						t.Fatalf("%d peers", len(peers))
					}
					if heard := time.Since(peers[0].Heard); heard < 0 || heard > time.Minute {
						t.Errorf("heard %v ago", heard)
					}
					peers[0].Heard, peers[0].Learned, peers[0].Candidates = time.Time{}, "", nil
					if want := (PeerStatus{
						Address: ends[1-i], Remote: ends[1-i], Local: ends[i], Device: "eth0", UnderlayMTU: 1500, PathMTU: 1500,
						Overhead: overhead, OverlayMTU: mtu.OverlayMTU(m), Networks: []string{"blue"},
					}); fmt.Sprint(peers[0]) != fmt.Sprint(want) {
						t.Errorf("peer %+v, want %+v", peers[0], want)
					}
					fdb := h.ask(request{Op: "fdb", Name: "blue"}).FDB
					if mac := hosts[1-i].network().MAC; len(fdb) != 1 || fdb[0].MAC != mac || fdb[0].VTEP != ends[1-i] || fdb[0].Static || fdb[0].Age > time.Minute {
						t.Errorf("FDB %+v; the other is %v", fdb, mac)
					}
					s := h.tell("status").Status
					if s.Port != 4789 || !slices.Equal(s.Addresses, ends[i:i+1]) || s.ReceiveOverflow != 0 ||
						s.DatagramsOut != n.Counters.UnderlayOut.Frames {
						t.Errorf("status %+v", s)
					}
					checkFeatures(t, s.Features, off)
				}
			})
		}
	}
}

// checkFeatures checks that what was turned off is off for that reason, and that the rest is on, as far as it
// does not depend on it.
func checkFeatures(t *testing.T, features []Feature, off []string) {
	t.Helper()
	needs := map[string][]string{
		FeatureTAPTSO:        {FeatureTAPVNet},
		FeatureTAPUSO:        {FeatureTAPVNet, FeatureTAPTSO},
		FeatureTAPMultiqueue: {FeatureTAPVNet},
		FeatureFairQueues:    {FeatureTAPVNet, FeatureTAPMultiqueue},
		FeatureGSOMaxSize:    {FeatureTAPVNet, FeatureTAPTSO},
		FeatureTunnelGSO:     {FeatureTAPVNet, FeatureTAPTSO},
		FeatureFastPath:      {FeatureTAPVNet, FeatureTAPTSO, FeatureTAPUSO},
	}
	if len(features) != len(FeatureNames()) {
		t.Fatalf("%d features", len(features))
	}
	for i, f := range features {
		disabled := slices.Contains(off, f.Name)
		lacks := slices.ContainsFunc(needs[f.Name], func(n string) bool { return slices.Contains(off, n) })
		if f.Name != FeatureNames()[i] || f.On != (!disabled && !lacks) || (f.Reason == "") != f.On ||
			disabled != strings.Contains(f.Reason, "by the operator") {
			t.Errorf("feature %+v, turned off %v", f, off)
		}
	}
}
