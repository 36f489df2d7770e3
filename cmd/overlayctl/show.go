package main

import (
	"context"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/overlayd/overlayd/controlplane/api"
	"github.com/overlayd/overlayd/controlplane/api/overlayd/v1"
)

// pageRows is how many rows of a forwarding database are gathered before they are printed.
const pageRows = 65536

func (a *app) fdbCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:               "fdb NETWORK",
		Short:             "Show behind which VTEP each station of a network lives",
		Args:              exactly("the name of one network"),
		ValidArgsFunction: positions(a.completeNetwork()),
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
