package vtep

import (
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	nl "github.com/mdlayher/netlink"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/dataplane/addr"
	"github.com/overlayd/overlayd/dataplane/forward"
	"github.com/overlayd/overlayd/dataplane/frametest"
	"github.com/overlayd/overlayd/vtep/link/linktest"
)

const guardPort = 4000

// sendRaw puts a frame on the interface of a container.
func sendRaw(t *testing.T, from string, frame []byte) {
	t.Helper()
	linktest.In(t, from, func() {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		linktest.Must(t, err)
		defer unix.Close(fd)
		linktest.Must(t, unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: linktest.Device(t, "eth0").Attrs().Index}))
	})
}

// heard is what has come to a container by UDP, up to the datagram that says so.
func heard(t *testing.T, c *net.UDPConn, last string) (all []string) {
	t.Helper()
	linktest.Must(t, c.SetReadDeadline(time.Now().Add(linktest.Patience)))
	for buf := make([]byte, 2048); ; {
		n, err := c.Read(buf)
		linktest.Must(t, err)
		if string(buf[:n]) == last {
			return all
		}
		all = append(all, string(buf[:n]))
	}
}

// TestContainersOfOneHost has one container pose as another before a third of the same host, whose frames the VTEP never
// sees.
func TestContainersOfOneHost(t *testing.T) {
	c := newCluster(t)
	h, posing := c.hosts[0], c.containers[0]
	honest := linktest.Named(t, "c2")
	a := endpoint(2, honest)
	h.must(request{Op: "attach", Name: "blue", Attach: &a})
	var socket *net.UDPConn
	linktest.In(t, honest, func() { socket = linktest.UDP(t, netip.AddrPortFrom(inside4(2), guardPort)) })
	defer socket.Close()

	say := func(mac addr.MAC, ip netip.Addr, text string) {
		t.Helper()
		sendRaw(t, posing, frametest.Ethernet(a.MAC, mac).IPv4(ip, inside4(2)).UDP(guardPort, guardPort).Data([]byte(text)).Bytes())
	}
	own := endpoint(0, "").MAC
	pose := func() {
		t.Helper()
		say(own, inside4(1), "address of a container elsewhere")
		say(own, gateway4, "address of the gateway")
		say(endpoint(1, "").MAC, inside4(1), "all of a container elsewhere")
		say(own, inside4(0), "the end")
	}
	pose()
	if got := heard(t, socket, "the end"); len(got) != 0 {
		t.Errorf("heard %q", got)
	}
	n := h.network()
	if n.Counters.Drops[forward.SourceIPSpoofed] != 2 || n.Counters.Drops[forward.SourceSpoofed] != 1 {
		t.Errorf("dropped %v", n.Counters.Drops)
	}
	if n.Healed != 0 {
		t.Errorf("%d things were put right, and nothing was wrong", n.Healed)
	}

	// What was dropped is counted once, and the rules are there before the next VTEP has been told who is attached.
	h.tell("stop")
	h.tell("close")
	pose()
	if got := heard(t, socket, "the end"); len(got) != 0 {
		t.Errorf("without a VTEP heard %q", got)
	}
	c.startAt(t, 0)
	h = c.hosts[0]
	h.must(request{Op: "attach", Name: "blue", Attach: &a})
	if n := h.network(); n.Counters.Drops[forward.SourceIPSpoofed] != 0 {
		t.Errorf("what was dropped before the start is counted: %v", n.Counters.Drops)
	}
	pose()
	if got := heard(t, socket, "the end"); len(got) != 0 {
		t.Errorf("after a restart heard %q", got)
	}
	if n := h.network(); n.Counters.Drops[forward.SourceIPSpoofed] != 2 || n.Counters.Drops[forward.SourceSpoofed] != 1 {
		t.Errorf("after a restart dropped %v", n.Counters.Drops)
	}
}

