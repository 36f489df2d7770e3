//go:build linux

package link

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/dataplane/addr"
	"github.com/overlayd/overlayd/vtep/link/linktest"
)

// openRelay makes a relay that must not fail, and looks whether both ends are where it says.
func openRelay(t *testing.T, s *Sandbox, vni addr.VNI) *Relay {
	t.Helper()
	r, err := s.OpenRelay(vni)
	linktest.Must(t, err)
	if r.Name != "ovl-"+vni.String() {
		t.Errorf("the relay of VNI %v is called %s", vni, r.Name)
	}
	if l := linktest.Device(t, r.Name); l.Attrs().Index != r.Outside || l.Attrs().ParentIndex != r.Inside {
		t.Errorf("on the host %+v, stated %+v", l.Attrs(), r)
	}
	linktest.In(t, s.Name(), func() {
		if l := linktest.Device(t, "host0"); l.Attrs().Index != r.Inside || l.Attrs().ParentIndex != r.Outside {
			t.Errorf("in the sandbox %+v, stated %+v", l.Attrs(), r)
		}
	})
	return r
}

// has reports whether the namespace that the test is in has a device of that name.
func has(t *testing.T, name string) bool {
	t.Helper()
	return slices.Contains(linktest.Devices(t), name)
}

// checkSilent checks an end of a relay, in whose namespace the test is.
func checkSilent(t *testing.T, name string, vni addr.VNI) {
	t.Helper()
	l := linktest.Device(t, name)
	a := l.Attrs()
	if l.Type() != "veth" || a.MTU != 65535 || a.Alias != "overlayd relay of VNI "+vni.String() || a.MasterIndex != 0 {
		t.Errorf("%s: type %s, %+v", name, l.Type(), a)
	}
	if a.RawFlags&unix.IFF_UP == 0 || a.RawFlags&unix.IFF_NOARP == 0 {
		t.Errorf("%s: flags %#x", name, a.RawFlags)
	}
	if addrs, err := netlink.AddrList(l, netlink.FAMILY_ALL); err != nil || len(addrs) > 0 {
		t.Errorf("%s has addresses %v, %v", name, addrs, err)
	}
	for f, want := range map[string]string{
		"ipv4/conf/" + name + "/forwarding":    "0",
		"ipv6/conf/" + name + "/forwarding":    "0",
		"ipv6/conf/" + name + "/accept_ra":     "0",
		"ipv6/conf/" + name + "/addr_gen_mode": "1",
		"ipv6/conf/" + name + "/disable_ipv6":  "1",
	} {
		b, err := os.ReadFile("/proc/sys/net/" + f)
		if errors.Is(err, os.ErrNotExist) && strings.HasPrefix(f, "ipv6") {
			continue // a kernel without IPv6
		}
		if err != nil || strings.TrimSpace(string(b)) != want {
			t.Errorf("%s is %s, %v", f, b, err)
		}
	}
	// Who is a member of a group has to say so, but for that of all nodes (RFC 3810, section 6).
	groups, err := os.ReadFile("/proc/thread-self/net/igmp6")
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	for line := range strings.Lines(string(groups)) {
		if f := strings.Fields(line); f[1] == name && !strings.HasSuffix(f[2], "00000001") {
			t.Errorf("%s is in a group of IPv6: %s", name, line)
		}
	}
}

// A relay is silent, whatever the host and an adopted sandbox give to new devices.
func TestRelayIsSilent(t *testing.T) {
	linktest.Enter(t)
	vni := newVNI()
	s, _ := open(t, vni, 1<<44)
	busy := func() {
		for name, value := range map[string]string{
			"net/ipv4/ip_forward": "1", "net/ipv4/conf/default/forwarding": "1", "net/ipv6/conf/all/forwarding": "1",
			"net/ipv6/conf/default/forwarding": "1", "net/ipv6/conf/default/accept_ra": "2",
			"net/ipv6/conf/default/addr_gen_mode": "0", "net/ipv6/conf/default/disable_ipv6": "0",
		} {
			linktest.Setting(t, name, value)
		}
	}
	busy()
	linktest.In(t, s.Name(), busy)
	r := openRelay(t, s, vni)
	checkSilent(t, r.Name, vni)
	linktest.In(t, s.Name(), func() { checkSilent(t, "host0", vni) })
	// Nor does it get an address once somebody turns IPv6 on everywhere.
	linktest.Setting(t, "net/ipv6/conf/all/disable_ipv6", "0")
	linktest.Setting(t, "net/ipv6/conf/"+r.Name+"/disable_ipv6", "0")
	if addrs, err := netlink.AddrList(linktest.Device(t, r.Name), netlink.FAMILY_ALL); err != nil || len(addrs) > 0 {
		t.Errorf("with IPv6 on it has addresses %v, %v", addrs, err)
	}
}

