package tap

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/dataplane/frame"
	"github.com/overlayd/overlayd/dataplane/frametest"
	"github.com/overlayd/overlayd/dataplane/header"
	"github.com/overlayd/overlayd/vtep/link"
	"github.com/overlayd/overlayd/vtep/link/linktest"
)

// cable is two TAPs in two namespaces, and a goroutine for each direction that carries what it reads from the
// one to the other as it is. So the kernel's own TCP and UDP read what we write, and we read what they send.
type cable struct {
	ns   [2]netns.NsHandle
	devs [2]*Device
	stop int // pipe whose other end is closed to end the goroutines
	wg   sync.WaitGroup

	mu      sync.Mutex
	errs    []error
	largest [256]int // largest frame by GSO type
	partial int      // frames with a partial checksum
}

// newCable opens both TAPs, called tap0, as stations 1 and 2. The test is left in the namespace of the first.
func newCable(t *testing.T, c Config) *cable {
	t.Helper()
	w := new(cable)
	for i := range w.ns {
		enterNamespace(t)
		ns, err := netns.Get()
		if err != nil {
			t.Fatal(err)
		}
		w.ns[i] = ns
		t.Cleanup(func() { ns.Close() })
		c.Name, c.Queues = "tap0", 1
		w.devs[i] = open(t, c)
		station(t, uint16(1+i), uint16(2-i))
	}
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		t.Fatal(err)
	}
	w.stop = p[0]
	for i := range w.devs {
		w.wg.Go(func() { w.carry(w.devs[i].Queues[0], w.devs[1-i].Queues[0]) })
	}
	t.Cleanup(func() {
		unix.Close(p[1])
		w.wg.Wait()
		unix.Close(p[0])
		if err := errors.Join(w.errs...); err != nil {
			t.Error(err)
		}
	})
	w.enter(t, 0)
	return w
}

func (w *cable) enter(t *testing.T, i int) {
	t.Helper()
	if err := netns.Set(w.ns[i]); err != nil {
		t.Fatal(err)
	}
}

// station makes this namespace's TAP station n, which knows where the other one is, over IPv4 and IPv6.
func station(t *testing.T, n, other uint16) {
	t.Helper()
	l, err := netlink.LinkByName("tap0")
	if err != nil {
		t.Fatal(err)
	}
	mac, far := frametest.MAC(n), frametest.MAC(other)
	linktest.Setting(t, "net/ipv6/conf/tap0/disable_ipv6", "0")
	linktest.Setting(t, "net/ipv6/conf/tap0/accept_dad", "0")
	errs := []error{
		netlink.LinkSetHardwareAddr(l, net.HardwareAddr(mac[:])),
		link.AddAddress("tap0", netip.PrefixFrom(frametest.IP4(n), 16)),
		link.AddAddress("tap0", netip.PrefixFrom(frametest.IP6(n), 64)),
		link.SetUp("tap0"),
	}
	for _, ip := range []netip.Addr{frametest.IP4(other), frametest.IP6(other)} {
		errs = append(errs, netlink.NeighAdd(&netlink.Neigh{
			LinkIndex: l.Attrs().Index, State: netlink.NUD_PERMANENT, IP: ip.AsSlice(), HardwareAddr: far[:],
		}))
	}
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// carry copies frames until the cable is cut.
func (w *cable) carry(from, to Queue) {
	fds := []unix.PollFd{{Fd: int32(from.FD()), Events: unix.POLLIN}, {Fd: int32(w.stop), Events: unix.POLLIN}}
	batch := make([]frame.Frame, 8)
	for {
		if _, err := unix.Poll(fds, -1); err != nil && err != unix.EINTR {
			w.note(fmt.Errorf("poll: %w", err))
			return
		}
		if fds[1].Revents != 0 {
			return
		}
		if fds[0].Revents == 0 {
			continue
		}
		n, err := from.Read(batch)
		if err != nil && err != unix.EAGAIN {
			w.note(fmt.Errorf("Read: %w", err))
			return
		}
		for i := range batch[:n] {
			if err := w.pass(&batch[i], to); err != nil {
				w.note(err)
			}
		}
	}
}

// pass checks one frame and hands it on, cut at odd places.
func (w *cable) pass(f *frame.Frame, to Queue) error {
	b, h := f.Bytes(), f.Offload
	w.mu.Lock()
	w.largest[h.GSOType&^header.GSOECN] = max(w.largest[h.GSOType&^header.GSOECN], len(b))
	if h.Flags&header.VirtioFlagNeedsCsum != 0 {
		w.partial++
	}
	w.mu.Unlock()
	if err := sane(b, h); err != nil {
		return err
	}
	third := len(b) / 3
	if err := to.Write(&h, [][]byte{b[:third], b[third : 2*third], nil, b[2*third:]}); err != nil {
		return fmt.Errorf("Write of %d bytes with %+v: %w", len(b), h, err)
	}
	return nil
}

// sane checks what the kernel says of a frame.
func sane(b []byte, h header.VirtioNet) error {
	const tcpChecksum, udpChecksum = 16, 6
	bad := func(why string) error { return fmt.Errorf("%s: frame of %d bytes with %+v", why, len(b), h) }
	if h.GSOType != header.GSONone && h.Flags&header.VirtioFlagNeedsCsum == 0 {
		return bad("a superframe with complete checksum")
	}
	if h.Flags&header.VirtioFlagNeedsCsum == 0 {
		return nil
	}
	v6 := header.Ethernet(b).EtherType() == header.EtherTypeIPv6
	l4, proto := header.EthernetLen+header.IPv4MinLen, b[header.EthernetLen+9]
	if v6 {
		l4, proto = header.EthernetLen+header.IPv6Len, b[header.EthernetLen+6]
	}
	if int(h.CsumStart) != l4 {
		return bad("the checksum starts elsewhere")
	}
	want := map[bool]uint8{false: header.GSOTCPv4, true: header.GSOTCPv6}[v6]
	offset := uint16(tcpChecksum)
	if proto == header.ProtoUDP {
		want, offset = header.GSOUDPL4, udpChecksum
	}
	if h.CsumOffset != offset {
		return bad("the checksum is elsewhere")
	}
	if h.GSOType == header.GSONone {
		return nil
	}
	if h.GSOType&^header.GSOECN != want || h.GSOSize == 0 || l4+int(h.GSOSize) > 1514 || len(b) <= 1514 && proto == header.ProtoTCP && len(b)-l4 < int(h.GSOSize) {
		return bad("a superframe of the wrong kind")
	}
	return nil
}

func (w *cable) note(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.errs) < 5 {
		w.errs = append(w.errs, err)
	}
}

