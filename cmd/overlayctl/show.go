package main

import (
	"context"
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
