package inject

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/safchain/ethtool"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/dataplane/frametest"
	"github.com/overlayd/overlayd/dataplane/header"
)

// actEnv makes the test program act as a daemon: see act.
const actEnv = "OVERLAYD_INJECT_ACT"

// act opens a device, says its name and waits for its own end.
func act(string) {
	d, err := Open(nil)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	id, _ := ids(d)
	fmt.Println(d.Name, id)
	time.Sleep(time.Minute)
}

// ids returns the ID of the program of d.
func ids(d *Device) (ebpf.ProgramID, bool) {
	info, err := d.prog.Info()
	if err != nil {
		return 0, false
	}
	return info.ID()
}

// change sets features of a device.
func change(t *testing.T, name string, features map[string]bool) {
	t.Helper()
	tool, err := ethtool.NewEthtool()
	must(t, err)
	defer tool.Close()
	must(t, tool.Change(name, features))
}

// TestGone looks that nothing is left behind, however the process ends.
func TestGone(t *testing.T) {
	newSpace(t)
	d := open(t)
	id, ok := ids(d)
	if !ok {
		t.Fatal("the program has no ID")
	}
	must(t, d.Close(), d.Close())
	gone(t, d.Name, id)

	for _, how := range []os.Signal{unix.SIGTERM, unix.SIGKILL} {
		self, err := os.Executable()
		must(t, err)
		cmd := exec.Command(self)
		cmd.Env = append(os.Environ(), actEnv+"=1")
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		must(t, err)
		must(t, cmd.Start())
		var name string
		var id ebpf.ProgramID
		_, err = fmt.Fscan(io.LimitReader(out, 100), &name, &id)
		if err == nil {
			_, err = netlink.LinkByName(name)
		}
		_ = cmd.Process.Signal(how)
		_ = cmd.Wait() // it ends by the signal
		must(t, err)
		gone(t, name, id)
	}
}

// gone waits until there is neither interface nor program.
func gone(t *testing.T, name string, id ebpf.ProgramID) {
	t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		_, err := netlink.LinkByName(name)
		p, perr := ebpf.NewProgramFromID(id)
		if perr == nil {
			p.Close()
		}
		if errors.As(err, new(netlink.LinkNotFoundError)) && errors.Is(perr, os.ErrNotExist) {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%s is still there (%v), or program %d is (%v)", name, err, id, perr)
		}
	}
}

// TestLate looks that an interface whose packets other cores deal with is not used: they could overtake others.
func TestLate(t *testing.T) {
	newSpace(t)
	open(t)
	if err := os.WriteFile(defaultRPS, []byte("2"), 0); err != nil {
		t.Skipf("RPS cannot be turned on: %v", err)
	}
	d, err := Open(nil)
	if err == nil {
		must(t, d.Close())
	}
	if !errors.Is(err, errLate) {
		t.Errorf("error %v, want %v", err, errLate)
	}
}

// TestTwo looks that two daemons in one namespace get along.
func TestTwo(t *testing.T) {
	newSpace(t)
	if a, b := open(t), open(t); a.Name == b.Name || a.Index == b.Index {
		t.Errorf("both are %s, %d", a.Name, a.Index)
	}
}

// TestQuiet looks that the kernel says nothing on the new device by itself.
func TestQuiet(t *testing.T) {
	newSpace(t)
	d := open(t)
	if comes(t, d.fd, 500*time.Millisecond) {
		t.Error("the kernel sends something")
	}
	addrs, err := netlink.AddrList(device(t, d.Name), netlink.FAMILY_ALL)
	if err != nil || len(addrs) != 0 {
		t.Errorf("addresses: %v, %v", addrs, err)
	}
}

