package vtep

import (
	"net"
	"net/netip"
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/dataplane/addr"
	"github.com/overlayd/overlayd/vtep/link/linktest"
)

// steer has the first CPU handle everything that the underlay device and the TAP receive, in the namespace that the test is
// in: what the kernel makes of the order between CPUs is no matter of ours. The device by which superframes go out has to
// stay as it is: what is written to it leaves before the write returns.
func steer(t *testing.T) {
	t.Helper()
	const script = `mount -t sysfs sysfs /sys && for q in /sys/class/net/eth0/queues/rx-*/rps_cpus /sys/class/net/blue0/queues/rx-*/rps_cpus; do echo 1 > $q || exit 1; done`
	if out, err := exec.Command("unshare", "--mount", "sh", "-c", script).CombinedOutput(); err != nil {
		t.Fatalf("steering: %v\n%s", err, out)
	}
}

// unevenly is a pace with pauses of all lengths, and runs without any that are better off in trains.
func unevenly(round int) time.Duration {
	switch {
	case round%500 < 60:
		return 0
	case round%7 == 0:
		return 3 * time.Millisecond
	}
	return time.Duration(round%10) * 100 * time.Microsecond
}

// ooo returns how many segments have come to a connection before others that were sent earlier.
func ooo(t *testing.T, c net.Conn) (n uint32) {
	t.Helper()
	raw, err := c.(*net.TCPConn).SyscallConn()
	linktest.Must(t, err)
	var info *unix.TCPInfo
	linktest.Must(t, raw.Control(func(fd uintptr) { info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) }), err)
	return info.Rcv_ooopack
}

// No packet overtakes another of its flow, and none is lost, while pairs become fast and slow again all the time.
func TestPairsKeepTheOrder(t *testing.T) {
	p := newPair(t)
	hosts := p.startBoth(t, "IPv4")
	p.exchange(t, overlay, 1000)
	for i := range hosts {
		p.enter(t, i)
		steer(t)
	}
	there, back := p.across(t, 0, 4, unevenly), p.across(t, 1, 4, unevenly)
	f := p.startStream(t, overlay)
	bothFast(hosts, nil)
	macs := [2]addr.MAC{hosts[0].network().MAC, hosts[1].network().MAC}
	k, turns := 0, 0
	patiently(t, "fifty turns in which the kernel has forwarded", func() bool {
		k++
		for i, h := range hosts {
			// That the other station is forgotten makes it slow: its frames are flooded, which is the same with one peer.
			other := &addr.Mapping{MAC: macs[1-i], VTEP: underlays["IPv4"][1-i]}
			stranger := &addr.Mapping{MAC: addr.MAC{2, 9, byte(k)}, IPs: []netip.Addr{netip.AddrFrom4([4]byte{10, 42, 9, byte(k)})}, VTEP: underlays["IPv4"][1-i]}
			fast := h.network().FastOut.Frames
			h.must(request{Op: "map", Name: "blue", Mapping: other})
			h.must(request{Op: "map", Name: "blue", Mapping: stranger})
			h.must(request{Op: "unmap", Name: "blue", Mapping: other})
			h.must(request{Op: "unmap", Name: "blue", Mapping: stranger})
			h.must(request{Op: "set peers", Name: "blue", Peers: []netip.Addr{underlays["IPv4"][1-i], netip.MustParseAddr("192.0.2.77")}})
			h.must(request{Op: "set peers", Name: "blue", Peers: []netip.Addr{underlays["IPv4"][1-i]}})
			if h.network().FastOut.Frames > fast {
				turns++
			}
		}
		return turns >= 50
	})
	f.goesOn(t)
	if n := ooo(t, f.in); n > 0 {
		t.Errorf("%d TCP segments came before others", n)
	}
	f.stop()
	defer func() {
		if t.Failed() {
			for i, h := range hosts {
				t.Logf("host %d: %+v, dropped %+v", i, h.network(), h.tell("drops").Drops)
			}
		}
	}()
	there.accounted(func() uint64 { return 0 })
	back.accounted(func() uint64 { return 0 })
	for _, h := range hosts {
		h.tell("stop")
		conserved(t, "blue", h.network().Counters)
	}
}