// packetSocket opens a socket for whole frames of the device, in whose namespace the test is.
func packetSocket(t *testing.T, index int) int {
	t.Helper()
	all := uint16(unix.ETH_P_ALL)<<8 | uint16(unix.ETH_P_ALL)>>8
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(all))
	linktest.Must(t, err)
	t.Cleanup(func() { unix.Close(fd) })
	linktest.Must(t, unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: index}))
	timeout := unix.NsecToTimeval(linktest.Patience.Nanoseconds())
	linktest.Must(t, unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout))
	return fd
}

// The largest packet gets through, both ways, and is the first thing that is heard there.
func TestRelayCarriesLargePackets(t *testing.T) {
	linktest.Enter(t)
	vni := newVNI()
	s, _ := open(t, vni, 1<<44)
	r := openRelay(t, s, vni)
	outside, inside := packetSocket(t, r.Outside), -1
	linktest.In(t, s.Name(), func() { inside = packetSocket(t, r.Inside) })
	frame := make([]byte, 14+65535)
	copy(frame, []byte{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x88, 0xb5})
	frame[len(frame)-1] = 77
	for name, way := range map[string][2]int{"inwards": {outside, inside}, "outwards": {inside, outside}} {
		_, err := unix.Write(way[0], frame)
		linktest.Must(t, err)
		got := make([]byte, 1<<17)
		n, from, err := unix.Recvfrom(way[1], got, 0)
		for err == nil && from.(*unix.SockaddrLinklayer).Pkttype == unix.PACKET_OUTGOING { // its own
			n, from, err = unix.Recvfrom(way[1], got, 0)
		}
		if err != nil || !bytes.Equal(got[:n], frame) {
			t.Errorf("%s: %d bytes, % x..., %v", name, n, got[:min(n, 20)], err)
		}
	}
}

// What a process left that ended in whatever way is replaced, also if it did not get far, and CloseRelay leaves
// nothing.
func TestRelayIsMadeAnewAndRemoved(t *testing.T) {
	linktest.Enter(t)
	vni := newVNI()
	s, _ := open(t, vni, 1<<44)
	linktest.Must(t, s.CloseRelay()) // there is none
	first := openRelay(t, s, vni)
	linktest.Must(t, s.Close())
	s, adopted := open(t, vni, 1<<44)
	second := openRelay(t, s, vni)
	if !adopted || first.Outside == second.Outside {
		t.Errorf("adopted %v; %+v, then %+v", adopted, first, second)
	}
	linktest.Must(t, s.CloseRelay(), s.addRelay(second.Name)) // as if killed just then
	third := openRelay(t, s, vni)
	checkSilent(t, third.Name, vni)
	for range 2 {
		linktest.Must(t, s.CloseRelay())
		if has(t, third.Name) {
			t.Error("it is still there on the host")
		}
		linktest.In(t, s.Name(), func() {
			if has(t, "host0") {
				t.Error("it is still there in the sandbox")
			}
		})
	}
}

// A relay whose sandbox lost its name, and is held by a process in it, does not keep a new sandbox from having one.
func TestRelayOfALostSandboxIsReplaced(t *testing.T) {
	linktest.Enter(t)
	vni := newVNI()
	lost, _ := open(t, vni, 1<<44)
	openRelay(t, lost, vni)
	linktest.Delete(t, lost.Name())
	s, adopted := open(t, vni, 1<<44)
	if adopted {
		t.Fatal("the sandbox still has its name")
	}
	openRelay(t, s, vni)
}