// TestFails sets the device down and looks that this is said once.
func TestFails(t *testing.T) {
	newSpace(t)
	var said []error
	d, err := Open(func(err error) { said = append(said, err) })
	if err != nil {
		t.Skipf("this kernel cannot: %v", err)
	}
	defer d.Close()
	p, err := d.NewPath(PathConfig{Local: here4, Peer: there4, Port: port, TTL: 64, Checksum: true, Device: 1})
	must(t, err)
	must(t, netlink.LinkSetDown(device(t, d.Name)))
	if !d.Usable() {
		t.Error("given up before the first write")
	}
	offload, datagram := superframe(false, 3*segment, frametest.Opts{})
	for range 2 {
		if errno := new(Writer).Write(p, source, 0, &offload, datagram); errno != unix.EIO {
			t.Errorf("error %v, want EIO", errno)
		}
	}
	if d.Usable() || len(said) != 1 || !errors.Is(said[0], unix.EIO) || !strings.Contains(said[0].Error(), d.Name) {
		t.Errorf("usable: %v; said: %v", d.Usable(), said)
	}
}

// TestFull looks that a device that does not get rid of its packets slows the writer down.
func TestFull(t *testing.T) {
	h := newHosts(t)
	p := h.path(t, false, true)
	l := device(t, "eth0")
	const rate = 100_000 // bytes a second
	must(t, netlink.QdiscReplace(&netlink.Tbf{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: l.Attrs().Index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT},
		Rate:       rate, Limit: 1 << 30, Buffer: netlink.Xmittime(rate, 1<<18),
	}))
	offload, d := superframe(false, 40*segment, frametest.Opts{})
	var w Writer
	for i := range 1000 {
		if errno := w.Write(p, source, 0, &offload, d); errno == unix.EAGAIN {
			if i < 10 {
				t.Errorf("full after %d superframes", i)
			}
			var longest time.Duration
			for range 10 { // a signal ends a wait early
				start := time.Now()
				p.Device().Wait(20 * time.Millisecond)
				longest = max(longest, time.Since(start))
			}
			if longest < 15*time.Millisecond {
				t.Errorf("waited %v for room that there is not", longest)
			}
			return
		} else if errno != 0 {
			t.Fatal(errno)
		}
	}
	t.Error("1000 superframes are on their way at 800 kb/s")
}

// TestKernelPeer injects towards the kernel's vxlan device and looks what it makes of it, with tunnel offload on
// the way and without.
func TestKernelPeer(t *testing.T) {
	h := newHosts(t)
	for _, offloaded := range []bool{true, false} {
		change(t, "eth0", map[string]bool{featureTunnel: offloaded, featureTunnelCsum: offloaded, "tx-checksum-ip-generic": offloaded})
		each(t, func(outer6, inner6 bool) {
			h.enter(t, there)
			v := &netlink.Vxlan{
				LinkAttrs: netlink.LinkAttrs{Name: "vxlan0", HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 2}},
				VxlanId:   vni, Port: port, SrcAddr: there4.AsSlice(), UDP6ZeroCSumRx: true, Learning: false,
			}
			if outer6 {
				v.SrcAddr = there6.AsSlice()
			}
			must(t, netlink.LinkAdd(v), netlink.LinkSetUp(device(t, "vxlan0")))
			change(t, "vxlan0", map[string]bool{"rx-gro": false}) // it would join what was cut
			defer func() {
				h.enter(t, there)
				must(t, netlink.LinkDel(device(t, "vxlan0")))
				h.enter(t, here)
			}()
			h.enter(t, here)
			next := h.sniff(t, "vxlan0")
			offload, d := superframe(inner6, 20*segment, frametest.Opts{})
			frame := d[header.VXLANLen:]
			want := [][]byte{frame}
			var err error
			if !offloaded {
				want, err = frametest.Segments(frame, segment)
				must(t, err)
			}
			if errno := new(Writer).Write(h.path(t, outer6, true), source, 0, &offload, d); errno != 0 {
				t.Fatal(errno)
			}
			for i := range want {
				if got := next(); !bytes.Equal(got, want[i]) {
					t.Fatalf("frame %d has %d bytes, want %d, or others", i, len(got), len(want[i]))
				}
			}
		})
	}
}

