package vtep

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/dataplane/forward"
	"github.com/overlayd/overlayd/dataplane/frametest"
	"github.com/overlayd/overlayd/vtep/link"
	"github.com/overlayd/overlayd/vtep/link/linktest"
)

// leisure is a pace at which nobody makes trains of datagrams.
const leisure = 2 * time.Millisecond

// echo sends an echo request from the namespace that the test is in, and waits for the answer.
func echo(t *testing.T, to netip.Addr) {
	t.Helper()
	if !echoes(t, to, linktest.Patience) {
		t.Fatalf("%v does not answer", to)
	}
}

// echoes is echo that reports whether an answer has come.
func echoes(t *testing.T, to netip.Addr, wait time.Duration) bool {
	t.Helper()
	network, proto, kind, answer := "ip4:icmp", 1, icmp.Type(ipv4.ICMPTypeEcho), icmp.Type(ipv4.ICMPTypeEchoReply)
	if to.Is6() {
		network, proto, kind, answer = "ip6:ipv6-icmp", 58, ipv6.ICMPTypeEchoRequest, ipv6.ICMPTypeEchoReply
	}
	c, err := net.ListenPacket(network, "")
	linktest.Must(t, err)
	defer c.Close()
	seq := int(time.Now().UnixNano() & 0xffff)
	b, err := (&icmp.Message{Type: kind, Body: &icmp.Echo{ID: 7, Seq: seq, Data: frametest.Pattern(100)}}).Marshal(nil)
	linktest.Must(t, err)
	_, err = c.WriteTo(b, &net.IPAddr{IP: to.AsSlice()})
	linktest.Must(t, err, c.SetReadDeadline(time.Now().Add(wait)))
	for buf := make([]byte, 1500); ; {
		n, _, err := c.ReadFrom(buf)
		if err != nil {
			return false
		}
		got, err := icmp.ParseMessage(proto, buf[:n])
		if e, is := got.Body.(*icmp.Echo); err == nil && is && got.Type == answer && e.Seq == seq {
			return bytes.Equal(e.Data, frametest.Pattern(100))
		}
	}
}

// The kernel takes over what passes between two stations, of every protocol that it may, and counts it as we do.
func TestPairsBecomeFast(t *testing.T) {
	p := newPair(t)
	hosts := p.startBoth(t, "IPv4")
	for _, address := range []func(int) netip.Addr{overlay, overlay6} {
		p.exchange(t, address, 1300)
		p.enter(t, 0)
		bothFast(hosts, func() { echo(t, address(1)) })
		for i := range hosts {
			p.enter(t, 1-i)
			to := linktest.UDP(t, netip.AddrPortFrom(address(1-i), 0))
			p.enter(t, i)
			s := startNumbered(t, every(leisure), to, linktest.UDP(t, netip.AddrPortFrom(address(i), 0)))
			hosts[i].gains(fastOut, 50, nil)
			hosts[1-i].gains(fastIn, 50, nil)
			s.accounted(func() uint64 { return 0 })
		}
		f := p.startStream(t, address)
		for i, h := range hosts { // data, and what acknowledges it
			k := []uint64{5 * inHand, 20}[i]
			h.gains(fastOut, k, nil)
			hosts[1-i].gains(fastIn, k, nil)
		}
		f.goesOn(t)
		f.stop()
	}
	var n [2]NetworkStatus
	linktest.Await(t, "everything to arrive that was sent", func() bool {
		for i, h := range hosts {
			n[i] = h.lawful()
		}
		return n[0].Counters.UnderlayOut == n[1].Counters.UnderlayIn && n[1].Counters.UnderlayOut == n[0].Counters.UnderlayIn
	})
	for i, h := range hosts {
		if n[i].FastOut.Frames == 0 || n[i].FastOut.Frames > n[1-i].Counters.UnderlayIn.Frames || n[i].FastOut.Bytes > n[1-i].Counters.UnderlayIn.Bytes ||
			n[i].FastIn.Frames > n[i].Counters.TAPOut.Frames || n[i].FastOut.Frames > n[i].Counters.TAPIn.Frames {
			t.Errorf("host %d: %+v", i, n[i])
		}
		h.tell("stop")
		conserved(t, "blue", h.network().Counters)
		if s := h.tell("status").Status; s.DatagramsOut != h.network().Counters.UnderlayOut.Frames {
			t.Errorf("host %d: %d datagrams are said to be sent, of %+v", i, s.DatagramsOut, h.network().Counters)
		}
		for _, d := range h.tell("drops").Drops {
			t.Errorf("host %d has dropped %+v", i, d)
		}
	}
}