// The kernel's TCP on both sides moves data through TAPs of every kind, in superframes where they are on.
func TestTCPBetweenTwoDevices(t *testing.T) {
	for name, c := range variants {
		for _, ip := range []func(uint16) netip.Addr{frametest.IP4, frametest.IP6} {
			family, kind := "IPv4", header.GSOTCPv4
			if ip(1).Is6() {
				family, kind = "IPv6", header.GSOTCPv6
			}
			t.Run(name+" "+family, func(t *testing.T) {
				w := newCable(t, c)
				transfer(t, w, ip)
				w.mu.Lock()
				defer w.mu.Unlock()
				super := w.largest[kind] > 3000
				if want := w.devs[0].Offload.TSO; super != want {
					t.Errorf("superframes: largest %d bytes, want some: %v", w.largest[kind], want)
				}
				if plain := w.largest[header.GSONone]; plain > 1514 {
					t.Errorf("a plain frame of %d bytes", plain)
				}
				if (w.partial > 0) != w.devs[0].Offload.Checksum {
					t.Errorf("%d partial checksums", w.partial)
				}
			})
		}
	}
}

// transfer moves 2 MB from station 1 to station 2 and compares them.
func transfer(t *testing.T, w *cable, ip func(uint16) netip.Addr) {
	t.Helper()
	w.enter(t, 1)
	l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(ip(2), 5001)))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	data := frametest.Pattern(2 << 20)
	got := make(chan []byte, 1)
	go func() {
		defer close(got)
		c, err := l.AcceptTCP()
		if err != nil {
			return
		}
		defer c.Close()
		var b bytes.Buffer
		if _, err := b.ReadFrom(c); err == nil {
			got <- b.Bytes()
		}
	}()
	w.enter(t, 0)
	c, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(netip.AddrPortFrom(ip(2), 5001)))
	if err != nil {
		l.Close()
		<-got
		t.Fatal(err)
	}
	_, err = c.Write(data)
	err = errors.Join(err, c.Close())
	if b := <-got; err != nil || !bytes.Equal(b, data) {
		t.Errorf("of %d bytes %d arrived, or not the same; %v", len(data), len(b), err)
	}
}

// A burst that a UDP socket sends in one call is one superframe where these are on, and arrives as it was sent.
func TestUDPBetweenTwoDevices(t *testing.T) {
	for name, c := range variants {
		t.Run(name, func(t *testing.T) {
			w := newCable(t, c)
			w.enter(t, 1)
			in, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(frametest.IP4(2), 5001)))
			if err != nil {
				t.Fatal(err)
			}
			defer in.Close()
			w.enter(t, 0)
			out := udpSocket(t, 40000)
			const size, n = 1000, 20
			data := frametest.Pattern(size*(n-1) + 300)
			if err := unix.SetsockoptInt(out, unix.IPPROTO_UDP, unix.UDP_SEGMENT, size); err != nil {
				t.Fatal(err)
			}
			if err := unix.Sendto(out, data, 0, &unix.SockaddrInet4{Addr: frametest.IP4(2).As4(), Port: 5001}); err != nil {
				t.Fatal(err)
			}
			if err := in.SetReadDeadline(deadline()); err != nil {
				t.Fatal(err)
			}
			buf := make([]byte, 1<<16)
			for rest := data; len(rest) > 0; {
				k, err := in.Read(buf)
				want := rest[:min(size, len(rest))]
				if err != nil || !bytes.Equal(buf[:k], want) {
					t.Fatalf("%d bytes in place of %d, %v", k, len(want), err)
				}
				rest = rest[len(want):]
			}
			w.mu.Lock()
			defer w.mu.Unlock()
			if super := w.largest[header.GSOUDPL4] > len(data); super != w.devs[0].Offload.USO {
				t.Errorf("superframes: largest %d bytes, want some: %v", w.largest[header.GSOUDPL4], w.devs[0].Offload.USO)
			}
		})
	}
}
