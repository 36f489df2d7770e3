package guard

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	nlsocket "github.com/mdlayher/netlink"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/dataplane/addr"
	"github.com/overlayd/overlayd/dataplane/forward"
)

// Port is the host's end of a container's veth, and what the container may call itself.
type Port struct {
	Device    string
	MAC       addr.MAC
	Addresses []netip.Addr
}

// Count is what was dropped for one reason.
type Count struct {
	Frames uint64
	Bytes  uint64 // without what the kernel takes off at ingress: the Ethernet header
}

const (
	tableName = "overlayd"
	// Each port has an empty chain beside that with the rules. Its name holds the digest of the rules, so that whether
	// they are there is seen without reading them.
	markPrefix = "rules_"
)

// reasons are those that frames are dropped for here.
var reasons = [...]forward.DropReason{
	forward.SourceSpoofed, forward.ProtocolRefused, forward.SourceIPSpoofed, forward.ARPSpoofed,
	forward.NDSpoofed, forward.RogueRouter, forward.RogueDHCP,
}

// buffer bounds, in bytes, what the kernel holds of one transaction at a time: all of its messages, and an answer to each. A
// port has some sixty; the default buffers of a socket have no room for those of a few ports that are new at the same time.
const buffer = 256 << 20

func open() (*nftables.Conn, error) {
	conn, err := nftables.New(nftables.WithSockOptions(func(c *nlsocket.Conn) error {
		return errors.Join(c.SetReadBuffer(buffer), c.SetWriteBuffer(buffer))
	}))
	if err != nil {
		return nil, fmt.Errorf("opening nftables: %w", err)
	}
	return conn, nil
}

// Apply makes the rules those for ports and reports whether a port had others before, or none. Ports whose device is not
// there are passed over, and rules whose device is gone are removed. Devices that have rules and are not mentioned keep
// them as long as they are there: so a daemon that begins anew leaves no gap. On an error nothing has changed.
func Apply(ports []Port) (changed bool, err error) {
	for range attempts {
		// A device that goes away between the look and the write takes the whole transaction along.
		if changed, err = apply(ports); !errors.Is(err, unix.ENOENT) {
			break
		}
	}
	return changed, err
}

// attempts is how often Apply tries while devices come and go.
const attempts = 3

func apply(ports []Port) (changed bool, err error) {
	conn, err := open()
	if err != nil {
		return false, err
	}
	chains, err := chainsOf(conn)
	if err != nil {
		return false, err
	}
	present, err := devices(ports, chains)
	if err != nil {
		return false, err
	}
	ports = slices.DeleteFunc(slices.Clone(ports), func(p Port) bool { return !present[p.Device] })
	fresh, stale := compare(chains, ports, present)
	if len(fresh)+len(stale) == 0 {
		return false, nil
	}
	t := &nftables.Table{Family: nftables.TableFamilyNetdev, Name: tableName}
	conn.AddTable(t) // which is no error if it is there, and then keeps its counters
	for _, c := range stale {
		conn.FlushChain(c)
	}
	for _, c := range stale {
		conn.DelChain(c)
	}
	for _, r := range reasons {
		conn.AddObj(&nftables.CounterObj{Table: t, Name: r.String()})
	}
	for i := range fresh {
		conn.AddChain(&nftables.Chain{Table: t, Name: fresh[i].mark()})
		if err := addPort(conn, t, &fresh[i]); err != nil {
			return false, err
		}
	}
	if err := conn.Flush(); err != nil {
		return false, fmt.Errorf("writing the rules for %d ports to nftables: %w", len(fresh), err)
	}
	return len(fresh) > 0, nil
}

