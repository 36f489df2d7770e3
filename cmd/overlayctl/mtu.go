package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/overlayd/overlayd/controlplane/api"
	"github.com/overlayd/overlayd/controlplane/api/overlayd/v1"
)

// leastMTU6 is the least MTU with which IPv6 works (RFC 8200, section 5).
const leastMTU6 = 1280

func (a *app) mtuCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "mtu [NETWORK]",
		Short: "Show what networks and paths carry, how that is known, and what was done about packets too large",
		Long: `mtu shows, for each network or one of them, its MTU and what sets it, what was
done about packets that do not fit, and for each remote VTEP how its path MTU
was learned. Where small requests work and large ones hang, begin here: what
there is to know or to do stands at the end.

CLAMPED counts TCP SYNs whose MSS was lowered, ICMP SENT the errors to senders
(and in brackets those held back because there were too many), FRAGMENTED the
IPv4 packets cut, CUT SMALLER the TCP superframes cut into smaller segments
than asked for, and SPLIT the single TCP segments repaired under way.`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				return fmt.Errorf("mtu takes the name of one network, or nothing for all, not %s", plural(uint64(len(args)), "argument"))
			}
			return nil
		},
		ValidArgsFunction: positions(a.completeNetwork()),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.ask(cmd.Context(), func(ctx context.Context, c *api.Client) error {
				return a.listPaths(ctx, c, strings.Join(args, ""))
			})
		},
	}
	a.addOutput(cmd)
	return cmd
}

func (a *app) listPaths(ctx context.Context, c *api.Client, network string) error {
	res, err := c.ListPaths(ctx, &overlaydv1.ListPathsRequest{Network: network})
	if err != nil {
		return err
	}
	if a.output == formatJSON {
		return printJSON(a.stdout, res)
	}
	if err := a.printMTUs(res); err != nil {
		return err
	}
	if len(res.Paths) > 0 {
		fmt.Fprintln(a.stdout)
		if err := a.printPaths(res.Paths); err != nil {
			return err
		}
		fmt.Fprintln(a.stdout)
		for _, line := range arithmetic(res.Paths) {
			fmt.Fprintln(a.stdout, line)
		}
	}
	if advice := advise(res); len(advice) > 0 {
		fmt.Fprintln(a.stdout)
		for _, line := range advice {
			fmt.Fprintln(a.stdout, line)
		}
	}
	return nil
}

// printMTUs prints what each network carries and what was done about that.
func (a *app) printMTUs(res *overlaydv1.ListPathsResponse) error {
	t := newTable(a.stdout, left("NETWORK"), right("MTU"), left("SET BY"), left("MSS"), right("CLAMPED"), right("ICMP SENT"), right("FRAGMENTED"), right("CUT SMALLER"), right("SPLIT"))
	for _, n := range res.Networks {
		k := n.GetCounters()
		icmp := count(k.GetIcmpSent())
		if held := k.GetIcmpLimited(); held > 0 {
			icmp += " (" + count(held) + ")"
		}
		t.add(n.Name, size(n.Mtu), setBy(n), mssOf(n), count(k.GetMssClamped()), icmp,
			count(k.GetPacketsFragmented()), count(k.GetSuperframesResegmented()), count(k.GetSegmentsSplit()))
	}
	return t.flush()
}

// setBy says what the MTU of a network comes from.
func setBy(n *overlaydv1.Network) string {
	const shown = 2
	limits := n.GetMtuLimits()
	switch {
	case !n.GetMtuDerived():
		return "operator"
	case len(limits) == 0:
		return "no path known"
	case len(limits) == 1:
		return "path to " + limits[0]
	case len(limits) == len(n.GetPeers()):
		return "all paths alike"
	case len(limits) > shown:
		return fmt.Sprintf("paths to %s and %d more", strings.Join(limits[:shown], ", "), len(limits)-shown)
	}
	return "paths to " + strings.Join(limits, ", ")
}

// mssOf says to what the MSS is clamped.
func mssOf(n *overlaydv1.Network) string {
	if n.GetMss() != 0 {
		return fmt.Sprintf("at most %d", n.GetMss())
	}
	return "follows the path"
}

// printPaths prints how each peer is reached and what fits.
func (a *app) printPaths(paths []*overlaydv1.Path) error {
	t := newTable(a.stdout, left("PEER"), left("DEVICE"), right("UNDERLAY MTU"), right("PATH MTU"), left("LEARNED"), right("OVERLAY MTU"), right("MSS IPv4"), right("MSS IPv6"), left("NETWORKS"), left("STATE"))
	for _, p := range paths {
		t.add(p.Peer, p.Device, size(p.UnderlayMtu), size(p.PathMtu), a.learned(p), size(p.OverlayMtu), size(p.MssIpv4), size(p.MssIpv6), strings.Join(p.Networks, ","), pathState(p))
		var notes []string
		if p.Remote != "" && p.Remote != p.Peer {
			notes = append(notes, "reached at "+p.Remote)
		}
		if p.BlackHoles > 0 {
			notes = append(notes, "carried less all of a sudden "+times(p.BlackHoles))
		}
		if p.Moves > 0 {
			moved := "moved to another address " + times(p.Moves)
			if p.ChosenTime != nil {
				moved += ", last " + ago(a.now(), p.ChosenTime.AsTime())
			}
			notes = append(notes, moved)
		}
		if len(notes) > 0 {
			t.note(strings.Join(notes, "; "))
		}
	}
	return t.flush()
}

