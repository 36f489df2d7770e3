package fastpath

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/dataplane/checksum"
	"github.com/overlayd/overlayd/dataplane/frametest"
	"github.com/overlayd/overlayd/dataplane/header"
	"github.com/overlayd/overlayd/vtep/link/linktest"
)

// stream is how many bytes a TCP connection carries in tests.
const stream = 4 << 20

// TestHosts has two hosts talk by entries alone, by TCP and pings of both families, in both directions.
func TestHosts(t *testing.T) {
	for name, kinds := range map[string][]kind{
		"TAPs": {plainTAP, plainTAP}, "sandboxes": {sandboxed, sandboxed}, "one of each": {plainTAP, sandboxed},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHosts(t, kinds...)
			talk(t, h)
			frames, bytes, lost := h[here].counted()
			frames2, bytes2, lost2 := h[there].counted()
			if frames != frames2 || bytes != bytes2 || lost != 0 || lost2 != 0 {
				t.Errorf("the one host counts %d frames, %d bytes, %d lost, the other %d, %d, %d", frames, bytes, lost, frames2, bytes2, lost2)
			}
			// Each stream in segments, with headers, and answered.
			const least = 4 * stream / maxMSS
			if frames < least || bytes < 4*stream+least*(header.EthernetLen+header.IPv4MinLen+header.TCPMinLen) {
				t.Errorf("%d frames, %d bytes are too few", frames, bytes)
			}
		})
	}
}

// talk has the hosts talk in both directions.
func talk(t *testing.T, h [2]*host) {
	t.Helper()
	for i, from := range h {
		to := h[1-i]
		for _, a := range to.inner {
			for _, size := range []int{0, 100, 1380} {
				ping(t, from, a, size, h[there].kind == kernels)
			}
			transfer(t, from.inside, to.inside, a)
		}
	}
}

// ping sends an echo request and waits for the answer. lossy says that it may have to ask again.
func ping(t *testing.T, from *host, to netip.Addr, size int, lossy bool) {
	t.Helper()
	from.inside(t, func() {
		network, request, reply := "ip4:icmp", byte(header.ICMPEcho), byte(header.ICMPEchoReply)
		if to.Is6() {
			network, request, reply = "ip6:ipv6-icmp", header.ICMPv6Echo, header.ICMPv6EchoReply
		}
		c, err := net.DialIP(network, nil, &net.IPAddr{IP: to.AsSlice()})
		linktest.Must(t, err)
		defer c.Close()
		m := append([]byte{request, 0, 0, 0, 0x12, 0x34, 0, 7}, frametest.Pattern(size)...)
		if to.Is4() {
			binary.BigEndian.PutUint16(m[2:], checksum.Checksum(m))
		}
		wait := linktest.Patience
		if lossy {
			wait /= 20
		}
		ask := func() {
			_, err := c.Write(m)
			linktest.Must(t, err, c.SetReadDeadline(time.Now().Add(wait)))
		}
		end := time.Now().Add(linktest.Patience)
		ask()
		for b := make([]byte, 2048); ; {
			n, _, err := c.ReadFromIP(b) // without the IP header
			if errors.Is(err, os.ErrDeadlineExceeded) && time.Now().Before(end) {
				ask()
				continue
			}
			if err != nil {
				t.Fatalf("no answer to a ping of %d bytes from %v: %v", size, to, err)
			}
			if n == len(m) && b[0] == reply {
				if !bytes.Equal(b[4:n], m[4:]) {
					t.Errorf("the answer to a ping of %d bytes from %v has other bytes", size, to)
				}
				return
			}
		}
	})
}

// transfer sends a stream of bytes by TCP, and looks that they arrive.
func transfer(t *testing.T, from, to func(*testing.T, func()), a netip.Addr) {
	t.Helper()
	data := make([]byte, stream)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(data)
	deadline := time.Now().Add(3 * linktest.Patience)
	var l net.Listener
	to(t, func() {
		var err error
		l, err = net.Listen("tcp", net.JoinHostPort(a.String(), "0"))
		linktest.Must(t, err)
	})
	defer l.Close()
	got := make(chan error, 1)
	go func() {
		got <- func() error {
			c, err := l.Accept()
			if err != nil {
				return err
			}
			defer c.Close()
			sum := sha256.New()
			n, err := io.Copy(sum, c)
			if err == nil && ([32]byte)(sum.Sum(nil)) != sha256.Sum256(data) {
				err = errors.New("other bytes")
			}
			return errors.Join(c.SetDeadline(deadline), err, write(c, fmt.Sprint(n)))
		}()
	}()
	var c net.Conn
	from(t, func() {
		var err error
		c, err = (&net.Dialer{Timeout: linktest.Patience}).Dial("tcp", l.Addr().String())
		if err != nil {
			l.Close()
			<-got
			t.Fatal(err)
		}
	})
	defer c.Close()
	err := errors.Join(c.SetDeadline(deadline), write(c, string(data)), c.(*net.TCPConn).CloseWrite())
	answer, rerr := io.ReadAll(c)
	if err = errors.Join(err, rerr); err != nil {
		l.Close()
		c.Close()
	}
	if err := errors.Join(err, <-got); err != nil || string(answer) != fmt.Sprint(stream) {
		t.Fatalf("to %v: %v; answered %q", a, err, answer)
	}
}

func write(w io.Writer, s string) error {
	_, err := io.WriteString(w, s)
	return err
}