// startStream opens a flow from host 0 of a pair to host 1.
func (p *pair) startStream(t *testing.T, address func(int) netip.Addr) *flow {
	t.Helper()
	p.enter(t, 1)
	l, err := net.Listen("tcp", netip.AddrPortFrom(address(1), 0).String())
	linktest.Must(t, err)
	defer l.Close()
	p.enter(t, 0)
	out, err := net.DialTimeout("tcp", l.Addr().String(), linktest.Patience)
	linktest.Must(t, err)
	in, err := l.Accept()
	linktest.Must(t, err)
	return runFlow(t, out, in)
}

// narrowRoute gives the route from host i of a pair to the other an MTU. The test is in the namespace of i.
func narrowRoute(t *testing.T, i, m int) {
	t.Helper()
	linktest.Must(t, netlink.RouteReplace(&netlink.Route{
		LinkIndex: linktest.Device(t, "eth0").Attrs().Index, MTU: m, Src: underlays["IPv4"][i].AsSlice(),
		Dst: &net.IPNet{IP: underlays["IPv4"][1-i].AsSlice(), Mask: net.CIDRMask(32, 32)},
	}))
}

// A path that becomes narrow holds for what the kernel forwards, too, and a connection goes on.
func TestPairsFollowTheMTU(t *testing.T) {
	for name, narrow := range map[string]func(t *testing.T, p *pair, m int){
		"of the link": func(t *testing.T, p *pair, m int) {
			for i := range p.ns {
				p.enter(t, i)
				linktest.Must(t, link.SetMTU("eth0", m))
			}
		},
		"of the route": func(t *testing.T, p *pair, m int) {
			for i := range p.ns {
				p.enter(t, i)
				narrowRoute(t, i, m)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPair(t)
			hosts := p.startBoth(t, "IPv4")
			f := p.startStream(t, overlay)
			bothFast(hosts, nil)
			for _, m := range []int{1300, 1400} {
				narrow(t, p, m)
				linktest.Await(t, fmt.Sprintf("MTU of %d", m-50), func() bool {
					return int(hosts[0].network().MTU) == m-50 && int(hosts[1].network().MTU) == m-50
				})
				f.goesOn(t)
				bothFast(hosts, nil)
				// No frame of it may be longer now than the path carries.
				before := hosts[0].network().FastOut
				hosts[0].gains(fastOut, 200, nil)
				after := hosts[0].network().FastOut
				if mean := (after.Bytes - before.Bytes) / (after.Frames - before.Frames); int(mean) > m-50+14 {
					t.Errorf("at %d, frames have %d bytes", m, mean)
				}
			}
		})
	}
}

