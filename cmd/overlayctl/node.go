package main

import (
	"context"
	"strings"

	"github.com/spf13/cobra"

	"github.com/overlayd/overlayd/controlplane/api"
	"github.com/overlayd/overlayd/controlplane/api/overlayd/v1"
)

func (a *app) nodeCommand() *cobra.Command {
	group := &cobra.Command{Use: "node", Short: "Nodes of the cluster"}
	group.AddCommand(a.nodeListCommand(), a.nodeInspectCommand(), a.nodeRemoveCommand(),
		a.nodeUpdateCommand("promote", "Make a worker a manager",
			`promote makes a worker a manager. It holds the cluster's log from then on, and
votes once it has caught up; overlayctl cluster status shows when that is. Have
three or five managers: with an even number, no more of them may fail than with
one less.`,
			"%s is to be a manager: overlayctl cluster status shows when it votes.", &overlaydv1.UpdateNodeRequest{Role: api.RoleManager}),
		a.nodeUpdateCommand("demote", "Make a manager a worker",
			`demote makes a manager a worker. It is refused for the last manager, and where
the cluster would lose its quorum.`,
			"%s is to be a worker.", &overlaydv1.UpdateNodeRequest{Role: api.RoleWorker}),
		a.nodeUpdateCommand("drain", "Give a node no new endpoints",
			`drain keeps new endpoints away from a node. Those that it has stay.`,
			"%s gets no new endpoints.", &overlaydv1.UpdateNodeRequest{Availability: api.AvailabilityDrain}),
		a.nodeUpdateCommand("activate", "Let a drained node have new endpoints again",
			`activate lets a drained node have new endpoints again.`,
			"%s gets new endpoints.", &overlaydv1.UpdateNodeRequest{Availability: api.AvailabilityActive}),
	)
	return group
}

func (a *app) nodeListCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:               "ls",
		Aliases:           []string{"list"},
		Short:             "List the nodes of the cluster; * is the one that is asked",
		Args:              cobra.NoArgs,
		ValidArgsFunction: completeNothing(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.ask(cmd.Context(), a.listNodes)
		},
	}
	a.addOutput(cmd)
	return cmd
}

func (a *app) listNodes(ctx context.Context, c *api.Client) error {
	res, err := c.ListNodes(ctx, &overlaydv1.ListNodesRequest{})
	if err != nil {
		return err
	}
	if a.output == formatJSON {
		return printJSON(a.stdout, res)
	}
	t := newTable(a.stdout, left("ID"), left("NAME"), left("STATUS"), left("AVAILABILITY"), left("MANAGER STATUS"), left("ADDRESS"), right("ENDPOINTS"))
	for _, n := range res.Nodes {
		id := n.Id
		if n.Self {
			id += " *"
		}
		t.add(id, n.Name, capital(n.Status), capital(n.Availability), capital(n.ManagerStatus), strings.Join(n.Addresses, ","), count(n.Endpoints))
		if n.Problem != "" {
			t.note(n.Problem)
		}
	}
	return t.flush()
}

// capital begins a word with a capital letter.
func capital(s string) string {
	if s == "" {
		return ""
	}
	return strings.ToUpper(s[:1]) + s[1:]
}

func (a *app) nodeInspectCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "inspect [NODE]",
		Short: "Show what the cluster knows of a node; without a name, of this one",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return nil
			}
			return exactly("the name or ID of a node")(cmd, args)
		},
		ValidArgsFunction: positions(a.completeNode()),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.ask(cmd.Context(), func(ctx context.Context, c *api.Client) error {
				if len(args) == 0 {
					st, err := c.GetClusterStatus(ctx, &overlaydv1.GetClusterStatusRequest{})
					if err != nil {
						return err
					}
					args = []string{st.GetStatus().GetNode().GetId()}
				}
				res, err := c.GetNode(ctx, &overlaydv1.GetNodeRequest{Node: args[0]})
				if err != nil {
					return err
				}
				if a.output == formatJSON {
					return printJSON(a.stdout, res)
				}
				return a.printNode(res.GetNode())
			})
		},
	}
	a.addOutput(cmd)
	return cmd
}

func (a *app) printNode(n *overlaydv1.Node) error {
	p := &paragraph{}
	name := n.GetName()
	if n.GetSelf() {
		name += " (this one)"
	}
	p.add("node", "%s", name)
	p.add("id", "%s", n.GetId())
	p.add("role", "%s", roleText(n))
	p.add("availability", "%s", n.GetAvailability())
	p.add("status", "%s", n.GetStatus())
	if n.GetProblem() != "" {
		p.add("", "%s", n.GetProblem())
	}
	for _, addr := range n.GetAddresses() {
		p.add("address", "%s", addr)
	}
	p.add("ports", "%d control, %d gossip, %d VXLAN", n.GetControlPort(), n.GetGossipPort(), n.GetVxlanPort())
	p.add("endpoints", "%s", count(n.GetEndpoints()))
	if n.GetJoined() != nil {
		p.add("joined", "%s", ago(a.now(), n.GetJoined().AsTime()))
	}
	return p.print(a.stdout)
}

// roleText is the role of a node, and how it stands as a manager.
func roleText(n *overlaydv1.Node) string {
	if n.GetManagerStatus() == "" {
		return n.GetRole()
	}
	return n.GetRole() + " (" + n.GetManagerStatus() + ")"
}

// nodeUpdateCommand is a command that changes a node in one way. The sentence says what has happened to it.
func (a *app) nodeUpdateCommand(verb, short, long, sentence string, change *overlaydv1.UpdateNodeRequest) *cobra.Command {
	cmd := &cobra.Command{
		Use:               verb + " NODE",
		Short:             short,
		Long:              long,
		Args:              exactly("the name or ID of a node"),
		ValidArgsFunction: positions(a.completeNode()),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.change(cmd.Context(), func(ctx context.Context, c *api.Client) error {
				res, err := c.UpdateNode(ctx, &overlaydv1.UpdateNodeRequest{Node: args[0], Role: change.Role, Availability: change.Availability})
				if err != nil {
					return err
				}
				return a.answer(res, sentence, res.GetNode().GetName())
			})
		},
	}
	a.addOutput(cmd)
	return cmd
}

func (a *app) nodeRemoveCommand() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:     "rm NODE",
		Aliases: []string{"remove"},
		Short:   "Take a node out of the cluster that cannot leave by itself",
		Long: `rm takes a node out of the cluster that is lost: its certificate lets it in
nowhere any more. A node that is up should leave by itself, with overlayctl
leave; it is refused here, as is one with endpoints and a manager, unless
--force is given. The endpoints of a node go with it. What would lose the
cluster's quorum is refused in any case.`,
		Args:              exactly("the name or ID of a node"),
		ValidArgsFunction: positions(a.completeNode()),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.change(cmd.Context(), func(ctx context.Context, c *api.Client) error {
				res, err := c.RemoveNode(ctx, &overlaydv1.RemoveNodeRequest{Node: args[0], Force: force})
				if err != nil {
					return err
				}
				return a.answer(res, "%s is out of the cluster.", args[0])
			})
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "also if it is up, has endpoints or is a manager")
	a.addOutput(cmd)
	return cmd
}
