package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/overlayd/overlayd/controlplane/api"
	"github.com/overlayd/overlayd/controlplane/api/overlayd/v1"
)

func (a *app) peersCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "peers",
		Short: "List the remote VTEPs, the addresses at which they may be reached, and what fits towards them",
		Long: `peers lists the remote VTEPs. VIA is the address that datagrams go to at the
moment. Where there is a choice, the candidates stand below in the order in
which they are preferred, with the reason why those that are not used are not.`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: completeNothing(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.ask(cmd.Context(), a.listPeers)
		},
	}
	a.addOutput(cmd)
	return cmd
}

func (a *app) listPeers(ctx context.Context, c *api.Client) error {
	res, err := c.ListPeers(ctx, &overlaydv1.ListPeersRequest{})
	if err != nil {
		return err
	}
	if a.output == formatJSON {
		return printJSON(a.stdout, res)
	}
	t := newTable(a.stdout, left("PEER"), left("VIA"), left("FROM"), left("DEVICE"), right("UNDERLAY MTU"), right("PATH MTU"), right("OVERHEAD"), right("OVERLAY MTU"), left("NETWORKS"), right("HEARD"), left("STATE"))
	for _, p := range res.Peers {
		state, heard := "ok", ""
		if p.LastHeard != nil {
			heard = ago(a.now(), p.LastHeard.AsTime())
		} else {
			state = "nothing heard from it yet"
		}
		if p.Problem != "" {
			state = p.Problem
		}
		t.add(p.Address, p.RemoteAddress, p.LocalAddress, p.Device, size(p.UnderlayMtu), size(p.PathMtu), size(p.Overhead), size(p.OverlayMtu), strings.Join(p.Networks, ","), heard, state)
		for _, line := range candidateLines(p) {
			t.note(line)
		}
	}
	return t.flush()
}

// candidateLines has one line for each candidate of a peer, if they are not all said by the peer's own row.
func candidateLines(p *overlaydv1.Peer) []string {
	if len(p.Candidates) == 0 || len(p.Candidates) == 1 && p.Candidates[0].Remote == p.Address {
		return nil
	}
	width := 0
	for _, c := range p.Candidates {
		width = max(width, utf8.RuneCountInString(c.Remote))
	}
	var lines []string
	for _, c := range p.Candidates {
		use, facts := "spare ", []string{c.State}
		if c.Chosen {
			use = "in use"
		}
		if c.Rtt != nil {
			facts = append(facts, roundTrip(c.Rtt))
		}
		if c.PathMtu != 0 && c.State == stateReachable { // of others nothing is known but the route
			facts = append(facts, fmt.Sprintf("path MTU %d", c.PathMtu))
		}
		if c.Origin == originObserved {
			facts = append(facts, "seen as the source of its probes")
		}
		line := fmt.Sprintf("%-*s  %s  %s", width, c.Remote, use, strings.Join(facts, ", "))
		if c.SeenAs != "" && c.SeenAs != c.Local {
			line += ", sees this node as " + c.SeenAs
		}
		switch {
		case c.Why == "":
		case c.Chosen:
			line += "; " + c.Why
		default:
			line += "; not used: " + c.Why
		}
		lines = append(lines, line)
	}
	return lines
}

// What the daemon says of candidates and paths.
const (
	originObserved  = "observed"
	learnedProbe    = "probe"
	stateReachable  = "reachable"
	stateUnanswered = "unanswered"
	stateNotProbed  = "not probed"
)

// size is a number of bytes that is not known if it is 0.
func size(n uint32) string {
	if n == 0 {
		return ""
	}
	return strconv.Itoa(int(n))
}

// roundTrip writes a round-trip time with what matters of its digits.
func roundTrip(d *durationpb.Duration) string {
	ms := float64(d.AsDuration()) / float64(time.Millisecond)
	switch {
	case ms >= 100:
		return fmt.Sprintf("%.0f ms", ms)
	case ms >= 10:
		return fmt.Sprintf("%.1f ms", ms)
	}
	return fmt.Sprintf("%.2f ms", ms)
}
