//go:build linux

package link

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/dataplane/addr"
	"github.com/overlayd/overlayd/vtep/link/linktest"
	"github.com/overlayd/overlayd/vtep/link/netname"
)

// newVNI returns a VNI that no other test has: /run/netns is that of the machine.
func newVNI() addr.VNI { return addr.VNI(8<<20 + rand.Uint32N(4<<20)) }

// open opens a sandbox that is gone at the end.
func open(t *testing.T, vni addr.VNI, host uint64) (*Sandbox, bool) {
	t.Helper()
	s, adopted, err := OpenSandbox(vni, host)
	linktest.Must(t, err)
	t.Cleanup(func() { s.Close() })
	t.Cleanup(func() {
		if err := RemoveSandbox(vni, host); err != nil {
			t.Error(err)
		}
	})
	return s, adopted
}

// Two hosts that share /run/netns have a sandbox each for one VNI, and each finds its own again.
func TestSandboxesOfTwoHosts(t *testing.T) {
	linktest.Enter(t)
	vni, hosts := newVNI(), [2]uint64{1 << 40, 1<<40 + 1}
	linktest.Must(t, os.WriteFile(filepath.Join(netname.Dir, "overlayd-"+vni.String()), nil, 0o644)) // left from before a restart
	names := [2]string{"overlayd-" + vni.String(), fmt.Sprintf("overlayd-%v-%d", vni, hosts[1])}
	var ids [2]uint64
	for round := range 3 {
		for i, host := range hosts {
			s, adopted := open(t, vni, host)
			if s.Name() != names[i] || adopted != (round > 0) || round > 0 && s.ID() != ids[i] {
				t.Errorf("round %d: host %d has %s, number %d, adopted %v", round, i, s.Name(), s.ID(), adopted)
			}
			ids[i] = s.ID()
			linktest.Must(t, s.Close())
			if vnis, err := Sandboxes(host); err != nil || !slices.Equal(vnis, []addr.VNI{vni}) {
				t.Errorf("host %d has %v, %v", i, vnis, err)
			}
		}
	}
	linktest.Must(t, RemoveSandbox(vni, hosts[0]), RemoveSandbox(vni, hosts[0]))
	if s, adopted := open(t, vni, hosts[1]); !adopted || s.ID() != ids[1] {
		t.Errorf("after the other is gone: %s, adopted %v", s.Name(), adopted)
	}
	if vnis, err := Sandboxes(hosts[0]); err != nil || len(vnis) != 0 {
		t.Errorf("host 0 has %v, %v", vnis, err)
	}
}

// What is asked for is made, once, and nothing speaks of its own accord in there.
func TestRepairMakesTheLayout(t *testing.T) {
	linktest.Enter(t)
	s, _ := open(t, newVNI(), 1<<41)
	linktest.Must(t, s.Do(func() error {
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "port0"}, PeerName: "far0"})
	}))
	want := Layout{
		Bridge: Bridge{MAC: addr.MAC{2, 'o', 'v', 1, 2, 3}, MTU: 1450, Addresses: []netip.Addr{netip.MustParseAddr("10.42.0.1"), netip.MustParseAddr("fd42::1")}},
		Ports:  []Port{{Device: "port0", MTU: 1450, TxQueueLen: 77, GSOMaxSize: 60000, MAC: addr.MAC{2, 0, 0, 0, 0, 7}}},
	}
	if n, err := s.Repair(want); err != nil || len(n) == 0 {
		t.Fatalf("%q repaired, %v", n, err)
	}
	if n, err := s.Repair(want); err != nil || len(n) != 0 {
		t.Errorf("%q repaired that were well, %v", n, err)
	}
	linktest.In(t, s.Name(), func() {
		br, port := linktest.Device(t, SandboxBridge), linktest.Device(t, "port0")
		if a := br.Attrs(); a.HardwareAddr.String() != "02:6f:76:01:02:03" || a.MTU != 1450 || a.RawFlags&unix.IFF_UP == 0 {
			t.Errorf("bridge %+v", a)
		}
		if a := port.Attrs(); a.MasterIndex != br.Attrs().Index || a.MTU != 1450 || a.TxQLen != 77 || a.GSOMaxSize != 60000 || a.RawFlags&unix.IFF_UP == 0 {
			t.Errorf("port %+v", a)
		}
		p, err := netlink.LinkGetProtinfo(port)
		if err != nil || p.Learning || p.Flood {
			t.Errorf("port %+v, %v", p, err)
		}
		for _, f := range []string{
			"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding", "net/bridge/bridge-nf-call-iptables",
			"net/bridge/bridge-nf-call-ip6tables", "net/bridge/bridge-nf-call-arptables", "net/ipv6/conf/br0/accept_ra",
		} {
			b, err := os.ReadFile("/proc/sys/" + f)
			if err == nil && strings.TrimSpace(string(b)) != "0" {
				t.Errorf("%s is %s", f, b)
			}
		}
		if b, err := os.ReadFile("/proc/sys/net/ipv6/conf/port0/disable_ipv6"); err == nil && b[0] != '1' {
			t.Errorf("IPv6 is on at the port: %s", b)
		}
		addrs, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
		if err != nil || len(addrs) != 2 {
			t.Errorf("addresses %v, %v; only the gateways should be there", addrs, err)
		}
	})
	// A port that is not there is an error of its own, and the rest is done all the same.
	want.Ports = append(want.Ports, Port{Device: "port9"})
	want.Bridge.MTU = 1400
	var missing Missing
	if n, err := s.Repair(want); len(n) != 1 || !errors.As(err, &missing) || !slices.Equal(missing, Missing{"port9"}) {
		t.Errorf("%q repaired, %v", n, err)
	}
}