// From the moment that a path is said to be narrower, nothing larger is sent there by the kernel either, where it would vanish
// uncounted.
func TestPairsHeedANarrowerPath(t *testing.T) {
	p := newPair(t)
	var hosts [2]*host
	for i := range hosts {
		n := blue(i, "IPv4")
		n.MTU = 1450
		hosts[i] = p.startAt(t, i, Config{Networks: []Network{n}, Queues: 2})
	}
	p.enter(t, 0)
	s := linktest.UDP(t, netip.AddrPortFrom(overlay(0), 0))
	raw, err := s.SyscallConn()
	linktest.Must(t, err, raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE)
	}), err)
	path := func(m int) {
		t.Helper()
		narrowRoute(t, 0, m)
		linktest.Await(t, fmt.Sprintf("path of %d", m), func() bool { return int(hosts[0].tell("peers").Peers[0].PathMTU) == m })
	}
	for round := range 10 {
		bothFast(hosts, func() { echo(t, overlay(1)) })
		before := hosts[0].dropsOf(forward.ExceedsPathMTU)
		path(1300)
		_, err := s.WriteToUDPAddrPort(frametest.Pattern(1400), netip.AddrPortFrom(overlay(1), 9))
		linktest.Must(t, err)
		linktest.Await(t, fmt.Sprintf("drop in round %d", round), func() bool { return hosts[0].dropsOf(forward.ExceedsPathMTU) == before+1 })
		path(1500)
	}
}

// The SYNs of a pair that is known are looked at as any, and lowered where that is called for.
func TestPairsKeepTheMSS(t *testing.T) {
	p := newPair(t)
	var hosts [2]*host
	for i := range hosts {
		n := blue(i, "IPv4")
		n.MSS = 1000
		hosts[i] = p.startAt(t, i, Config{Networks: []Network{n}})
	}
	p.enter(t, 0)
	bothFast(hosts, func() { echo(t, overlay(1)) })
	for k := range uint64(3) {
		before := hosts[0].network().Counters.MSSClamped
		f := p.startStream(t, overlay)
		f.goesOn(t)
		if got := hosts[0].network().Counters.MSSClamped + hosts[1].network().Counters.MSSClamped; got < 2*(k+1) || hosts[0].network().Counters.MSSClamped == before {
			t.Errorf("after %d connections %d SYNs were lowered", k+1, got)
		}
		at := hosts[0].network().FastOut
		hosts[0].gains(fastOut, 200, nil)
		now := hosts[0].network().FastOut
		if mean := (now.Bytes - at.Bytes) / (now.Frames - at.Frames); mean > 1000+14+20+60 {
			t.Errorf("frames of %d bytes", mean)
		}
		f.stop()
	}
}

// A TAP that is set down gets nothing from the kernel either, and what is for it is counted. Once it is up all goes on.
func TestPairsOfADownTAP(t *testing.T) {
	p := newPair(t)
	hosts := p.startBoth(t, "IPv4")
	p.exchange(t, overlay, 1000)
	s := p.across(t, 0, 1, every(leisure))
	hosts[1].gains(fastIn, 50, nil)
	for range 2 {
		p.enter(t, 1)
		linktest.Must(t, netlink.LinkSetDown(linktest.Device(t, "blue0")))
		downs := func() uint64 { return hosts[1].lawful().Counters.Drops[forward.TAPDown] }
		want := downs() + 100
		linktest.Await(t, "drops", func() bool { return downs() >= want })
		fast := hosts[1].network().FastIn.Frames
		want += 100
		linktest.Await(t, "further drops", func() bool { return downs() >= want })
		if now := hosts[1].network().FastIn.Frames; now != fast {
			t.Errorf("the kernel has given %d frames to a TAP that is down", now-fast)
		}
		linktest.Must(t, link.SetUp("blue0"))
		s.goesOn()
		hosts[1].gains(fastIn, 50, nil)
	}
	s.stop()
	for _, h := range hosts {
		h.tell("stop")
		conserved(t, "blue", h.network().Counters)
	}
}