// devices are those of ports and chains that are there. Each is asked for by its name: a list of all may lack some while
// others come and go.
func devices(ports []Port, chains []*nftables.Chain) (map[string]bool, error) {
	out := map[string]bool{}
	look := func(name string) error {
		if _, known := out[name]; known {
			return nil
		}
		_, err := netlink.LinkByName(name)
		var absent netlink.LinkNotFoundError
		if err != nil && !errors.As(err, &absent) {
			return fmt.Errorf("looking for the device %s: %w", name, err)
		}
		out[name] = err == nil
		return nil
	}
	for _, p := range ports {
		if err := look(p.Device); err != nil {
			return nil, err
		}
	}
	for _, c := range chains {
		if err := look(deviceOf(c.Name)); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// deviceOf returns the device that a chain belongs to.
func deviceOf(chain string) string {
	rest, ok := strings.CutPrefix(chain, markPrefix)
	if !ok {
		return chain
	}
	return rest[:max(0, strings.LastIndexByte(rest, '_'))]
}

// compare returns the ports that lack their rules, and the chains that are to go: those of these ports, and nobody's.
func compare(chains []*nftables.Chain, ports []Port, present map[string]bool) (fresh []Port, stale []*nftables.Chain) {
	found := map[string]bool{}
	for _, c := range chains {
		found[c.Name] = true
	}
	kept := map[string]bool{}
	for i := range ports {
		p := &ports[i]
		if found[p.Device] && found[p.mark()] {
			kept[p.Device], kept[p.mark()] = true, true
		} else {
			fresh = append(fresh, *p)
		}
	}
	for _, c := range chains {
		if !kept[c.Name] && !unmentioned(c.Name, ports, present) {
			stale = append(stale, c)
		}
	}
	return fresh, stale
}

// unmentioned reports whether a chain belongs to a device that is there, but not among ports.
func unmentioned(chain string, ports []Port, present map[string]bool) bool {
	device := deviceOf(chain)
	return present[device] && !slices.ContainsFunc(ports, func(p Port) bool { return p.Device == device })
}

func chainsOf(conn *nftables.Conn) ([]*nftables.Chain, error) {
	all, err := conn.ListChainsOfTableFamily(nftables.TableFamilyNetdev)
	if err != nil {
		return nil, fmt.Errorf("listing the chains of nftables: %w", err)
	}
	return slices.DeleteFunc(all, func(c *nftables.Chain) bool { return c.Table.Name != tableName }), nil
}

// version changes with the rules, so that those of another version of this program are replaced.
const version = 1

// mark is the name of the chain that stands for the port's rules.
func (p *Port) mark() string {
	sum := sha256.Sum256(fmt.Appendln(nil, version, p.Device, p.MAC, p.Addresses))
	return fmt.Sprintf("%s%s_%x", markPrefix, p.Device, sum[:8])
}

// Counts returns what was dropped so far, by reason; nothing where Apply was never called.
func Counts() (map[forward.DropReason]Count, error) {
	conn, err := open()
	if err != nil {
		return nil, err
	}
	tables, err := conn.ListTablesOfFamily(nftables.TableFamilyNetdev)
	if err != nil {
		return nil, fmt.Errorf("listing the tables of nftables: %w", err)
	}
	i := slices.IndexFunc(tables, func(t *nftables.Table) bool { return t.Name == tableName })
	if i < 0 {
		return nil, nil
	}
	objects, err := conn.GetObjects(tables[i])
	if err != nil {
		return nil, fmt.Errorf("reading the counters of nftables: %w", err)
	}
	out := map[forward.DropReason]Count{}
	for _, o := range objects {
		name, count, ok := counter(o)
		if !ok {
			continue
		}
		for _, r := range reasons {
			if r.String() == name {
				out[r] = count
			}
		}
	}
	return out, nil
}

// counter reads a counter, in whichever of its two forms the library gives it.
func counter(o nftables.Obj) (name string, c Count, ok bool) {
	switch o := o.(type) {
	case *nftables.CounterObj:
		return o.Name, Count{Frames: o.Packets, Bytes: o.Bytes}, true
	case *nftables.NamedObj:
		if c, ok := o.Obj.(*expr.Counter); ok {
			return o.Name, Count{Frames: c.Packets, Bytes: c.Bytes}, true
		}
	}
	return "", Count{}, false
}

// Remove takes all rules away, with the counters. That there are none is no error: the table is made before it is deleted, so
// that nobody who removes it too can come in between.
func Remove() error {
	conn, err := open()
	if err != nil {
		return err
	}
	t := &nftables.Table{Family: nftables.TableFamilyNetdev, Name: tableName}
	conn.AddTable(t)
	conn.DelTable(t)
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("removing the rules from nftables: %w", err)
	}
	return nil
}
