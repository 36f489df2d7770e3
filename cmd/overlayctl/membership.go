package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/overlayd/overlayd/controlplane/api"
	"github.com/overlayd/overlayd/controlplane/api/overlayd/v1"
)

// maxTokenFile bounds what is read as a token, in bytes. The daemon bounds it again.
const maxTokenFile = 4096

// place is how this node presents itself to a cluster.
type place struct {
	advertise []string
	name      string
}

func (p *place) flags(cmd *cobra.Command) {
	cmd.Flags().StringSliceVar(&p.advertise, "advertise", nil, "`address` of this host on the underlay, for the other hosts; several in the order in which they are preferred (default: the daemon's choice)")
	cmd.Flags().StringVar(&p.name, "name", "", "`name` of this node (default: the daemon's)")
	completeFlag(cmd, "advertise", completeNothing())
	completeFlag(cmd, "name", completeNothing())
}

func (a *app) initCommand() *cobra.Command {
	var p place
	cmd := &cobra.Command{
		Use:   "init",
		Short: "Make a cluster with this node as its first manager",
		Long: `init makes a cluster with this node as its first manager, and prints the
commands by which other hosts join. They hold secrets: whoever has the token of
a role can join in that role until it is rotated.`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: completeNothing(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.change(cmd.Context(), func(ctx context.Context, c *api.Client) error {
				res, err := c.Init(ctx, &overlaydv1.InitRequest{Advertise: p.advertise, Name: p.name})
				if err != nil {
					return err
				}
				if a.output == formatJSON {
					return printJSON(a.stdout, res)
				}
				_, err = fmt.Fprintf(a.stdout, "%s is now the first manager of the cluster %s.\n\n%s", res.GetNode().GetName(), res.ClusterId, joinText(res.GetTokens()))
				return err
			})
		},
	}
	p.flags(cmd)
	a.addOutput(cmd)
	return cmd
}

// joinText is the commands by which others join, for the roles whose tokens are there.
func joinText(t *overlaydv1.JoinTokens) string {
	var parts []string
	for _, x := range []struct{ role, token string }{{api.RoleWorker, t.GetWorker()}, {api.RoleManager, t.GetManager()}} {
		if x.token != "" {
			parts = append(parts, fmt.Sprintf("To add a %s, run this on its host:\n\n    overlayctl join --token %s %s\n", x.role, x.token, strings.Join(t.GetRemotes(), " ")))
		}
	}
	return strings.Join(parts, "\n")
}

func (a *app) joinCommand() *cobra.Command {
	var (
		p           place
		token, file string
	)
	cmd := &cobra.Command{
		Use:   "join (--token TOKEN | --token-file FILE) HOST:PORT...",
		Short: "Make this node a member of a cluster",
		Long: `join makes this node a member of the cluster that the token is of. It asks the
managers at HOST:PORT, one after the other, until one answers; the others are
learned from it. The role comes from the token.

A token on the command line can be read by everyone on this host while the
command runs, and stays in the shell's history. --token-file avoids both; with -
the token is read from the standard input.`,
		Args: func(_ *cobra.Command, args []string) error {
			switch {
			case token == "" && file == "":
				return errors.New("join needs --token or --token-file: `overlayctl token show worker --quiet` on a manager prints a token")
			case token != "" && file != "":
				return errors.New("join takes --token or --token-file, not both")
			case len(args) == 0:
				return errors.New("join needs the address of a manager, as in 192.0.2.1:7789")
			}
			return nil
		},
		ValidArgsFunction: completeNothing(),
		RunE: func(cmd *cobra.Command, args []string) error {
			if token == "-" {
				token, file = "", "-"
			}
			if file != "" {
				var err error
				if token, err = a.readToken(file); err != nil {
					return err
				}
			}
			return a.change(cmd.Context(), func(ctx context.Context, c *api.Client) error {
				res, err := c.Join(ctx, &overlaydv1.JoinRequest{Token: strings.TrimSpace(token), Remotes: args, Advertise: p.advertise, Name: p.name})
				if err != nil {
					return err
				}
				return a.answer(res, "%s is now a %s of the cluster %s.", res.GetNode().GetName(), res.GetNode().GetRole(), res.ClusterId)
			})
		},
	}
	cmd.Flags().StringVar(&token, "token", "", "`token` of the role, or - for the standard input")
	cmd.Flags().StringVar(&file, "token-file", "", "`file` that holds the token, or - for the standard input")
	completeFlag(cmd, "token", completeNothing())
	completeFlag(cmd, "token-file", completeFile())
	p.flags(cmd)
	a.addOutput(cmd)
	return cmd
}