func times(n uint64) string {
	switch n {
	case 1:
		return "once"
	case 2:
		return "twice"
	}
	return count(n) + " times"
}

func (a *app) learned(p *overlaydv1.Path) string {
	if p.PathMtu == 0 || p.LearnedTime == nil {
		return p.Learned
	}
	return p.Learned + ", " + ago(a.now(), p.LearnedTime.AsTime())
}

// candidateState is the state of the address that is in use.
func candidateState(p *overlaydv1.Path) string {
	for _, c := range p.Candidates {
		if c.Chosen {
			return c.State
		}
	}
	return ""
}

// pathState says how sure the path MTU is.
func pathState(p *overlaydv1.Path) string {
	switch state := candidateState(p); {
	case p.Problem != "":
		return p.Problem
	case state == stateNotProbed:
		return "not probed"
	case state == stateUnanswered:
		return "answers no probes"
	case p.Learned != learnedProbe:
		return "not proven yet"
	case !p.Settled:
		return "searching for more"
	}
	return "proven"
}

// arithmetic shows how an overlay MTU comes from a path MTU, once for each way in which it does.
func arithmetic(paths []*overlaydv1.Path) []string {
	var lines []string
	for _, p := range paths {
		if len(p.Overhead) == 0 {
			continue
		}
		var sum uint32
		var terms []string
		for _, term := range p.Overhead {
			sum += term.Bytes
			terms = append(terms, fmt.Sprintf("%s %d", term.Name, term.Bytes))
		}
		line := fmt.Sprintf("overlay MTU = path MTU - %d: %s", sum, strings.Join(terms, ", "))
		if !slices.Contains(lines, line) {
			lines = append(lines, line)
		}
	}
	return lines
}

// advise says what an operator has to know or to do, most urgent first.
func advise(res *overlaydv1.ListPathsResponse) []string {
	var lines []string
	for _, n := range res.Networks {
		lines = append(lines, adviseNetwork(n, res.Paths)...)
	}
	var silent, unprobed, narrow []string
	for _, p := range res.Paths {
		switch state := candidateState(p); {
		case p.Problem != "":
		case state == stateUnanswered:
			silent = append(silent, p.Peer)
		case state == stateNotProbed:
			unprobed = append(unprobed, p.Peer)
		case p.Settled && p.PathMtu < p.UnderlayMtu:
			narrow = append(narrow, fmt.Sprintf("%s (%d of %d)", p.Peer, p.PathMtu, p.UnderlayMtu))
		}
	}
	if len(silent) > 0 {
		lines = append(lines, fmt.Sprintf("No answer to probes from %s: another kind of VTEP, overlayd without path-probes or with other keys, or a firewall. What the path carries is taken from the route. If large packets to it hang, state the MTU on the route: ip route change ... mtu N.", list(silent)))
	}
	if len(unprobed) > 0 {
		lines = append(lines, fmt.Sprintf("Paths are not probed, as the feature path-probes is off: what carries less than the route says, on the way to %s, stays unknown.", list(unprobed)))
	}
	if len(narrow) > 0 {
		lines = append(lines, fmt.Sprintf("Something on the way carries less than the route says, to %s. overlayd keeps to what is proven; nothing has to be done.", list(narrow)))
	}
	return lines
}

// adviseNetwork is advise for what concerns one network.
func adviseNetwork(n *overlaydv1.Network, paths []*overlaydv1.Path) []string {
	var lines []string
	if n.Mtu > 0 && n.Mtu < leastMTU6 {
		lines = append(lines, fmt.Sprintf("%s: an MTU of %d is too small for IPv6 inside, which needs %d.", n.Name, n.Mtu, leastMTU6))
	}
	if n.MtuDerived {
		return lines
	}
	for _, p := range paths {
		if p.Problem == "" && p.OverlayMtu > 0 && p.OverlayMtu < n.Mtu && slices.Contains(p.Networks, n.Name) {
			lines = append(lines, fmt.Sprintf("%s: its MTU was fixed at %d, and the path to %s leaves %d. Larger packets cost an ICMP error or a repair each, and are lost where neither is possible: leave the MTU to overlayd, or fix it at %d at most.",
				n.Name, n.Mtu, p.Peer, p.OverlayMtu, p.OverlayMtu))
		}
	}
	return lines
}

// list joins names for a sentence, and does not name all of many.
func list(names []string) string {
	const most = 8
	if len(names) > most {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
	}
	return strings.Join(names, ", ")
}
