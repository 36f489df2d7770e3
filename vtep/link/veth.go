//go:build linux

package link

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/dataplane/addr"
	"github.com/overlayd/overlayd/dataplane/mtu"
)

// ErrNotConnected means that a container has no interface of that ID.
var ErrNotConnected = errors.New("the container's interface is gone")

// maxInterfaces is how many names are tried for an interface.
const maxInterfaces = 1000

// endpointMark is what the alias of a veth begins with at its end in the sandbox; the ID follows.
const endpointMark = "overlayd endpoint "

// Veth says how the interface of a container ought to be.
type Veth struct {
	ID         string // names it across restarts
	Interface  string // "" = the first of eth0, eth1 and so on that is free
	MAC        addr.MAC
	Addresses  []netip.Prefix
	Gateways   []netip.Addr // of default routes
	MTU        int
	TxQueueLen int // frames
	GSOMaxSize int // as in SetGSOMaxSize, where that can be had; 0 = as it is
	// Lowered is what the last Connect returned of the routes whose sizes it has lowered, so that they can grow back.
	Lowered Lowered
}

// Connected is what came of Connect.
type Connected struct {
	Interface string // name in the container
	Made      bool   // it was not there before
	Note      string // what is otherwise than asked for, and left so; "" if nothing is
	// Lowered holds the routes by way of the interface that stated sizes above its MTU, and now do not.
	Lowered Lowered
}

// HostEnd returns the name of the end in the sandbox of the veth with this ID.
func HostEnd(id string) string {
	sum := sha256.Sum256([]byte(id))
	return "v" + hex.EncodeToString(sum[:7]) // 15 bytes, all that a name may have
}

// Connect gives a container an interface whose other end is in the sandbox, or repairs the one that it has. That end
// is for the caller to make a port, by Repair. With create false, the error is ErrNotConnected if there is none. On
// any error a new interface is removed again.
func (s *Sandbox) Connect(c *Namespace, v Veth, create bool) (Connected, error) {
	var out Connected
	if c.ID() == s.ID() {
		return out, fmt.Errorf("%s is the sandbox of the network: state the container's network namespace", c.path)
	}
	index, err := s.peer(c, v.ID)
	if errors.Is(err, ErrNotConnected) && create {
		index, err = s.newVeth(c, v)
		out.Made = err == nil
	}
	if err != nil {
		return out, err
	}
	if err := c.Do(func() error { return configure(index, v, &out) }); err != nil {
		if out.Made {
			err = errors.Join(err, s.Disconnect(v.ID))
		}
		return out, err
	}
	return out, nil
}

// peer returns the index in the container of the interface with this ID. The error is ErrNotConnected if there is
// none; a veth of this ID to another namespace is removed.
func (s *Sandbox) peer(c *Namespace, id string) (index int, err error) {
	err = s.Do(func() error {
		l, err := linkByName(HostEnd(id))
		if errors.Is(err, errNoDevice) {
			return ErrNotConnected
		}
		if err != nil {
			return err
		}
		// Numbers of devices mean nothing in another namespace, so that it takes the number of that, too.
		c.mu.RLock()
		defer c.mu.RUnlock()
		number, err := netlink.GetNetNsIdByFd(c.fd)
		if err != nil {
			return fmt.Errorf("number network namespace %s: %w", c.path, err)
		}
		if l.Attrs().NetNsID == number && number >= 0 && l.Attrs().ParentIndex > 0 {
			index = l.Attrs().ParentIndex
			return nil
		}
		if err := netlink.LinkDel(l); err != nil && !errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("device %q: remove it: %w", l.Attrs().Name, err)
		}
		return ErrNotConnected
	})
	return index, err
}

// newVeth makes a veth pair, the far end straight in the container.
func (s *Sandbox) newVeth(c *Namespace, v Veth) (index int, err error) {
	err = s.Do(func() error {
		c.mu.RLock()
		defer c.mu.RUnlock()
		name := v.Interface
		for i := 0; ; i++ {
			if v.Interface == "" {
				name = fmt.Sprintf("eth%d", i)
			}
			err := netlink.LinkAdd(&netlink.Veth{
				LinkAttrs: netlink.LinkAttrs{Name: HostEnd(v.ID), MTU: v.MTU, TxQLen: v.TxQueueLen},
				PeerName:  name, PeerNamespace: netlink.NsFd(c.fd), PeerMTU: uint32(v.MTU),
				PeerTxQLen: v.TxQueueLen, PeerHardwareAddr: v.MAC[:],
			})
			switch {
			case err == nil:
			case errors.Is(err, unix.EEXIST) && v.Interface == "" && i < maxInterfaces:
				continue
			case errors.Is(err, unix.EEXIST):
				return fmt.Errorf("the container %s has a device %q already: choose another name", c.path, name)
			default:
				return fmt.Errorf("make interface %q of the container %s: %w%s", name, c.path, err, privilegeHint(err))
			}
			break
		}
		l, err := linkByName(HostEnd(v.ID))
		if err == nil {
			if index = l.Attrs().ParentIndex; index <= 0 {
				err = errors.New("the kernel does not say where its other end is")
			} else {
				err = netlink.LinkSetAlias(l, endpointMark+v.ID)
			}
		}
		if err != nil {
			return errors.Join(fmt.Errorf("device %q: %w", HostEnd(v.ID), err), removeDevice(HostEnd(v.ID)))
		}
		return nil
	})
	return index, err
}

