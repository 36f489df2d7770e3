//go:build linux

package link

import (
	"errors"
	"fmt"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/dataplane/addr"
)

const (
	// relayInside is the name of a relay's end in the sandbox.
	relayInside = "host0"
	// relayPrefix is what the name of its end on the host begins with; the VNI follows, at most 8 digits.
	relayPrefix = "ovl-"
	// relayMTU is the largest MTU of a veth: which packets pass is for those to say that redirect them.
	relayMTU = 65535
)

// relaySettings keeps both ends of a relay from saying anything, and from taking what is on the way for their own.
// Where somebody turns IPv6 on again for all devices, there is still no address and no route.
var relaySettings = [...]struct{ name, value string }{
	{"net/ipv4/conf/%s/forwarding", "0"},
	{"net/ipv6/conf/%s/forwarding", "0"},
	{"net/ipv6/conf/%s/accept_ra", "0"},
	{"net/ipv6/conf/%s/addr_gen_mode", "1"}, // no link-local address
	{"net/ipv6/conf/%s/disable_ipv6", "1"},
}

// Relay is a veth pair between a sandbox and the network namespace of the host, for packets that BPF programs redirect
// from the one to the other. It is no port of the bridge, it has no addresses, and the kernel sends nothing of its own
// there. What goes in at one end comes out at the other, up to 65535 bytes behind the Ethernet header, superframes
// included. It outlives the process.
type Relay struct {
	Inside, Outside int    // indices of its ends, in the sandbox and on the host
	Name            string // of its end on the host
}

// OpenRelay makes the relay of the sandbox, in place of one that is there. The host is the network namespace of the
// calling thread, and vni is that of the sandbox. On any error there is no relay.
func (s *Sandbox) OpenRelay(vni addr.VNI) (*Relay, error) {
	r := &Relay{Name: relayPrefix + vni.String()}
	alias := "overlayd relay of VNI " + vni.String()
	err := errors.Join(s.CloseRelay(), removeLeftRelay(r.Name, alias))
	if err == nil {
		err = s.newRelay(r, alias)
	}
	if err != nil {
		return nil, fmt.Errorf("open the relay of VNI %v: %w", vni, err)
	}
	return r, nil
}

// CloseRelay removes the relay of the sandbox, both ends of it. That there is none is no error.
func (s *Sandbox) CloseRelay() error {
	return s.Do(func() error {
		l, err := linkByName(relayInside)
		if errors.Is(err, errNoDevice) || err == nil && l.Type() != "veth" {
			return nil // what else has the name is in the way of OpenRelay only, which says so
		}
		if err == nil {
			err = netlink.LinkDel(l)
		}
		if err != nil && !errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("device %q of sandbox %s: remove it: %w%s", relayInside, s.name, err, privilegeHint(err))
		}
		return nil
	})
}

// Connects reports whether the end of a relay with this index is there and up, and the other one too: a veth has a carrier only
// then.
func Connects(index int) bool {
	const works = unix.IFF_UP | unix.IFF_LOWER_UP
	l, err := netlink.LinkByIndex(index)
	return err == nil && l.Attrs().RawFlags&works == works
}

// removeLeftRelay removes a relay of that name whose sandbox is not ours any more: somebody took its name away, and a
// process in it, or the kernel that is about to remove it, keeps it.
func removeLeftRelay(name, alias string) error {
	l, err := linkByName(name)
	if errors.Is(err, errNoDevice) || err == nil && (l.Type() != "veth" || l.Attrs().Alias != alias) {
		return nil
	}
	if err == nil {
		err = netlink.LinkDel(l)
	}
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("device %q: remove it: %w%s", name, err, privilegeHint(err))
	}
	return nil
}

// newRelay makes the pair, the far end straight in the sandbox, and notes the indices in r.
func (s *Sandbox) newRelay(r *Relay, alias string) error {
	if err := s.addRelay(r.Name); err != nil {
		return err
	}
	l, err := linkByName(r.Name)
	if err == nil {
		r.Outside, r.Inside = l.Attrs().Index, l.Attrs().ParentIndex
		err = prepareRelayEnd(l, alias)
	}
	if err != nil {
		err = fmt.Errorf("device %q: %w", r.Name, err)
	} else {
		err = s.Do(func() error {
			l, err := netlink.LinkByIndex(r.Inside)
			if err == nil {
				err = prepareRelayEnd(l, alias)
			}
			if err != nil {
				return fmt.Errorf("device %q of sandbox %s: %w", relayInside, s.name, err)
			}
			return nil
		})
	}
	if err != nil {
		return errors.Join(err, s.CloseRelay())
	}
	return nil
}

// addRelay makes the pair, neither end of which is up.
func (s *Sandbox) addRelay(name string) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.fd < 0 {
		return os.ErrClosed
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = name, relayMTU
	pair := netlink.NewVeth(attrs)
	pair.PeerName, pair.PeerNamespace, pair.PeerMTU = relayInside, netlink.NsFd(s.fd), relayMTU
	err := netlink.LinkAdd(pair)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EEXIST):
		if who := nameOwner(name); who != "" {
			return fmt.Errorf("device %q: make it: %s", name, who)
		}
		return fmt.Errorf("device %q of sandbox %s: make it: another device has the name: remove it: ip -n %s link delete %s", relayInside, s.name, s.name, relayInside)
	default:
		return fmt.Errorf("device %q: make it, and %q in sandbox %s: %w%s", name, relayInside, s.name, err, privilegeHint(err))
	}
}

// nameOwner says which device has the name, be it as an alternative one, and what the operator can do about that. It is
// "" if there is none.
func nameOwner(name string) string {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return ""
	}
	if own := l.Attrs().Name; own != name {
		return fmt.Sprintf("it is another name of device %q: remove it there: ip link property del dev %s altname %s", own, own, name)
	}
	alias := ""
	if a := l.Attrs().Alias; a != "" {
		alias = fmt.Sprintf(" with the alias %q", a)
	}
	return fmt.Sprintf("%s%s has the name: rename that, or remove it: ip link delete %s", DeviceOwner(name), alias, name)
}

// prepareRelayEnd silences an end of a relay and brings it up.
func prepareRelayEnd(l netlink.Link, alias string) error {
	for _, s := range relaySettings {
		if err := setting(fmt.Sprintf(s.name, l.Attrs().Name), s.value); err != nil {
			return err
		}
	}
	if err := netlink.LinkSetAlias(l, alias); err != nil {
		return fmt.Errorf("set its alias: %w", err)
	}
	if err := netlink.LinkSetARPOff(l); err != nil {
		return fmt.Errorf("turn ARP off: %w", err)
	}
	if err := netlink.LinkSetUp(l); err != nil {
		return fmt.Errorf("bring it up: %w", err)
	}
	return nil
}
