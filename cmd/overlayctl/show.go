package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/overlayd/overlayd/controlplane/api"
	"github.com/overlayd/overlayd/controlplane/api/overlayd/v1"
)

// pageRows is how many rows of a forwarding database are gathered before they are printed.
const pageRows = 65536

func (a *app) networkCommand() *cobra.Command {
	ls := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List the networks of this node, with their counters in frames",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.ask(cmd.Context(), a.listNetworks)
		},
	}
	a.addOutput(ls)
	group := &cobra.Command{Use: "network", Short: "Networks of this node"}
	group.AddCommand(ls)
	return group
}

func (a *app) listNetworks(ctx context.Context, c *api.Client) error {
	res, err := c.ListNetworks(ctx, &overlaydv1.ListNetworksRequest{})
	if err != nil {
		return err
	}
	if a.output == formatJSON {
		return printJSON(a.stdout, res)
	}
	t := newTable(a.stdout, left("NETWORK"), right("VNI"), left("DEVICE"), left("ADDRESS"), right("MTU"), right("PEERS"), right("FDB"),
		right("TAP IN"), right("TAP OUT"), right("UNDERLAY IN"), right("UNDERLAY OUT"), right("DROPPED"))
	for _, n := range res.Networks {
		k := n.GetCounters()
		t.add(n.Name, strconv.Itoa(int(n.Vni)), n.Device, strings.Join(n.Addresses, ","), strconv.Itoa(int(n.Mtu)),
			strconv.Itoa(len(n.Peers)), count(n.FdbEntries),
			count(k.GetTapIn().GetFrames()), count(k.GetTapOut().GetFrames()),
			count(k.GetUnderlayIn().GetFrames()), count(k.GetUnderlayOut().GetFrames()), count(k.GetFramesDropped()))
	}
	return t.flush()
}

func (a *app) fdbCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "fdb NETWORK",
		Short: "Show behind which VTEP each station of a network lives",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return fmt.Errorf("fdb takes the name of one network, not %d arguments", len(args))
			}
			return nil
		},
		ValidArgsFunction: func(cmd *cobra.Command, args []string, toComplete string) ([]string, cobra.ShellCompDirective) {
			if len(args) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return a.completeNetwork(cmd, args, toComplete)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.ask(cmd.Context(), func(ctx context.Context, c *api.Client) error { return a.listFDB(ctx, c, args[0]) })
		},
	}
	a.addOutput(cmd)
	return cmd
}

func (a *app) listFDB(ctx context.Context, c *api.Client, network string) error {
	if a.output == formatJSON {
		all := &overlaydv1.ListFDBResponse{}
		for e, err := range c.FDB(ctx, network) {
			if err != nil {
				return err
			}
			all.Entries = append(all.Entries, e)
		}
		return printJSON(a.stdout, all)
	}
	t := newTable(a.stdout, left("MAC"), left("VTEP"), left("KIND"), right("AGE"), left("ADDRESS"))
	for e, err := range c.FDB(ctx, network) {
		if err != nil {
			return err
		}
		kind, age := "learned", ""
		if e.Static {
			kind = "static"
		} else {
			age = span(e.Age.AsDuration())
		}
		t.add(e.Mac, e.Vtep, kind, age, strings.Join(e.Ips, ","))
		if len(t.rows) == pageRows {
			if err := t.flush(); err != nil {
				return err
			}
		}
	}
	return t.flush()
}

func (a *app) peersCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "peers",
		Short: "List the remote VTEPs and what fits towards them",
		Args:  cobra.NoArgs,
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
	t := newTable(a.stdout, left("PEER"), left("FROM"), left("DEVICE"), right("UNDERLAY MTU"), right("OVERHEAD"), right("OVERLAY MTU"), left("NETWORKS"), right("HEARD"), left("STATE"))
	size := func(n uint32) string {
		if n == 0 {
			return ""
		}
		return strconv.Itoa(int(n))
	}
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
		t.add(p.Address, p.LocalAddress, p.Device, size(p.UnderlayMtu), size(p.Overhead), size(p.OverlayMtu), strings.Join(p.Networks, ","), heard, state)
	}
	return t.flush()
}
