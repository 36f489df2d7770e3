package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/overlayd/overlayd/controlplane/api"
	"github.com/overlayd/overlayd/controlplane/api/overlayd/v1"
)

func (a *app) endpointCommand() *cobra.Command {
	group := &cobra.Command{Use: "endpoint", Short: "Endpoints: interfaces of containers on networks of the cluster"}
	group.AddCommand(a.endpointAddCommand(), a.endpointListCommand(), a.endpointRemoveCommand())
	return group
}

func (a *app) endpointAddCommand() *cobra.Command {
	req := &overlaydv1.AddEndpointRequest{}
	cmd := &cobra.Command{
		Use:   "add NETWORK --netns NAMESPACE",
		Short: "Give a network namespace of this host an interface on a network",
		Long: `add puts an interface on a network into a network namespace of this host, with
its addresses, its MTU, and a default route if the network has a gateway. When
it returns, the interface works, and the other hosts learn of it.

The namespace is a name that ip netns knows, or an absolute path such as
/proc/4711/ns/net. Addresses that are not given are chosen from the subnets of
the network.`,
		Args: func(cmd *cobra.Command, args []string) error {
			if err := exactly("the name or ID of a network")(cmd, args); err != nil {
				return err
			}
			if req.Netns == "" {
				return fmt.Errorf("endpoint add needs --netns, with the network namespace that is to have the interface")
			}
			return nil
		},
		ValidArgsFunction: positions(a.completeClusterNetwork()),
		RunE: func(cmd *cobra.Command, args []string) error {
			req.Network = args[0]
			return a.change(cmd.Context(), func(ctx context.Context, c *api.Client) error {
				res, err := c.AddEndpoint(ctx, req)
				if err != nil {
					return err
				}
				e := res.GetEndpoint()
				return a.answer(res, "%s in %s is on %s: %s, MAC %s, MTU %d, endpoint %s.",
					e.GetInterface(), e.GetNetns(), e.GetNetwork(), strings.Join(e.GetIps(), ", "), e.GetMac(), e.GetMtu(), endpointName(e))
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&req.Netns, "netns", "", "network `namespace`: a name of /run/netns, or a path")
	f.StringVar(&req.Name, "name", "", "`name` of the endpoint, unique on its network (default: none)")
	f.StringSliceVar(&req.Ips, "ip", nil, "IP `address`, at most one of IPv4 and one of IPv6 (default: a free one of each subnet)")
	f.StringVar(&req.Mac, "mac", "", "MAC `address` (default: made up)")
	f.StringVar(&req.Interface, "interface", "", "`name` of the interface in the namespace (default: the first of eth0, eth1, ... that is free)")
	completeFlag(cmd, "netns", a.completeNetNS())
	for _, name := range []string{"name", "ip", "mac", "interface"} {
		completeFlag(cmd, name, completeNothing())
	}
	a.addOutput(cmd)
	return cmd
}

// endpointName is the name of an endpoint with its ID, or the ID alone.
func endpointName(e *overlaydv1.Endpoint) string {
	if e.GetName() == "" {
		return e.GetId()
	}
	return e.GetName() + " (" + e.GetId() + ")"
}

func (a *app) endpointListCommand() *cobra.Command {
	var node string
	cmd := &cobra.Command{
		Use:     "ls [NETWORK]",
		Aliases: []string{"list"},
		Short:   "List the endpoints of a network, or of all, on all hosts",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return nil
			}
			return exactly("the name or ID of a network")(cmd, args)
		},
		ValidArgsFunction: positions(a.completeClusterNetwork()),
		RunE: func(cmd *cobra.Command, args []string) error {
			network := ""
			if len(args) > 0 {
				network = args[0]
			}
			return a.ask(cmd.Context(), func(ctx context.Context, c *api.Client) error { return a.listEndpoints(ctx, c, network, node) })
		},
	}
	cmd.Flags().StringVar(&node, "node", "", "only those on this `node`")
	completeFlag(cmd, "node", a.completeNode())
	a.addOutput(cmd)
	return cmd
}

func (a *app) listEndpoints(ctx context.Context, c *api.Client, network, node string) error {
	if a.output == formatJSON {
		all := &overlaydv1.ListEndpointsResponse{}
		for e, err := range c.Endpoints(ctx, network, node) {
			if err != nil {
				return err
			}
			all.Endpoints = append(all.Endpoints, e)
		}
		return printJSON(a.stdout, all)
	}
	t := newTable(a.stdout, left("ID"), left("NETWORK"), left("NAME"), left("ADDRESS"), left("MAC"), left("NODE"), left("STATUS"), left("INTERFACE"))
	for e, err := range c.Endpoints(ctx, network, node) {
		if err != nil {
			return err
		}
		where := ""
		if e.Interface != "" {
			where = e.Interface + " in " + e.Netns
		}
		t.add(e.Id, e.Network, e.Name, strings.Join(e.Ips, ","), e.Mac, e.Node, capital(e.Status), where)
		if len(t.rows) == pageRows {
			if err := t.flush(); err != nil {
				return err
			}
		}
	}
	return t.flush()
}

func (a *app) endpointRemoveCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:               "rm NETWORK ENDPOINT",
		Aliases:           []string{"remove"},
		Short:             "Remove an endpoint, with its interface, and free its addresses",
		Args:              exactly("the name or ID of a network", "that of an endpoint"),
		ValidArgsFunction: positions(a.completeClusterNetwork(), a.completeEndpoint()),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.change(cmd.Context(), func(ctx context.Context, c *api.Client) error {
				res, err := c.RemoveEndpoint(ctx, &overlaydv1.RemoveEndpointRequest{Network: args[0], Endpoint: args[1]})
				if err != nil {
					return err
				}
				return a.answer(res, "%s is gone from %s.", args[1], args[0])
			})
		},
	}
	a.addOutput(cmd)
	return cmd
}
