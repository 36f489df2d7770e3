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

func (a *app) networkCommand() *cobra.Command {
	group := &cobra.Command{Use: "network", Short: "Networks of the cluster, and of this node"}
	group.AddCommand(a.networkCreateCommand(), a.networkListCommand(), a.networkInspectCommand(), a.networkRemoveCommand())
	return group
}

func (a *app) networkCreateCommand() *cobra.Command {
	req := &overlaydv1.CreateNetworkRequest{}
	cmd := &cobra.Command{
		Use:   "create NAME",
		Short: "Make a network in the cluster",
		Long: `create makes a network that every host of the cluster can put endpoints on.

The MTU is that of an interface on the network, in bytes. Unless it is fixed by
--mtu, each host derives it from its underlay, and follows when that changes.`,
		Args:              exactly("the name of the network"),
		ValidArgsFunction: completeNothing(),
		RunE: func(cmd *cobra.Command, args []string) error {
			req.Name = args[0]
			return a.change(cmd.Context(), func(ctx context.Context, c *api.Client) error {
				res, err := c.CreateNetwork(ctx, req)
				if err != nil {
					return err
				}
				n := res.GetNetwork()
				for _, w := range res.GetWarnings() {
					if _, err := fmt.Fprintln(a.stderr, "warning: "+w); err != nil {
						return err
					}
				}
				return a.answer(res, "%s is a network now: VNI %d, %s, ID %s.", n.GetName(), n.GetVni(), strings.Join(n.GetSubnets(), ", "), n.GetId())
			})
		},
	}
	f := cmd.Flags()
	f.StringSliceVar(&req.Subnets, "subnet", nil, "`prefix` of its addresses, at most one of IPv4 and one of IPv6 (default: a free IPv4 /24)")
	f.StringSliceVar(&req.Gateways, "gateway", nil, "`address` in a subnet for the default route (default: no default route)")
	f.Uint32Var(&req.Vni, "vni", 0, "VXLAN network identifier, 1 to 16777215 (default: one that is free)")
	f.Uint32Var(&req.Mtu, "mtu", 0, "largest IP packet in `bytes` (default: derived from the underlay)")
	f.Uint32Var(&req.Mss, "mss", 0, "most payload of a TCP segment in `bytes`, to which connections are lowered (default: what each path leaves)")
	for _, name := range []string{"subnet", "gateway", "vni", "mtu", "mss"} {
		completeFlag(cmd, name, completeNothing())
	}
	a.addOutput(cmd)
	return cmd
}

func (a *app) networkListCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List the networks of the cluster and of this node, with this node's counters in frames",
		Long: `ls lists the networks that this node forwards for, with its counters in frames.
If it is in a cluster, those networks of the cluster are there too that have
nothing on this node, and FROM tells networks of the cluster from those that
stand in the node's configuration.`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: completeNothing(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.ask(cmd.Context(), a.listNetworks)
		},
	}
	a.addOutput(cmd)
	return cmd
}

func (a *app) listNetworks(ctx context.Context, c *api.Client) error {
	res, err := c.ListNetworks(ctx, &overlaydv1.ListNetworksRequest{})
	if err != nil {
		return err
	}
	cluster, err := c.ListClusterNetworks(ctx, &overlaydv1.ListClusterNetworksRequest{})
	if noCluster(err) {
		err = nil
	}
	// If the cluster cannot be asked, what is known of the node stands, and the error comes behind it.
	switch {
	case a.output != formatJSON:
	case cluster == nil:
		return firstError(printJSON(a.stdout, res), err)
	default:
		return printWith(a.stdout, res, "cluster", cluster)
	}
	if cluster == nil {
		return firstError(a.printNodeNetworks(res.Networks), err)
	}
	return a.printNetworks(res.Networks, cluster.Networks)
}

// counted is what this node counts on a network.
func counted(n *overlaydv1.Network) []string {
	k := n.GetCounters()
	return []string{
		strconv.Itoa(len(n.Peers)), count(n.FdbEntries),
		count(k.GetTapIn().GetFrames()), count(k.GetTapOut().GetFrames()),
		count(k.GetUnderlayIn().GetFrames()), count(k.GetUnderlayOut().GetFrames()), count(k.GetFramesDropped()),
	}
}

func countedColumns() []column {
	return []column{right("PEERS"), right("FDB"), right("TAP IN"), right("TAP OUT"), right("UNDERLAY IN"), right("UNDERLAY OUT"), right("DROPPED")}
}