// configure brings the interface with this index, in the namespace that the thread is in, to what it ought to be.
func configure(index int, v Veth, out *Connected) error {
	l, err := netlink.LinkByIndex(index)
	if err != nil {
		return fmt.Errorf("find the container's interface, index %d: %w", index, err)
	}
	name := l.Attrs().Name
	out.Interface = name
	if v.Interface != "" && v.Interface != name {
		out.note("the interface is called %s", name)
	}
	if l.Attrs().HardwareAddr.String() != v.MAC.String() {
		if err := SetMAC(name, v.MAC); err != nil {
			return err
		}
	}
	if l.Attrs().MTU != v.MTU {
		if err := SetMTU(name, v.MTU); err != nil {
			return err
		}
	}
	if l.Attrs().TxQLen != v.TxQueueLen {
		if err := SetTxQueueLen(name, v.TxQueueLen); err != nil {
			return err
		}
	}
	if v.GSOMaxSize != 0 && l.Attrs().GSOMaxSize != uint32(v.GSOMaxSize) {
		if err := SetGSOMaxSize(name, v.GSOMaxSize); err != nil && !errors.Is(err, ErrNoGSOMaxSize) {
			return err
		}
	}
	if err := addAddresses(name, v); err != nil {
		return err
	}
	if err := SetUp(name); err != nil {
		return err
	}
	for _, g := range v.Gateways {
		if g.Is6() && v.MTU < int(mtu.MinIPv6) {
			continue
		}
		if err := addDefaultRoute(l, g, out); err != nil {
			return err
		}
	}
	out.Lowered, err = fitRoutes(l, v.MTU, v.Lowered)
	return err
}

// addAddresses gives the interface its addresses. Those of IPv6 wait for an MTU that carries it.
func addAddresses(name string, v Veth) error {
	conf := "net/ipv6/conf/" + name + "/"
	// Routes come from us. The link-local address is made of the MAC: it is the one that others expect there.
	for _, s := range []struct{ name, value string }{{"accept_ra", "0"}, {"addr_gen_mode", "0"}} {
		if err := setting(conf+s.name, s.value); err != nil {
			return err
		}
	}
	for _, p := range v.Addresses {
		if p.Addr().Is6() {
			if v.MTU < int(mtu.MinIPv6) {
				continue
			}
			// A container that was started without IPv6 has it turned off.
			if err := setting(conf+"disable_ipv6", "0"); err != nil {
				return err
			}
		}
		if err := AddAddress(name, p); err != nil {
			return err
		}
	}
	return nil
}

// addDefaultRoute adds a default route by way of g, unless there is one already: a container may have its way to the
// world elsewhere.
func addDefaultRoute(l netlink.Link, g netip.Addr, out *Connected) error {
	r, err := defaultRoute(g)
	if err != nil {
		return err
	}
	if r != nil {
		if r.LinkIndex != l.Attrs().Index || !r.Gw.Equal(g.AsSlice()) {
			out.note("there is a default route already, so none was added by way of %v: see `ip route` in the container", g)
		}
		return nil
	}
	err = netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: everything(g), Gw: g.AsSlice()})
	if err != nil {
		return fmt.Errorf("device %q: add a default route by way of %v: %w", l.Attrs().Name, g, err)
	}
	return nil
}

func (c *Connected) note(format string, args ...any) {
	if c.Note != "" {
		c.Note += "; "
	}
	c.Note += fmt.Sprintf(format, args...)
}

// Disconnect removes the interface with this ID, in the container and here. That there is none is no error.
func (s *Sandbox) Disconnect(id string) error {
	return s.Do(func() error { return removeDevice(HostEnd(id)) })
}

func removeDevice(dev string) error {
	l, err := linkByName(dev)
	if errors.Is(err, errNoDevice) {
		return nil
	}
	if err == nil {
		err = netlink.LinkDel(l)
	}
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("device %q: remove it: %w", dev, err)
	}
	return nil
}

// Endpoints lists the IDs of the containers' interfaces that have an end in the sandbox.
func (s *Sandbox) Endpoints() ([]string, error) {
	var ids []string
	err := s.Do(func() error {
		links, err := netlink.LinkList()
		if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
			return fmt.Errorf("list the devices of sandbox %s: %w", s.name, err)
		}
		for _, l := range links {
			if id, ok := strings.CutPrefix(l.Attrs().Alias, endpointMark); ok && l.Attrs().Name == HostEnd(id) {
				ids = append(ids, id)
			}
		}
		return nil
	})
	return ids, err
}