// TestWithoutPortGuard turns the rules off, those that an earlier VTEP has left included.
func TestWithoutPortGuard(t *testing.T) {
	c := newCluster(t)
	honest := linktest.Named(t, "c2")
	a := endpoint(2, honest)
	c.hosts[0].must(request{Op: "attach", Name: "blue", Attach: &a})
	c.hosts[0].tell("stop")
	c.hosts[0].tell("close")
	c.enter(t, 0)
	h := startHost(t)
	h.start(Config{Underlay: Underlay{Addresses: []netip.Addr{underlays["IPv4"][0]}}, Disable: []string{FeaturePortGuard}})
	n := sandboxed(0)
	h.must(request{Op: "add", Network: &n})
	h.must(request{Op: "attach", Name: "blue", Attach: &a})
	var socket *net.UDPConn
	linktest.In(t, honest, func() { socket = linktest.UDP(t, netip.AddrPortFrom(inside4(2), guardPort)) })
	defer socket.Close()
	sendRaw(t, c.containers[0], frametest.Ethernet(a.MAC, endpoint(0, "").MAC).IPv4(inside4(1), inside4(2)).UDP(guardPort, guardPort).Data([]byte("heard")).Bytes())
	heard(t, socket, "heard")
}

// ownTable takes the table of the rules for one connection, so that nobody else can write to it until that is closed.
func ownTable(t *testing.T) (release func()) {
	t.Helper()
	c, err := nl.Dial(unix.NETLINK_NETFILTER, nil)
	linktest.Must(t, err)
	const subsystem, owner = unix.NFNL_SUBSYS_NFTABLES << 8, 2 // NFT_TABLE_F_OWNER
	message := func(kind uint16, flags nl.HeaderFlags, family byte, resource byte, attributes ...nl.Attribute) nl.Message {
		body, err := nl.MarshalAttributes(attributes)
		linktest.Must(t, err)
		return nl.Message{Header: nl.Header{Type: nl.HeaderType(kind), Flags: nl.Request | flags}, Data: append([]byte{family, 0, 0, resource}, body...)}
	}
	name := nl.Attribute{Type: unix.NFTA_TABLE_NAME, Data: []byte("overlayd\x00")}
	flags := nl.Attribute{Type: unix.NFTA_TABLE_FLAGS, Data: []byte{0, 0, 0, owner}}
	_, err = c.SendMessages([]nl.Message{
		message(unix.NFNL_MSG_BATCH_BEGIN, 0, 0, unix.NFNL_SUBSYS_NFTABLES),
		message(subsystem|unix.NFT_MSG_DELTABLE, nl.Acknowledge, unix.NFPROTO_NETDEV, 0, name),
		message(subsystem|unix.NFT_MSG_NEWTABLE, nl.Acknowledge|nl.Create, unix.NFPROTO_NETDEV, 0, name, flags),
		message(unix.NFNL_MSG_BATCH_END, 0, 0, unix.NFNL_SUBSYS_NFTABLES),
	})
	linktest.Must(t, err)
	for range 2 {
		_, err = c.Receive()
		linktest.Must(t, err)
	}
	return func() { linktest.Must(t, c.Close()) }
}

// While its rules cannot be written no container is attached, a TAP that is lost does not come back, and both are made up
// for as soon as they can.
func TestRulesThatCannotBeWritten(t *testing.T) {
	c := newCluster(t)
	h := c.hosts[0]
	reaches(t, c.containers[0], inside4(1), 56)
	var release func()
	c.inSandbox(t, 0, func() {
		release = ownTable(t)
		linktest.Must(t, netlink.LinkDel(linktest.Device(t, "tap0")))
	})
	linktest.Await(t, "word of the rules", func() bool { return strings.Contains(h.network().Problem, "--disable port-guard") })
	other := linktest.Named(t, "c2")
	a := endpoint(2, other)
	if r := h.ask(request{Op: "attach", Name: "blue", Attach: &a}); !strings.Contains(r.Err, "posing") {
		t.Errorf("attaching a container without its rules: %q", r.Err)
	}
	release()
	linktest.Await(t, "forwarding", func() bool { return ping(t, c.containers[0], inside4(1), 56, time.Second) })
	h.must(request{Op: "attach", Name: "blue", Attach: &a})
	reaches(t, other, inside4(0), 56)
	linktest.Await(t, "the end of the problem", func() bool { return h.network().Problem == "" })
}