// A name that somebody else's device has is left to that, and the error says which and what to do.
func TestRelayNameTaken(t *testing.T) {
	linktest.Enter(t)
	vni := newVNI()
	s, _ := open(t, vni, 1<<44)
	name := "ovl-" + vni.String()
	bridge := func(name, alias string) netlink.Link {
		t.Helper()
		linktest.Must(t, netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: name}}))
		linktest.Must(t, netlink.LinkSetAlias(linktest.Device(t, name), alias))
		return linktest.Device(t, name)
	}
	refused := func(what string, words ...string) {
		t.Helper()
		_, err := s.OpenRelay(vni)
		for _, w := range append(words, vni.String()) {
			if err == nil || !strings.Contains(err.Error(), w) {
				t.Errorf("%s: %q is not in %v", what, w, err)
			}
		}
	}
	other := bridge(name, "overlayd relay of VNI "+vni.String())
	refused("a bridge", name, "a device of type bridge", "ip link delete "+name)
	linktest.Must(t, netlink.LinkDel(other))

	addVeth(t, name, "far0")
	linktest.Must(t, netlink.LinkSetAlias(linktest.Device(t, name), "mine"))
	refused("a veth", "a device of type veth", `"mine"`, "ip link delete "+name)
	linktest.Must(t, netlink.LinkDel(linktest.Device(t, name)))

	other = bridge("eth9", "")
	linktest.Must(t, netlink.LinkAddAltName(other, name))
	refused("an alternative name", `"eth9"`, "ip link property del dev eth9 altname "+name)
	if !has(t, "eth9") {
		t.Error("the device is gone")
	}
	linktest.Must(t, netlink.LinkDel(other))

	linktest.In(t, s.Name(), func() { other = bridge("host0", "") })
	refused("a bridge in the sandbox", `"host0"`, "ip -n "+s.Name()+" link delete host0")
	linktest.Must(t, s.CloseRelay())
	linktest.In(t, s.Name(), func() { linktest.Must(t, netlink.LinkDel(other)) })

	openRelay(t, s, vni)
}

// An end that cannot be made silent is not left half made.
func TestRelayLeavesNothingAtAnError(t *testing.T) {
	linktest.Enter(t)
	vni := newVNI()
	s, _ := open(t, vni, 1<<44)
	linktest.Must(t, s.Close())
	if _, err := s.OpenRelay(vni); !errors.Is(err, os.ErrClosed) || has(t, "ovl-"+vni.String()) {
		t.Errorf("with the sandbox closed: %v, devices %v", err, linktest.Devices(t))
	}
	if err := s.addRelay("ovl-" + vni.String()); !errors.Is(err, os.ErrClosed) {
		t.Errorf("closed meanwhile: %v", err)
	}
	s, _ = open(t, vni, 1<<44)
	r := &Relay{Name: "ovl-" + vni.String()}
	if err := s.newRelay(r, strings.Repeat("x", 1<<10)); err == nil { // more than an alias holds
		t.Error("there was no error")
	}
	if has(t, r.Name) {
		t.Error("it is still there")
	}
}

// Two networks of a host have a relay each. What is done to one sandbox leaves the relay of the other alone, and that
// ends with its own.
func TestRelaysOfTwoSandboxes(t *testing.T) {
	linktest.Enter(t)
	vnis := [2]addr.VNI{newVNI(), newVNI()}
	var sandboxes [2]*Sandbox
	var relays [2]*Relay
	for i, vni := range vnis {
		sandboxes[i], _ = open(t, vni, 1<<44)
		relays[i] = openRelay(t, sandboxes[i], vni)
	}
	linktest.Must(t, sandboxes[0].Remove())
	if has(t, relays[0].Name) || !has(t, relays[1].Name) {
		t.Errorf("after one sandbox is gone the host has %v", linktest.Devices(t))
	}
	linktest.Must(t, sandboxes[1].CloseRelay())
	if has(t, relays[1].Name) {
		t.Errorf("after the other is closed the host has %v", linktest.Devices(t))
	}
}

// Repair takes a relay for nothing of its own, and the sandbox is found again with it.
func TestRepairLeavesTheRelayAlone(t *testing.T) {
	linktest.Enter(t)
	vni := newVNI()
	s, _ := open(t, vni, 1<<44)
	r := openRelay(t, s, vni)
	want := Layout{Bridge: Bridge{MAC: addr.MAC{2, 'o', 'v', 1, 2, 3}, MTU: 1450}}
	for round, least := range []int{1, 0} {
		if done, err := s.Repair(want); err != nil || len(done) < least || round > 0 && len(done) > 0 {
			t.Errorf("round %d: %q repaired, %v", round, done, err)
		}
	}
	linktest.In(t, s.Name(), func() {
		checkSilent(t, "host0", vni)
		ports, err := os.ReadDir(filepath.Join("/sys/class/net", SandboxBridge, "brif"))
		if err == nil && len(ports) > 0 {
			t.Errorf("the bridge has ports %v", ports)
		}
	})
	if l := linktest.Device(t, r.Name); l.Attrs().Index != r.Outside {
		t.Errorf("it was made anew: %+v, before %+v", l.Attrs(), r)
	}
	if ids, err := s.Endpoints(); err != nil || len(ids) > 0 {
		t.Errorf("endpoints %q, %v", ids, err)
	}
	linktest.Must(t, s.Close())
	again, adopted := open(t, vni, 1<<44)
	if !adopted || again.ID() != s.ID() {
		t.Errorf("sandbox %s, adopted %v", again.Name(), adopted)
	}
}