// packets opens a socket for whole packets of a device, with virtio-net headers in front, in the namespace that the test is in.
func packets(t *testing.T, name string) int {
	t.Helper()
	const everything = unix.ETH_P_ALL>>8 | unix.ETH_P_ALL<<8&0xff00
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	linktest.Must(t, err)
	t.Cleanup(func() { unix.Close(fd) })
	linktest.Must(t,
		unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1),
		unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: int64(linktest.Patience / time.Second)}),
		unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: everything, Ifindex: linktest.Device(t, name).Attrs().Index}))
	return fd
}

// nextPacket returns the next packet with this source and destination.
func nextPacket(t *testing.T, fd int, dst, src net.HardwareAddr) (header.VirtioNet, []byte) {
	t.Helper()
	b := make([]byte, 1<<17)
	for {
		n, err := unix.Read(fd, b)
		if err == unix.EINTR { // the Go runtime interrupts threads by signals
			continue
		}
		if err != nil {
			t.Fatalf("nothing came: %v", err)
		}
		if f := b[header.VirtioNetLen:n]; bytes.Equal(f[:6], dst) && bytes.Equal(f[6:12], src) {
			var v header.VirtioNet
			v.Decode(b[:header.VirtioNetLen])
			return v, f
		}
	}
}

// TestForwardedOn has the receiving host forward what has come to it to a third one, by a device that takes no superframes
// and sums nothing.
func TestForwardedOn(t *testing.T) {
	h := newHosts(t, plainTAP, plainTAP)
	third := linktest.New(t)
	h[there].enter(t)
	linktest.Must(t, netlink.LinkAdd(&netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: "down0", MTU: tapMTU}, PeerName: "eth0", PeerNamespace: netlink.NsFd(third), PeerMTU: tapMTU,
	}))
	offload(t, "down0", false, "tx-tcp-segmentation", "tx-tcp6-segmentation", "tx-generic-segmentation", "tx-checksum-ip-generic")
	for _, name := range []string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"} {
		linktest.Setting(t, name, "1")
	}
	gateway := [2]netip.Addr{netip.MustParseAddr("10.43.0.1"), netip.MustParseAddr("fd43::1")}
	end := [2]netip.Addr{netip.MustParseAddr("10.43.0.2"), netip.MustParseAddr("fd43::2")}
	address(t, "down0", gateway[:]...)
	mac := linktest.Device(t, "down0").Attrs().HardwareAddr
	linktest.Must(t, netns.Set(third))
	address(t, "eth0", end[:]...)
	far := linktest.Device(t, "eth0").Attrs()
	for f, a := range end {
		neighbor(t, "eth0", gateway[f], mac)
		linktest.Must(t, netlink.RouteAdd(&netlink.Route{LinkIndex: far.Index, Dst: subnet(h[here].inner[f]), Gw: gateway[f].AsSlice()}))
		h[there].enter(t)
		neighbor(t, "down0", a, far.HardwareAddr)
		h[there].leaves(t, a, h[here], f == 1)
		h[here].enter(t)
		h[here].arrives(t, a, h[there], f == 1)
		linktest.Must(t, netlink.RouteAdd(&netlink.Route{LinkIndex: linktest.Device(t, "tap0").Attrs().Index, Dst: subnet(a), Gw: h[there].inner[f].AsSlice()}))
		linktest.Must(t, netns.Set(third))
	}
	linktest.Await(t, "carrier", func() bool { return linktest.Device(t, "eth0").Attrs().OperState == netlink.OperUp })
	inThird := func(t *testing.T, f func()) {
		linktest.Return(t, func() { linktest.Must(t, netns.Set(third)); f() })
	}
	for _, a := range end {
		before := linktest.Device(t, "eth0").Attrs().Statistics.RxPackets
		transfer(t, h[here].inside, inThird, a)
		if n := linktest.Device(t, "eth0").Attrs().Statistics.RxPackets - before; n < stream/maxMSS {
			t.Errorf("to %v: %d packets cannot have been segments", a, n)
		}
	}
	for _, a := range h[here].inner {
		transfer(t, inThird, h[here].inside, a)
	}
}

func subnet(a netip.Addr) *net.IPNet {
	bits := 24
	if a.Is6() {
		bits = 64
	}
	p := netip.PrefixFrom(a, bits).Masked()
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(bits, a.BitLen())}
}

// settle opens the gates of a host again and again until the test ends. The kernel speaks of its own accord on its vxlan device,
// to groups, and nobody here deals with that: what has the same gate waits, and a ping that comes meanwhile is lost.
func settle(t *testing.T, h *host) {
	end, ended := make(chan struct{}), make(chan struct{})
	t.Cleanup(func() { close(end); <-ended })
	go func() {
		defer close(ended)
		for {
			select {
			case <-end:
				return
			case <-time.After(20 * time.Millisecond):
				h.table.Settle()
			}
		}
	}()
}

// TestKernelPeer has the kernel's vxlan device on the other side, with devices below that take wrapped superframes and such
// that do not.
func TestKernelPeer(t *testing.T) {
	for _, offloaded := range []bool{true, false} {
		for name, k := range map[string]kind{"TAP": plainTAP, "sandbox": sandboxed} {
			t.Run(fmt.Sprintf("%s, offload %v", name, offloaded), func(t *testing.T) {
				h := newHosts(t, k, kernels)
				for _, x := range h {
					x.enter(t)
					offload(t, "eth0", offloaded, "tx-udp_tnl-segmentation", "tx-udp_tnl-csum-segmentation", "tx-checksum-ip-generic")
				}
				settle(t, h[here])
				talk(t, h)
				const least = 4 * stream / maxMSS
				if frames, bytes, lost := h[here].counted(); frames < least || bytes < 4*stream || lost != 0 {
					t.Errorf("counted %d frames, %d bytes, %d lost", frames, bytes, lost)
				}
			})
		}
	}
}