// TestOutgoing looks by which routes and devices superframes may leave whole.
func TestOutgoing(t *testing.T) {
	newHosts(t)
	l := device(t, "eth0")
	survey := func(checksum bool) (Way, error) {
		s, err := NewSurvey()
		must(t, err)
		defer s.Close()
		for range 2 { // the second time by heart
			way, err := s.Outgoing(here4, there4, checksum)
			way6, err6 := s.Outgoing(here6, there6, checksum)
			if way != way6 || (err == nil) != (err6 == nil) {
				t.Errorf("IPv4: %+v, %v; IPv6: %+v, %v", way, err, way6, err6)
			}
		}
		return s.Outgoing(here4, there4, checksum)
	}
	if way, err := survey(true); way != (Way{"eth0", l.Attrs().Index, 65535, true}) || err != nil {
		t.Errorf("a veth: %+v, %v", way, err)
	}
	must(t, netlink.LinkSetGSOMaxSize(l, 30000))
	if way, err := survey(true); way.MaxPacket != 29999 || err != nil {
		t.Errorf("a veth with gso_max_size 30000: %+v, %v", way, err)
	}
	refused := func(what, because string, checksum bool) {
		t.Helper()
		if _, err := survey(checksum); err == nil || !strings.Contains(err.Error(), because) {
			t.Errorf("%s: error %v, want one with %q", what, err, because)
		}
	}
	change(t, "eth0", map[string]bool{featureTunnelCsum: false})
	refused("no outer checksum", featureTunnelCsum, true)
	if _, err := survey(false); err != nil {
		t.Errorf("no outer checksum, and none wanted: %v", err)
	}
	change(t, "eth0", map[string]bool{featureTunnel: false})
	refused("no tunnel offload", featureTunnel, false)
	change(t, "eth0", map[string]bool{featureTunnel: true, featureTunnelCsum: true})

	for peer, local := range map[netip.Addr]netip.Addr{there4: here4, there6: here6} {
		_, dst, err := net.ParseCIDR(netip.PrefixFrom(peer, peer.BitLen()).String())
		must(t, err)
		gateway := local.Next().Next()
		r := &netlink.Route{Dst: dst, MultiPath: []*netlink.NexthopInfo{
			{LinkIndex: l.Attrs().Index, Gw: gateway.AsSlice()}, {LinkIndex: l.Attrs().Index, Gw: gateway.Next().AsSlice()},
		}}
		must(t, netlink.RouteAdd(r))
		s, err := NewSurvey()
		must(t, err)
		if _, err := s.Outgoing(local, peer, true); err == nil || !strings.Contains(err.Error(), "several paths") {
			t.Errorf("two paths to %v: %v", peer, err)
		}
		s.Close()
		must(t, netlink.RouteDel(r))
	}

	must(t, netlink.LinkSetUp(device(t, "lo")))
	s, err := NewSurvey()
	must(t, err)
	defer s.Close()
	if _, err := s.Outgoing(here4, here4, true); err == nil || !strings.Contains(err.Error(), "another host") {
		t.Errorf("to itself: %v", err)
	}
	if d := s.device(device(t, "lo").Attrs().Index); d.err == nil || !strings.Contains(d.err.Error(), "not Ethernet") {
		t.Errorf("the loopback: %+v", d)
	}
	if _, err := s.Outgoing(here4, documentation4, true); err == nil || !errors.Is(err, unix.ENETUNREACH) {
		t.Errorf("no route: %v", err)
	}
}

// TestPathRefused makes paths that cannot be.
func TestPathRefused(t *testing.T) {
	newSpace(t)
	d := open(t)
	good := PathConfig{Local: here4, Peer: there4, Port: port, TTL: 64, Device: 1}
	for name, spoil := range map[string]func(*PathConfig){
		"no address":   func(c *PathConfig) { c.Local = netip.Addr{} },
		"two families": func(c *PathConfig) { c.Peer = there6 },
		"no TTL":       func(c *PathConfig) { c.TTL = 0 },
		"TTL too much": func(c *PathConfig) { c.TTL = 256 },
		"no device":    func(c *PathConfig) { c.Device = 0 },
	} {
		c := good
		spoil(&c)
		if _, err := d.NewPath(c); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if _, err := d.NewPath(good); err != nil {
		t.Error(err)
	}
}
