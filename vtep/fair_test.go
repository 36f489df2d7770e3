package vtep

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/vtep/link/linktest"
)

// A flow that sends more than can be carried loses what is its own. Others wait, and are lost, behind the frames of
// their lane and not behind all. That nothing can be carried for a while is because a VTEP stands still: that of the
// sender, so that the TAP fills, or that of the receiver, so that its socket does.
func TestFloodLeavesOtherFlowsAlone(t *testing.T) {
	const flows, each = 64, 10
	const least = flows * 3 / 4 // that lose nothing: one lane of 16 has the flood; of two lanes for two workers, one would
	p := newPair(t)
	hosts := p.startBoth(t, "IPv4")
	p.exchange(t, overlay, 1000) // addresses are resolved
	for still, flood := range []int{3 * queueLength, 300000} {
		p.enter(t, 1)
		sink, quiet := udpAt(t, overlay(1)), udpAt(t, overlay(1))
		linktest.Must(t, quiet.SetReadBuffer(4<<20))
		p.enter(t, 0)
		from := dialUDP(t, sink)
		var others [flows]*net.UDPConn
		for i := range others {
			others[i] = dialUDP(t, quiet)
		}

		linktest.Must(t, hosts[still].signal(unix.SIGSTOP))
		for b := make([]byte, 18); flood > 0; flood-- {
			_, _ = from.Write(b) // an error is a datagram lost, which is what this is about
		}
		for range each {
			for i, c := range others {
				_, err := c.Write([]byte{byte(i)})
				linktest.Must(t, err)
			}
		}
		if still == 1 {
			hosts[0].idle()
		}
		linktest.Must(t, hosts[still].signal(unix.SIGCONT))

		came, whole := [flows]int{}, 0
		b := make([]byte, 10)
		// What is not lost is on its way: the end is that nothing comes for long, if too little has come.
		for left, last := flows*each, time.Now(); left > 0; {
			over := time.Since(last) > linktest.Patience // before the look, as this one may stand still, too
			linktest.Must(t, quiet.SetReadDeadline(time.Now().Add(time.Second)))
			if _, err := quiet.Read(b); err == nil {
				last = time.Now()
				left--
				if came[b[0]]++; came[b[0]] == each {
					whole++
				}
			} else if over || whole >= least {
				break
			}
		}
		t.Logf("host %d stood still: of %d flows %d lost nothing: %v", still, flows, whole, came)
		if whole < least {
			t.Errorf("host %d stood still: of %d flows beside a flood only %d lost nothing: %v", still, flows, whole, came)
		}
	}
}

// idle awaits that the host has sent on what waits in its TAP.
func (h *host) idle() {
	h.t.Helper()
	const long = 200 * time.Millisecond
	last, since := uint64(0), time.Now()
	linktest.Await(h.t, "end of the frames", func() bool {
		if now := h.network().Counters.TAPIn.Frames; now != last {
			last, since = now, time.Now()
		}
		return time.Since(since) > long
	})
}

func udpAt(t *testing.T, a netip.Addr) *net.UDPConn {
	t.Helper()
	c := linktest.UDP(t, netip.AddrPortFrom(a, 0))
	t.Cleanup(func() { c.Close() })
	return c
}

func dialUDP(t *testing.T, to *net.UDPConn) *net.UDPConn {
	t.Helper()
	c, err := net.DialUDP("udp", nil, to.LocalAddr().(*net.UDPAddr))
	linktest.Must(t, err)
	t.Cleanup(func() { c.Close() })
	return c
}
