package lab

import (
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// vxlanPort is the UDP port of VXLAN (RFC 7348, section 8).
const vxlanPort = 4789

// deviceName is the interface of a network on its hosts, whether a TAP or a vxlan device.
func deviceName(network string) string { return network + "0" }

// makeKernelVXLAN makes the vxlan device of a host, as one would by hand: learning, and for each peer an
// all-zero entry, to which everything goes that has no entry of its own. The outer UDP checksum is the
// kernel's default: sent over both families, and required over IPv6.
func (l *Lab) makeKernelVXLAN(h *Host, n *NetworkSpec) error {
	size, err := l.scenario.kernelMTU(n)
	if err != nil {
		return err
	}
	dev := &netlink.Vxlan{
		LinkAttrs: netlink.LinkAttrs{Name: deviceName(n.Name), MTU: int(size)},
		VxlanId:   int(n.VNI),
		SrcAddr:   h.spec.underlay(n.Underlay).AsSlice(),
		Port:      vxlanPort,
		Learning:  true,
	}
	if err := h.nl.LinkAdd(dev); err != nil {
		return fmt.Errorf("make the vxlan device %s of %s: %w", dev.Name, h.name, err)
	}
	for _, peer := range l.scenario.peers(n, h.name) {
		entry := &netlink.Neigh{
			LinkIndex:    dev.Index,
			Family:       unix.AF_BRIDGE,
			State:        netlink.NUD_PERMANENT | netlink.NUD_NOARP,
			Flags:        netlink.NTF_SELF,
			IP:           peer.AsSlice(),
			HardwareAddr: make([]byte, 6),
		}
		if err := h.nl.NeighAppend(entry); err != nil {
			return fmt.Errorf("add the peer %v to %s of %s: %w", peer, dev.Name, h.name, err)
		}
	}
	if err := h.up(dev.Name); err != nil {
		return err
	}
	for _, p := range h.overlay[n.Name] {
		if err := h.addAddress(dev.Name, p); err != nil {
			return err
		}
	}
	return nil
}

// overlayPrefixes are the addresses of host number i on a network.
func overlayPrefixes(n *NetworkSpec, i int) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, s := range n.Subnets {
		p, err := overlayAddress(s, i)
		if err != nil {
			return nil, fmt.Errorf("network %s: %v has no room for host number %d", n.Name, s, i+1)
		}
		out = append(out, p)
	}
	return out, nil
}