// readToken reads a token from a file, or the standard input for "-".
func (a *app) readToken(file string) (string, error) {
	in, from := a.stdin, "the standard input"
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return "", fmt.Errorf("read the token: %w", err)
		}
		defer f.Close()
		in, from = f, file
	}
	b, err := io.ReadAll(io.LimitReader(in, maxTokenFile+1))
	switch {
	case err != nil:
		return "", fmt.Errorf("read the token: %w", err)
	case len(b) > maxTokenFile:
		return "", fmt.Errorf("read the token: %s has more than %d bytes: it should hold the token alone", from, maxTokenFile)
	}
	token := strings.TrimSpace(string(b))
	if token == "" {
		return "", fmt.Errorf("read the token: %s is empty: write into it what `overlayctl token show worker --quiet` prints on a manager", from)
	}
	return token, nil
}

func (a *app) leaveCommand() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "leave",
		Short: "Take this node out of its cluster",
		Long: `leave takes this node out of its cluster. It is refused while the node has
endpoints, for the last manager, and where the cluster would lose its quorum.
With --force the node leaves all the same, without its endpoints, also when no
manager can be reached; overlayctl node rm --force takes it off the cluster's
list then.`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: completeNothing(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.change(cmd.Context(), func(ctx context.Context, c *api.Client) error {
				res, err := c.Leave(ctx, &overlaydv1.LeaveRequest{Force: force})
				if err != nil {
					return err
				}
				return a.answer(res, "This node is in no cluster now.")
			})
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "leave at any price")
	a.addOutput(cmd)
	return cmd
}

func (a *app) tokenCommand() *cobra.Command {
	group := &cobra.Command{Use: "token", Short: "Join tokens"}
	group.AddCommand(a.tokenShowCommand(), a.tokenRotateCommand())
	return group
}

func (a *app) tokenShowCommand() *cobra.Command {
	var quiet bool
	cmd := &cobra.Command{
		Use:   "show [worker|manager]",
		Short: "Print the commands by which hosts join",
		Args: func(_ *cobra.Command, args []string) error {
			if quiet && len(args) == 0 {
				return errors.New("token show --quiet needs a role: worker or manager")
			}
			return roleArgument("token show", args, true)
		},
		ValidArgsFunction: positions(completeRole()),
		RunE: func(cmd *cobra.Command, args []string) error {
			req := &overlaydv1.GetTokensRequest{}
			if len(args) > 0 {
				req.Role = args[0]
			}
			return a.ask(cmd.Context(), func(ctx context.Context, c *api.Client) error {
				res, err := c.GetTokens(ctx, req)
				if err != nil {
					return err
				}
				if a.output == formatJSON {
					return printJSON(a.stdout, res)
				}
				return a.printTokens(res.GetTokens(), quiet)
			})
		},
	}
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "print the token alone")
	a.addOutput(cmd)
	return cmd
}

func (a *app) tokenRotateCommand() *cobra.Command {
	var quiet bool
	cmd := &cobra.Command{
		Use:   "rotate worker|manager",
		Short: "Replace a join token; the old one lets nobody in any more",
		Args: func(_ *cobra.Command, args []string) error {
			return roleArgument("token rotate", args, false)
		},
		ValidArgsFunction: positions(completeRole()),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.change(cmd.Context(), func(ctx context.Context, c *api.Client) error {
				res, err := c.RotateToken(ctx, &overlaydv1.RotateTokenRequest{Role: args[0]})
				if err != nil {
					return err
				}
				if a.output == formatJSON {
					return printJSON(a.stdout, res)
				}
				return a.printTokens(res.GetTokens(), quiet)
			})
		},
	}
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "print the new token alone")
	a.addOutput(cmd)
	return cmd
}

func (a *app) printTokens(t *overlaydv1.JoinTokens, quiet bool) error {
	text := joinText(t)
	if quiet {
		text = t.GetWorker() + t.GetManager() + "\n" // one of them is there
	}
	_, err := io.WriteString(a.stdout, text)
	return err
}

// roleArgument checks the arguments of a command that takes one role, or none if that is allowed.
func roleArgument(command string, args []string, none bool) error {
	switch {
	case len(args) == 0 && none:
		return nil
	case len(args) != 1:
		return fmt.Errorf("%s takes one role, worker or manager, not %s", command, plural(uint64(len(args)), "argument"))
	case args[0] != api.RoleWorker && args[0] != api.RoleManager:
		return fmt.Errorf("%s: %q is no role: choose worker or manager", command, args[0])
	}
	return nil
}
