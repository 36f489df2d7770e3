package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/overlayd/overlayd/controlplane/api"
	"github.com/overlayd/overlayd/controlplane/api/overlayd/v1"
)

func (a *app) clusterCommand() *cobra.Command {
	group := &cobra.Command{Use: "cluster", Short: "The cluster as a whole"}
	group.AddCommand(a.clusterStatusCommand(), a.clusterRecoverCommand())
	return group
}

func (a *app) clusterStatusCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:               "status",
		Short:             "Show the cluster's health, as this node sees it",
		Args:              cobra.NoArgs,
		ValidArgsFunction: completeNothing(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.ask(cmd.Context(), a.clusterStatus)
		},
	}
	a.addOutput(cmd)
	return cmd
}

func (a *app) clusterStatus(ctx context.Context, c *api.Client) error {
	res, err := c.GetClusterStatus(ctx, &overlaydv1.GetClusterStatusRequest{})
	if err != nil {
		return err
	}
	if a.output == formatJSON {
		return printJSON(a.stdout, res)
	}
	st := res.GetStatus()
	p := &paragraph{}
	p.add("cluster", "%s", st.GetClusterId())
	p.add("node", "%s, %s, %s", st.GetNode().GetName(), roleText(st.GetNode()), st.GetNode().GetAvailability())
	p.add("quorum", "%s", quorumText(st))
	for _, m := range st.GetManagers() {
		state := m.Status
		if state == "" {
			state = "state unknown"
		}
		if !m.Voter {
			state += ", does not vote yet"
		}
		p.add("manager", "%s, %s, %s", m.Name, m.Address, state)
	}
	p.add("holds", "%s, %s, %s", plural(st.GetNodes(), "node"), plural(st.GetNetworks(), "network"), plural(st.GetEndpoints(), "endpoint"))
	behind := ""
	if st.GetReplicaIndex() < st.GetRaftIndex() {
		behind = fmt.Sprintf(", %s behind", count(st.GetRaftIndex()-st.GetReplicaIndex()))
	}
	p.add("index", "%s agreed on, %s here%s", count(st.GetRaftIndex()), count(st.GetReplicaIndex()), behind)
	for _, problem := range st.GetProblems() {
		p.add("trouble", "%s", problem)
	}
	if len(st.GetProblems()) == 0 {
		p.add("trouble", "nothing known")
	}
	return p.print(a.stdout)
}

// quorumText says whether the cluster can change.
func quorumText(st *overlaydv1.ClusterStatus) string {
	switch {
	case st.GetQuorum() && st.GetLeader() != "":
		return "yes, led by " + st.GetLeader()
	case st.GetQuorum():
		return "yes"
	default:
		return "no: nothing can be changed, but forwarding goes on"
	}
}

func (a *app) clusterRecoverCommand() *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use:   "recover --data-dir DIR",
		Short: "Make this node the only manager, after most managers were lost for good",
		Long: `recover makes this node the only manager of its cluster, with the state that it
has: the CA, the networks and their VNIs, the addresses and the tokens stay.
It is for a cluster that has lost most of its managers for good. Stop the daemon
first, run this on one manager alone, and start the daemon again. Then remove
the managers that are lost, with overlayctl node rm --force, and add new ones.

Do not run it while other managers are alive: they would be a second cluster
with the same name.`,
		Args: func(cmd *cobra.Command, args []string) error {
			if dir == "" {
				return errors.New("cluster recover needs --data-dir, with the data directory of the daemon")
			}
			return cobra.NoArgs(cmd, args)
		},
		ValidArgsFunction: completeNothing(),
		RunE: func(*cobra.Command, []string) error {
			node, err := a.recoverNode(dir)
			if err != nil {
				return err
			}
			if a.output == formatJSON {
				return printValue(a.stdout, struct {
					Node string `json:"node"`
				}{node})
			}
			_, err = fmt.Fprintf(a.stdout, "The node %s is the only manager of its cluster now. Start the daemon, and remove the managers that are lost.\n", node)
			return err
		},
	}
	cmd.Flags().StringVar(&dir, "data-dir", "", "data `directory` of the daemon")
	// As in completeFlag.
	_ = cmd.MarkFlagDirname("data-dir")
	a.addOutput(cmd)
	return cmd
}