// A namespace is entered on threads that are home again afterwards, whatever f says.
func TestDoLeavesNoThreadBehind(t *testing.T) {
	linktest.Enter(t)
	here, err := NamespaceID()
	linktest.Must(t, err)
	s, _ := open(t, newVNI(), 1<<42)
	var home uint64
	linktest.Must(t, onThread(func() (err error) { home, err = NamespaceID(); return err }))
	wrong := errors.New("wrong")
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			if err := s.Do(func() error {
				if id, err := NamespaceID(); err != nil || id != s.ID() {
					t.Errorf("in %d, %v", id, err)
				}
				return wrong
			}); err != wrong {
				t.Errorf("Do: %v", err)
			}
			if id, err := NamespaceID(); err != nil || id != home {
				t.Errorf("a thread was left in %d, %v", id, err)
			}
		})
	}
	wg.Wait()
	if id, err := NamespaceID(); err != nil || id != here {
		t.Errorf("the test is in %d, %v", id, err)
	}
	linktest.Must(t, s.Close(), s.Close())
	if err := s.Do(func() error { t.Error("it was entered"); return nil }); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Do after Close: %v", err)
	}
}

const childVariable = "OVERLAYD_LINK_TEST_VNI"

// A sandbox outlives the mount namespace of the process that made it, as it has one under `ip netns exec` or a service
// manager.
func TestSandboxOutlivesItsMountNamespace(t *testing.T) {
	const host = 1 << 43
	if n := os.Getenv(childVariable); n != "" {
		vni, err := addr.ParseVNI(n)
		linktest.Must(t, err)
		s, adopted, err := OpenSandbox(vni, host)
		linktest.Must(t, err)
		if err := s.Do(func() error { return SetUp(SandboxBridge) }); adopted || err != nil {
			t.Errorf("adopted %v, %v", adopted, err)
		}
		linktest.Must(t, s.Close())
		return
	}
	linktest.Enter(t)
	vni := newVNI()
	cmd := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$")
	cmd.Env = append(os.Environ(), childVariable+"="+vni.String())
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("the child: %v\n%s", err, out)
	}
	s, adopted := open(t, vni, host)
	if !adopted {
		t.Error("it was made anew")
	}
	linktest.Must(t, s.Do(func() error {
		l, err := linkByName(SandboxBridge)
		if err == nil && l.Attrs().RawFlags&unix.IFF_UP == 0 {
			err = errors.New("the bridge is down")
		}
		return err
	}))
}

// A list that was interrupted is asked for again, and one that never is whole is an error and no list.
func TestWholeLists(t *testing.T) {
	asked := 0
	list := func() ([]int, error) {
		if asked++; asked < 3 {
			return []int{1}, netlink.ErrDumpInterrupted
		}
		return []int{1, 2}, nil
	}
	if got, err := whole(list); err != nil || len(got) != 2 || asked != 3 {
		t.Errorf("%v, %v after %d", got, err, asked)
	}
	asked = -1000
	if _, err := whole(list); !errors.Is(err, netlink.ErrDumpInterrupted) || asked != -1000+maxInterrupted {
		t.Errorf("%v after %d", err, asked+1000)
	}
}
