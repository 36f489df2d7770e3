package interop

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/bench/load"
	"github.com/overlayd/overlayd/vtep/link"
	"github.com/overlayd/overlayd/vtep/link/linktest"
)

// moves takes an endpoint away here and adds it there, with the same name and address, over and over. Everybody has to
// find it where it is, and only there.
func moves(t *testing.T, all []*member, from []*container) {
	linktest.Lock(t)
	ip := netip.MustParseAddr("10.42.0.77")
	homes := all[2:5]
	var places []string
	for range homes {
		places = append(places, linktest.Named(t, "roam"))
	}
	asker := all[0] // has no part in the network
	for i := range 6 {
		here, m := places[i%3], homes[i%3]
		m.ctl("endpoint", "add", network, "--netns", here, "--name", "roamer", "--ip", ip.String())
		if i == 0 {
			m.refuses([]string{"roamer"}, "endpoint", "add", network, "--netns", places[1], "--name", "roamer")
			homes[1].refuses([]string{ip.String(), "roamer"}, "endpoint", "add", network, "--netns", places[1], "--ip", ip.String())
		}
		began := time.Now()
		for _, c := range from {
			settled(t, c.name+" to find what has moved", func() (bool, string) {
				r, err := load.Ping(within(t), load.PingConfig{From: c, To: ip, Timeout: 200 * time.Millisecond})
				return err == nil && r.Received == 1, fmt.Sprintf("move %d: %+v, %v", i, r, err)
			})
		}
		if took := time.Since(began); took > 15*time.Second {
			t.Errorf("a move was in force after %v", took)
		}
		// The copies agree on who has it: exactly one VTEP, or this host.
		for _, h := range homes {
			mac := macOf(t, m, "roamer")
			settled(t, "the tables of "+h.host.Name(), func() (bool, string) {
				rows := slices.DeleteFunc(fdbOf(t, h.socket, network), func(row string) bool { return !strings.HasPrefix(row, mac) })
				want := mac + " " + m.address()
				if h == m {
					return len(rows) == 0 || len(rows) == 1 && !strings.Contains(rows[0], homes[(i+1)%3].address()), fmt.Sprint(rows)
				}
				return slices.Equal(rows, []string{want}), fmt.Sprintf("%q, want %q", rows, want)
			})
		}
		if i%2 == 0 {
			m.ctl("endpoint", "rm", network, "roamer")
		} else {
			asker.ctl("endpoint", "rm", network, "roamer") // by a manager that does not have it
		}
		settled(t, "its interface to go", func() (bool, string) {
			var names []string
			ns, err := link.OpenNamespace(here)
			if err != nil {
				return false, err.Error()
			}
			defer ns.Close()
			err = ns.Do(func() error {
				links, err := netlink.LinkList()
				for _, l := range links {
					names = append(names, l.Attrs().Name)
				}
				return err
			})
			return err == nil && slices.Equal(names, []string{"lo"}), fmt.Sprint(names, err)
		})
	}
}

// macOf returns the MAC address of an endpoint, as a node lists it.
func macOf(t *testing.T, m *member, name string) string {
	t.Helper()
	for _, line := range lines(m.ctl("endpoint", "ls", network)) {
		if f := strings.Fields(line); slices.Contains(f, name) {
			for _, x := range f {
				if strings.Count(x, ":") == 5 {
					return x
				}
			}
		}
	}
	t.Fatalf("no endpoint %s", name)
	return ""
}

// heals breaks by hand what the daemon has made in a sandbox, one thing after the other. It has to be put right within
// five seconds, and told of.
func heals(t *testing.T, m *member, here, there *container) {
	number := m.vniOf(network)
	inSandbox := func(t *testing.T, f func(port netlink.Link) error) {
		t.Helper()
		on(t, m.host, func() error {
			host, err := link.NamespaceID()
			if err != nil {
				return err
			}
			s, adopted, err := link.OpenSandbox(number, host)
			if err != nil {
				return err
			}
			defer s.Close()
			if !adopted {
				return errors.Join(errors.New("there was no sandbox"), s.Remove())
			}
			return s.Do(func() error {
				links, err := netlink.LinkList()
				if err != nil {
					return err
				}
				for _, l := range links {
					if l.Type() == "veth" && l.Attrs().MasterIndex != 0 { // a port, not the relay
						return f(l)
					}
				}
				return errors.New("the sandbox has no veth")
			})
		})
	}
	mac := here.mac(t)
	entry := func(port netlink.Link) *netlink.Neigh {
		return &netlink.Neigh{LinkIndex: port.Attrs().Index, Family: unix.AF_BRIDGE, HardwareAddr: mac[:], State: netlink.NUD_NOARP, Flags: netlink.NTF_MASTER}
	}
	for name, harm := range map[string]func(netlink.Link) error{
		"the FDB entry of the bridge":  func(l netlink.Link) error { return netlink.NeighDel(entry(l)) },
		"an FDB entry that leads away": func(l netlink.Link) error { return learned(l, mac[:]) },
		"flags and devices": func(l netlink.Link) error {
			return errors.Join(netlink.LinkSetMTU(l, 600), netlink.LinkSetNoMaster(l), netlink.LinkSetDown(l), link.SetDown(link.SandboxBridge))
		},
	} {
		t.Run(name, func(t *testing.T) {
			said := strings.Count(m.daemon.log(), "has been put right")
			inSandbox(t, harm)
			began := time.Now()
			settled(t, "it to be told of", func() (bool, string) {
				return strings.Count(m.daemon.log(), "has been put right") > said, "it is not"
			})
			settled(t, "the container to be reached again", func() (bool, string) {
				r, err := load.Ping(within(t), load.PingConfig{From: there, To: here.ip, Size: 1300, Timeout: 100 * time.Millisecond})
				return err == nil && r.Received == 1, fmt.Sprint(r, err)
			})
			if took := time.Since(began); took > 10*time.Second { // on a machine that is busy as well
				t.Errorf("it took %v, and 5 s are promised", took)
			}
			inSandbox(t, func(port netlink.Link) error {
				entries, err := netlink.NeighListExecute(netlink.Ndmsg{Family: unix.AF_BRIDGE})
				if err == nil && !slices.ContainsFunc(entries, func(e netlink.Neigh) bool {
					return e.LinkIndex == port.Attrs().Index && e.HardwareAddr.String() == mac.String() && e.Flags&netlink.NTF_STICKY != 0
				}) {
					err = errors.New("the bridge does not know where the container is")
				}
				return err
			})
		})
	}
}

// learned makes the bridge believe that a station is at another port than it is.
func learned(port netlink.Link, mac []byte) error {
	links, err := netlink.LinkList()
	if err != nil {
		return err
	}
	for _, l := range links {
		if l.Type() == "tuntap" {
			return errors.Join(
				netlink.NeighDel(&netlink.Neigh{LinkIndex: port.Attrs().Index, Family: unix.AF_BRIDGE, HardwareAddr: mac, State: netlink.NUD_NOARP, Flags: netlink.NTF_MASTER}),
				netlink.NeighSet(&netlink.Neigh{LinkIndex: l.Attrs().Index, Family: unix.AF_BRIDGE, HardwareAddr: mac, State: netlink.NUD_NOARP, Flags: netlink.NTF_MASTER}))
		}
	}
	return errors.New("the sandbox has no TAP")
}
