package lab

import (
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"
)

// filterTable is the one nftables table of the router.
const filterTable = "lab"

const (
	lossModulus = 1_000_000 // Loss is in millionths
	ifNameLen   = 16        // how wide nftables compares an interface name

	icmpUnreachable, icmpFragNeeded = 3, 4     // RFC 792, RFC 1191
	icmp6TooBig                     = 2        // RFC 4443, section 3.2
	icmp6ND, icmp6NDLast            = 133, 137 // router solicitation to redirect, RFC 4861, section 4
)

// filterFamily is where the router sees what it passes on: as IP packets or as frames on its bridge.
func (l *Lab) filterFamily() nftables.TableFamily {
	if l.scenario.Topology == Bridged {
		return nftables.TableFamilyBridge
	}
	return nftables.TableFamilyINet
}

// makeFilter writes the rules of the router: loss on what it forwards, and what it holds back of its own.
// Without a rule there is no table, so that nothing stands in the way of what is measured.
func (l *Lab) makeFilter() error {
	lossy := slices.ContainsFunc(l.scenario.Hosts, func(h HostSpec) bool { return h.Loss > 0 })
	if !lossy && l.scenario.Router.DropICMP == DropNone {
		return nil
	}
	conn, err := nftables.New(nftables.WithNetNSFd(int(l.router.handle)))
	if err != nil {
		return fmt.Errorf("open nftables in the router: %w", err)
	}
	accept := nftables.ChainPolicyAccept
	table := conn.AddTable(&nftables.Table{Family: l.filterFamily(), Name: filterTable})
	chain := func(name string, hook *nftables.ChainHook) *nftables.Chain {
		return conn.AddChain(&nftables.Chain{
			Name: name, Table: table, Type: nftables.ChainTypeFilter,
			Hooknum: hook, Priority: nftables.ChainPriorityFilter, Policy: &accept,
		})
	}
	rule := func(c *nftables.Chain, name string, parts ...[]expr.Any) {
		var exprs []expr.Any
		for _, p := range parts {
			exprs = append(exprs, p...)
		}
		exprs = append(exprs, &expr.Counter{}, &expr.Verdict{Kind: expr.VerdictDrop})
		conn.AddRule(&nftables.Rule{Table: table, Chain: c, Exprs: exprs,
			UserData: userdata.AppendString(nil, userdata.TypeComment, name)})
	}

	// In the router and not in the OUTPUT of the host, where the sender would see EPERM.
	forward := chain("forward", nftables.ChainHookForward)
	for _, h := range l.scenario.Hosts {
		if h.Loss == 0 {
			continue
		}
		for _, key := range []expr.MetaKey{expr.MetaKeyIIFNAME, expr.MetaKeyOIFNAME} {
			rule(forward, h.Name, matchInterface(key, h.Name), matchRandom(h.Loss))
		}
	}
	if l.scenario.Router.DropICMP != DropNone {
		output := chain("output", nftables.ChainHookOutput)
		if l.scenario.Router.DropICMP == DropTooBig {
			rule(output, routerName, matchProtocol(unix.IPPROTO_ICMP), matchICMP(icmpUnreachable, icmpFragNeeded))
			rule(output, routerName, matchProtocol(unix.IPPROTO_ICMPV6), matchICMP(icmp6TooBig, 0))
		} else {
			rule(output, routerName, matchProtocol(unix.IPPROTO_ICMP))
			rule(output, routerName, matchProtocol(unix.IPPROTO_ICMPV6), notNeighbourDiscovery())
		}
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("write the nftables rules of the router: %w", err)
	}
	return nil
}

func matchInterface(key expr.MetaKey, name string) []expr.Any {
	wide := make([]byte, ifNameLen)
	copy(wide, name)
	return []expr.Any{
		&expr.Meta{Key: key, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: wide},
	}
}

// matchRandom matches with the probability of l.
func matchRandom(l Loss) []expr.Any {
	return []expr.Any{
		&expr.Numgen{Register: 1, Modulus: lossModulus, Type: unix.NFT_NG_RANDOM},
		&expr.Byteorder{SourceRegister: 1, DestRegister: 1, Op: expr.ByteorderHton, Len: 4, Size: 4},
		&expr.Cmp{Op: expr.CmpOpLt, Register: 1, Data: binaryutil.BigEndian.PutUint32(uint32(l))},
	}
}

func matchProtocol(p byte) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{p}},
	}
}

func matchICMP(kind, code byte) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{kind, code}},
	}
}

func notNeighbourDiscovery() []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 1},
		&expr.Range{Op: expr.CmpOpNeq, Register: 1, FromData: []byte{icmp6ND}, ToData: []byte{icmp6NDLast}},
	}
}

// Filtered says how many packets the router has dropped on purpose: for each host what was lost on its
// link, in both directions, and under "router" the ICMP that it held back. Without a router it is empty.
func (l *Lab) Filtered() (map[string]uint64, error) {
	if l.router == nil {
		return nil, nil
	}
	conn, err := nftables.New(nftables.WithNetNSFd(int(l.router.handle)))
	if err != nil {
		return nil, fmt.Errorf("open nftables in the router: %w", err)
	}
	table := &nftables.Table{Family: l.filterFamily(), Name: filterTable}
	chains, err := conn.ListChainsOfTableFamily(table.Family)
	if err != nil {
		return nil, fmt.Errorf("list the nftables chains of the router: %w", err)
	}
	sums := make(map[string]uint64)
	for _, c := range chains {
		if c.Table.Name != filterTable {
			continue
		}
		rules, err := conn.GetRules(table, c)
		if err != nil {
			return nil, fmt.Errorf("read the nftables rules of the router: %w", err)
		}
		for _, r := range rules {
			for _, e := range r.Exprs {
				if counter, ok := e.(*expr.Counter); ok {
					name, _ := userdata.GetString(r.UserData, userdata.TypeComment)
					sums[name] += counter.Packets
				}
			}
		}
	}
	return sums, nil
}
