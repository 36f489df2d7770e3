package compare

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/bench/lab"
	"github.com/overlayd/overlayd/dataplane/mtu"
	"github.com/overlayd/overlayd/vtep/link"
)

// vxlanPort is the UDP port of VXLAN (RFC 7348, section 8).
const vxlanPort = 4789

// space is a network namespace without a name: it ends with this process at the latest, and what is in it with it.
type space struct {
	*link.Namespace
	handle netns.NsHandle
}

func newSpace() (*space, error) {
	s := &space{handle: netns.None()}
	made := make(chan error, 1)
	go func() {
		// Never unlocked: the thread, which lies in the new namespace, ends with the goroutine.
		runtime.LockOSThread()
		var err error
		if s.handle, err = netns.New(); err == nil {
			s.Namespace, err = link.OpenNamespace("/proc/thread-self/ns/net")
		}
		made <- err
	}()
	if err := <-made; err != nil {
		return nil, errors.Join(fmt.Errorf("make a network namespace: %w", err), s.close())
	}
	return s, nil
}

func (s *space) close() error {
	var err error
	if s.Namespace != nil {
		err = s.Namespace.Close()
	}
	if s.handle.IsOpen() {
		err = errors.Join(err, s.handle.Close())
	}
	return err
}

// cabin is a container on a host, and the sandbox of its network there: what container networks that use the kernel's
// vxlan device make.
type cabin struct {
	sandbox, container *space
	address            netip.Addr // of the container
}

func (c *cabin) close() error {
	var errs []error
	for _, s := range []*space{c.container, c.sandbox} {
		if s != nil {
			errs = append(errs, s.close())
		}
	}
	return errors.Join(errs...)
}

// Names in a cabin.
const (
	cabinBridge = "br0"
	cabinVXLAN  = "vxlan0"
	cabinPort   = "veth0"
	cabinDevice = "eth0" // in the container
)

// newCabin puts a container on a host: veth, bridge and vxlan device in a sandbox. The vxlan device is made on the
// host and moved, so that its socket stays there. peer is the other host.
func newCabin(host, peer *lab.Host, number int) (*cabin, error) {
	c := &cabin{}
	at := subnetOf(networkVNI).Addr()
	for range number {
		at = at.Next()
	}
	c.address = at
	err := c.build(host, peer)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("put a container on %s: %w", host.Name(), err), c.close())
	}
	return c, nil
}

func (c *cabin) build(host, peer *lab.Host) error {
	wire, err := host.MTU(underlayDevice)
	if err != nil {
		return err
	}
	size, err := mtu.OverlayOf(mtu.PathMTU(wire), mtu.IPv4)
	if err != nil {
		return err
	}
	if c.sandbox, err = newSpace(); err != nil {
		return err
	}
	if c.container, err = newSpace(); err != nil {
		return err
	}
	if err := host.Do(func() error { return c.vxlan(host, int(size)) }); err != nil {
		return fmt.Errorf("make its vxlan device: %w", err)
	}
	if err := c.sandbox.Do(func() error { return c.join(peer, int(size)) }); err != nil {
		return fmt.Errorf("join it with its vxlan device: %w", err)
	}
	if err := c.container.Do(c.settle); err != nil {
		return fmt.Errorf("give it the address %v: %w", c.address, err)
	}
	return nil
}

// vxlan runs on the host.
func (c *cabin) vxlan(host *lab.Host, size int) error {
	dev := &netlink.Vxlan{
		LinkAttrs: netlink.LinkAttrs{Name: cabinVXLAN, MTU: size},
		VxlanId:   networkVNI,
		SrcAddr:   host.Underlay()[0].Addr().AsSlice(),
		Port:      vxlanPort,
		Learning:  true,
	}
	if err := netlink.LinkAdd(dev); err != nil {
		return err
	}
	if err := netlink.LinkSetNsFd(dev, int(c.sandbox.handle)); err != nil {
		return errors.Join(err, netlink.LinkDel(dev))
	}
	return nil
}

// quieten keeps the namespace of the calling thread from doing more than it is measured for: frames on a bridge pass no
// packet filter, and no device announces itself.
func quieten() error {
	for _, name := range []string{"bridge/bridge-nf-call-iptables", "bridge/bridge-nf-call-arptables", "ipv6/conf/all/disable_ipv6"} {
		value := "0"
		if strings.HasSuffix(name, "disable_ipv6") {
			value = "1"
		}
		// A kernel without the one or the other has nothing to keep quiet.
		if err := os.WriteFile(filepath.Join("/proc/sys/net", name), []byte(value), 0); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

// join runs in the sandbox.
func (c *cabin) join(peer *lab.Host, size int) error {
	if err := quieten(); err != nil {
		return err
	}
	snooping := false // as in the sandboxes of overlayd
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: cabinBridge, MTU: size}, MulticastSnooping: &snooping}
	if err := netlink.LinkAdd(bridge); err != nil {
		return err
	}
	veth := &netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: cabinPort, MTU: size},
		PeerName:  cabinDevice, PeerNamespace: netlink.NsFd(int(c.container.handle)), PeerMTU: uint32(size),
	}
	if err := netlink.LinkAdd(veth); err != nil {
		return err
	}
	vxlan, err := netlink.LinkByName(cabinVXLAN)
	if err != nil {
		return err
	}
	// As the lab has it for hosts: an all-zero entry, to which everything goes that has no entry of its own.
	if err := netlink.NeighAppend(&netlink.Neigh{
		LinkIndex:    vxlan.Attrs().Index,
		Family:       unix.AF_BRIDGE,
		State:        netlink.NUD_PERMANENT | netlink.NUD_NOARP,
		Flags:        netlink.NTF_SELF,
		IP:           peer.Underlay()[0].Addr().AsSlice(),
		HardwareAddr: make([]byte, 6),
	}); err != nil {
		return fmt.Errorf("add the peer: %w", err)
	}
	for _, l := range []netlink.Link{veth, vxlan} {
		if err := netlink.LinkSetMaster(l, bridge); err != nil {
			return err
		}
	}
	return errors.Join(netlink.LinkSetUp(vxlan), netlink.LinkSetUp(veth), netlink.LinkSetUp(bridge))
}

// settle runs in the container.
func (c *cabin) settle() error {
	if err := quieten(); err != nil {
		return err
	}
	eth, err := netlink.LinkByName(cabinDevice)
	if err != nil {
		return err
	}
	a := &netlink.Addr{IPNet: &net.IPNet{IP: c.address.AsSlice(), Mask: net.CIDRMask(subnetOf(networkVNI).Bits(), c.address.BitLen())}}
	return errors.Join(netlink.AddrAdd(eth, a), netlink.LinkSetUp(eth))
}
