package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/overlayd/overlayd/controlplane/api"
	"github.com/overlayd/overlayd/controlplane/api/overlayd/v1"
)

// maxCompletions bounds how many endpoints the shell is offered.
const maxCompletions = 256

// completion offers what may stand at one place of the command line.
type completion = cobra.CompletionFunc

// complete makes a completion of a question to the daemon, for which the shell does not wait long.
func (a *app) complete(names func(context.Context, *api.Client, []string) ([]string, error)) completion {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		ctx, cancel := context.WithTimeout(cmd.Context(), completionTimeout)
		defer cancel()
		client := api.NewClient(a.socket)
		defer client.Close()
		out, err := names(ctx, client, args)
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		return out, cobra.ShellCompDirectiveNoFileComp
	}
}

// positions completes the arguments in turn, and nothing behind them.
func positions(each ...completion) completion {
	return func(cmd *cobra.Command, args []string, toComplete string) ([]string, cobra.ShellCompDirective) {
		if len(args) >= len(each) {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return each[len(args)](cmd, args, toComplete)
	}
}

// completeFlag completes the values of a flag.
func completeFlag(cmd *cobra.Command, name string, c completion) {
	// The error says that the flag does not exist or is completed already; both would be seen at once.
	_ = cmd.RegisterFlagCompletionFunc(name, c)
}

// completeNetwork offers the networks of this node.
func (a *app) completeNetwork() completion {
	return a.complete(func(ctx context.Context, c *api.Client, _ []string) ([]string, error) {
		res, err := c.ListNetworks(ctx, &overlaydv1.ListNetworksRequest{})
		if err != nil {
			return nil, err
		}
		var names []string
		for _, n := range res.Networks {
			names = append(names, cobra.CompletionWithDesc(n.Name, fmt.Sprintf("VNI %d", n.Vni)))
		}
		return names, nil
	})
}

// completeClusterNetwork offers the networks of the cluster.
func (a *app) completeClusterNetwork() completion {
	return a.complete(func(ctx context.Context, c *api.Client, _ []string) ([]string, error) {
		res, err := c.ListClusterNetworks(ctx, &overlaydv1.ListClusterNetworksRequest{})
		if err != nil {
			return nil, err
		}
		var names []string
		for _, n := range res.Networks {
			names = append(names, cobra.CompletionWithDesc(n.Name, fmt.Sprintf("VNI %d, %s", n.Vni, strings.Join(n.Subnets, ","))))
		}
		return names, nil
	})
}

// completeNode offers the nodes of the cluster.
func (a *app) completeNode() completion {
	return a.complete(func(ctx context.Context, c *api.Client, _ []string) ([]string, error) {
		res, err := c.ListNodes(ctx, &overlaydv1.ListNodesRequest{})
		if err != nil {
			return nil, err
		}
		var names []string
		for _, n := range res.Nodes {
			names = append(names, cobra.CompletionWithDesc(n.Name, n.Role+", "+n.Status))
		}
		return names, nil
	})
}

// completeEndpoint offers the endpoints of the network that stands before.
func (a *app) completeEndpoint() completion {
	return a.complete(func(ctx context.Context, c *api.Client, args []string) ([]string, error) {
		req := &overlaydv1.ListEndpointsRequest{Network: args[0], PageSize: maxCompletions}
		res, err := c.ListEndpoints(ctx, req)
		if err != nil {
			return nil, err
		}
		var names []string
		for _, e := range res.Endpoints {
			name := e.Name
			if name == "" {
				name = e.Id
			}
			names = append(names, cobra.CompletionWithDesc(name, strings.Join(e.Ips, ",")+" on "+e.Node))
		}
		return names, nil
	})
}

// completeNetNS offers the network namespaces of this host.
func (a *app) completeNetNS() completion {
	return func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		return a.namespaces(), cobra.ShellCompDirectiveNoFileComp
	}
}

// completeRole offers the two roles.
func completeRole() completion {
	return cobra.FixedCompletions([]string{api.RoleWorker, api.RoleManager}, cobra.ShellCompDirectiveNoFileComp)
}

// completeFile leaves it to the shell.
func completeFile() completion {
	return cobra.FixedCompletions(nil, cobra.ShellCompDirectiveDefault)
}

// completeNothing offers what only the operator knows: nothing.
func completeNothing() completion {
	return cobra.FixedCompletions(nil, cobra.ShellCompDirectiveNoFileComp)
}