// printNodeNetworks prints the networks of a node that is in no cluster.
func (a *app) printNodeNetworks(networks []*overlaydv1.Network) error {
	t := newTable(a.stdout, append([]column{left("NETWORK"), right("VNI"), left("DEVICE"), left("ADDRESS"), right("MTU")}, countedColumns()...)...)
	for _, n := range networks {
		t.add(append([]string{n.Name, strconv.Itoa(int(n.Vni)), n.Device, strings.Join(n.Addresses, ","), strconv.Itoa(int(n.Mtu))}, counted(n)...)...)
	}
	return t.flush()
}

// printNetworks prints the networks of a cluster, and below them those of the node that are none of these.
func (a *app) printNetworks(node []*overlaydv1.Network, cluster []*overlaydv1.ClusterNetwork) error {
	here := make(map[string]*overlaydv1.Network) // by ID
	for _, n := range node {
		if n.NetworkId != "" {
			here[n.NetworkId] = n
		}
	}
	t := newTable(a.stdout, append([]column{left("NETWORK"), right("VNI"), left("FROM"), left("SUBNET"), right("ENDPOINTS"), left("DEVICE"), right("MTU")}, countedColumns()...)...)
	for _, n := range cluster {
		device, mtu, counts := "", "", make([]string, len(countedColumns()))
		if n.Mtu != 0 {
			mtu = strconv.Itoa(int(n.Mtu))
		}
		if h := here[n.Id]; h != nil {
			device, mtu, counts = h.Device, strconv.Itoa(int(h.Mtu)), counted(h)
			delete(here, n.Id)
		}
		t.add(append([]string{n.Name, strconv.Itoa(int(n.Vni)), "cluster", strings.Join(n.Subnets, ","), count(n.Endpoints), device, mtu}, counts...)...)
	}
	for _, n := range node {
		from := "config"
		if n.NetworkId != "" {
			if here[n.NetworkId] == nil {
				continue // printed above
			}
			from = "cluster" // removed there a moment ago
		}
		t.add(append([]string{n.Name, strconv.Itoa(int(n.Vni)), from, strings.Join(n.Addresses, ","), "", n.Device, strconv.Itoa(int(n.Mtu))}, counted(n)...)...)
	}
	return t.flush()
}

func (a *app) networkInspectCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:               "inspect NETWORK",
		Short:             "Show what the cluster knows of a network",
		Args:              exactly("the name or ID of a network"),
		ValidArgsFunction: positions(a.completeClusterNetwork()),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.ask(cmd.Context(), func(ctx context.Context, c *api.Client) error {
				res, err := c.GetNetwork(ctx, &overlaydv1.GetNetworkRequest{Network: args[0]})
				if err != nil {
					return err
				}
				if a.output == formatJSON {
					return printJSON(a.stdout, res)
				}
				return a.printNetwork(res.GetNetwork())
			})
		},
	}
	a.addOutput(cmd)
	return cmd
}

func (a *app) printNetwork(n *overlaydv1.ClusterNetwork) error {
	p := &paragraph{}
	p.add("network", "%s", n.GetName())
	p.add("id", "%s", n.GetId())
	p.add("VNI", "%d", n.GetVni())
	for i, subnet := range n.GetSubnets() {
		gateway := "no gateway"
		if i < len(n.GetGateways()) && n.GetGateways()[i] != "" {
			gateway = "gateway " + n.GetGateways()[i]
		}
		p.add("subnet", "%s, %s", subnet, gateway)
	}
	if n.GetMtu() == 0 {
		p.add("MTU", "derived from the underlay")
	} else {
		p.add("MTU", "%d (fixed)", n.GetMtu())
	}
	if n.GetMss() != 0 {
		p.add("MSS", "%d at most (fixed)", n.GetMss())
	}
	p.add("endpoints", "%s", count(n.GetEndpoints()))
	if n.GetCreated() != nil {
		p.add("created", "%s", ago(a.now(), n.GetCreated().AsTime()))
	}
	return p.print(a.stdout)
}

func (a *app) networkRemoveCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:               "rm NETWORK",
		Aliases:           []string{"remove"},
		Short:             "Remove a network that has no endpoints",
		Args:              exactly("the name or ID of a network"),
		ValidArgsFunction: positions(a.completeClusterNetwork()),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.change(cmd.Context(), func(ctx context.Context, c *api.Client) error {
				res, err := c.RemoveNetwork(ctx, &overlaydv1.RemoveNetworkRequest{Network: args[0]})
				if err != nil {
					return err
				}
				return a.answer(res, "%s is no network any more.", args[0])
			})
		},
	}
	a.addOutput(cmd)
	return cmd
}
