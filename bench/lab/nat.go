package lab

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Tables of the router beside filterTable.
const (
	natTable = "lab-nat"
	cutTable = "lab-cut"
)

// makeNAT has the router translate the floating addresses, one to one and with the ports as they are: what goes to one goes
// on to its host, and seems to come from that of the sender. Hosts of the subnet reach each other so through the router.
func (l *Lab) makeNAT() error {
	if !l.scenario.translates() {
		return nil
	}
	if err := l.router.routeTranslated(); err != nil {
		return err
	}
	conn, err := nftables.New(nftables.WithNetNSFd(int(l.router.handle)))
	if err != nil {
		return fmt.Errorf("open nftables in the router: %w", err)
	}
	table := conn.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: natTable})
	chain := func(name string, hook *nftables.ChainHook, at *nftables.ChainPriority) *nftables.Chain {
		return conn.AddChain(&nftables.Chain{Name: name, Table: table, Type: nftables.ChainTypeNAT, Hooknum: hook, Priority: at})
	}
	in := chain("prerouting", nftables.ChainHookPrerouting, nftables.ChainPriorityNATDest)
	out := chain("postrouting", nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource)
	for _, h := range l.scenario.Hosts {
		if !h.Floating.IsValid() {
			continue
		}
		local := h.underlay(IPv4)
		conn.AddRule(&nftables.Rule{Table: table, Chain: in, Exprs: append(matchAddress(16, h.Floating.Addr), // the destination, RFC 791
			&expr.Immediate{Register: 1, Data: local.AsSlice()},
			&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: 1})})
		// What was translated on its way in, only: the hosts' own subnet is none of the router's business.
		conn.AddRule(&nftables.Rule{Table: table, Chain: out, Exprs: append(append(translated(), matchAddress(12, local)...),
			&expr.Immediate{Register: 1, Data: h.Floating.AsSlice()},
			&expr.NAT{Type: expr.NATTypeSourceNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: 1})})
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("write the translations of the router: %w", err)
	}
	return nil
}

// routeTranslated keeps the bridge from passing on by itself what the router translates to another of its ports. It does so
// where the kernel has bridge netfilter, and then what is translated goes the way of what is not, and is cut with it.
func (n *Namespace) routeTranslated() error {
	const key = "bridge/bridge-nf-call-iptables"
	return n.Do(func() error {
		err := os.WriteFile(filepath.Join("/proc/sys/net", key), []byte("0"), 0)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("set %s in %s: %w", key, n.full, err)
		}
		return nil
	})
}

// matchAddress matches an IPv4 address at this offset of the header.
func matchAddress(offset uint32, a netip.Addr) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: 4},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: a.AsSlice()},
	}
}

// translated matches what belongs to a connection whose destination is translated.
func translated() []expr.Any {
	const dnat = 1 << 5 // IPS_DST_NAT
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATUS, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(dnat), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
	}
}

// Cut has nothing pass any more between two hosts that share a subnet, in either direction. What one sends to the other
// by way of an address that the router translates still does.
func (l *Lab) Cut(a, b string) error {
	if l.scenario.Topology != Bridged {
		return errors.New("cut a subnet: only bridged hosts share one that the router could cut")
	}
	for _, name := range []string{a, b} {
		if _, err := l.find(name); err != nil {
			return err
		}
	}
	conn, err := nftables.New(nftables.WithNetNSFd(int(l.router.handle)))
	if err != nil {
		return fmt.Errorf("open nftables in the router: %w", err)
	}
	accept := nftables.ChainPolicyAccept
	table := conn.AddTable(&nftables.Table{Family: nftables.TableFamilyBridge, Name: cutTable})
	chain := conn.AddChain(&nftables.Chain{
		Name: "forward", Table: table, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter, Policy: &accept,
	})
	for _, way := range [][2]string{{a, b}, {b, a}} {
		conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: append(
			append(matchInterface(expr.MetaKeyIIFNAME, way[0]), matchInterface(expr.MetaKeyOIFNAME, way[1])...),
			&expr.Counter{}, &expr.Verdict{Kind: expr.VerdictDrop})})
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("cut %s off from %s: %w", a, b, err)
	}
	return nil
}

// Restore ends all cuts.
func (l *Lab) Restore() error {
	if l.scenario.Topology != Bridged {
		return nil
	}
	conn, err := nftables.New(nftables.WithNetNSFd(int(l.router.handle)))
	if err != nil {
		return fmt.Errorf("open nftables in the router: %w", err)
	}
	table := &nftables.Table{Family: nftables.TableFamilyBridge, Name: cutTable}
	conn.AddTable(table) // or else there may be none to delete
	conn.DelTable(table)
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("restore what was cut: %w", err)
	}
	return nil
}