// What is learned stays as young as the last frame, when nothing of it passes userspace.
func TestPairsKeepStationsYoung(t *testing.T) {
	p := newPair(t)
	hosts := p.startBoth(t, "IPv4")
	p.exchange(t, overlay, 1000)
	p.across(t, 1, 1, every(leisure))
	hosts[0].gains(fastIn, 50, nil)
	const still = 3 * time.Second
	var since time.Time
	var slow uint64
	patiently(t, "young station", func() bool {
		n := hosts[0].network()
		if at := n.Counters.UnderlayIn.Frames - n.FastIn.Frames; at != slow || since.IsZero() {
			slow, since = at, time.Now()
		}
		if time.Since(since) < still {
			return false
		}
		all := hosts[0].ask(request{Op: "fdb", Name: "blue"}).FDB
		// Its last frame in userspace is older.
		return len(all) == 1 && all[0].MAC == hosts[1].network().MAC && all[0].Age <= still-2*time.Second &&
			time.Since(hosts[0].tell("peers").Peers[0].Heard) < still-time.Second
	})
}

// Where the fast path is off, or has no use, no program is attached, and the overlay works.
func TestWithoutPairs(t *testing.T) {
	for name, c := range map[string]struct {
		family string
		change func(*Config)
		reason string
		hooks  []string
	}{
		"off":          {"IPv4", func(c *Config) { c.Disable = []string{FeatureFastPath} }, "by the operator", nil},
		"checksum on":  {"IPv4", func(c *Config) { c.Underlay.Checksum = ChecksumOn }, "underlay.checksum", nil},
		"without TSO":  {"IPv4", func(c *Config) { c.Disable = []string{FeatureTAPTSO} }, "needs " + FeatureTAPTSO, nil},
		"IPv6 outside": {"IPv6", func(*Config) {}, "", []string{"blue0 overlayd_leave"}},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPair(t)
			var hosts [2]*host
			for i := range hosts {
				cfg := Config{Networks: []Network{blue(i, c.family)}, Queues: 2}
				c.change(&cfg)
				hosts[i] = p.startAt(t, i, cfg)
			}
			for i := range hosts {
				p.enter(t, i)
				wantHooks(t, c.hooks...)
			}
			p.exchange(t, overlay, 1000)
			p.exchange(t, overlay6, 1000)
			p.stream(t)
			for _, h := range hosts {
				if n := h.lawful(); n.Pairs != 0 || n.FastIn.Frames+n.FastOut.Frames != 0 {
					t.Errorf("%+v", n)
				}
				all := h.tell("status").Status.Features
				k := slices.IndexFunc(all, func(f Feature) bool { return f.Name == FeatureFastPath })
				if f := all[k]; f.On != (c.reason == "") || !strings.Contains(f.Reason, c.reason) {
					t.Errorf("feature %+v, want %q", f, c.reason)
				}
			}
		})
	}
}

// Nothing of a daemon that is killed stays, and the next one forwards as it did.
func TestPairsEndWithTheProcess(t *testing.T) {
	p := newPair(t)
	hosts := p.startBoth(t, "IPv4")
	all := []string{"blue0 overlayd_leave", "eth0 overlayd_arrive"}
	for i := range hosts {
		p.enter(t, i)
		wantHooks(t, all...)
	}
	p.enter(t, 0)
	bothFast(hosts, func() { echo(t, overlay(1)) })
	hosts[1].kill()
	p.enter(t, 1)
	wantHooks(t)
	linktest.Await(t, "end of the TAP", func() bool { return !slices.Contains(linktest.Devices(t), "blue0") })
	p.enter(t, 0)
	if echoes(t, overlay(1), 100*time.Millisecond) {
		t.Error("without a daemon the other host has answered")
	}
	hosts[1] = p.startAt(t, 1, Config{Networks: []Network{blue(1, "IPv4")}, Queues: 2})
	p.enter(t, 0)
	linktest.Await(t, "answer", func() bool { return echoes(t, overlay(1), 100*time.Millisecond) })
	bothFast(hosts, func() { echo(t, overlay(1)) })
	for i, h := range hosts {
		h.tell("stop")
		h.tell("close")
		p.enter(t, i)
		wantHooks(t)
	}
}
