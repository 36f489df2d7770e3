package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/overlayd/overlayd/bench/compare"
	"github.com/overlayd/overlayd/bench/lab"
	"github.com/overlayd/overlayd/controlplane/api"
	"github.com/overlayd/overlayd/controlplane/api/overlayd/v1"
)

// The exit codes.
const (
	exitOK      = 0
	exitFailure = 1 // something failed, such as a daemon that does not run
	exitUsage   = 2 // the command line is at fault
)

const (
	defaultSocket = "/run/overlayd/overlayd.sock"
	socketEnv     = "OVERLAYD_SOCKET"

	// callTimeout bounds one question to the daemon, which answers from memory.
	callTimeout = 30 * time.Second
	// completionTimeout bounds what the shell waits for when a key is pressed.
	completionTimeout = time.Second
)

// environment is what the program takes from outside.
type environment struct {
	stdout, stderr io.Writer
	getenv         func(string) string
	now            func() time.Time
}

// app is one run of the program.
type app struct {
	environment
	socket  string
	output  format
	started bool // a command began, so the command line was understood
}

// format is how a listing is printed.
type format string

const (
	formatTable format = "table"
	formatJSON  format = "json"
)

// String, Set and Type make a format a pflag.Value.
func (f *format) String() string { return string(*f) }

func (f *format) Set(s string) error {
	switch format(s) {
	case formatTable, formatJSON:
		*f = format(s)
		return nil
	}
	return errors.New("choose table or json")
}

func (f *format) Type() string { return "format" }

// run is the program: it returns the exit code.
func run(ctx context.Context, args []string, env environment) int {
	a := &app{environment: env, output: formatTable}
	root := a.newRoot()
	root.SetArgs(args)
	root.SetOut(env.stdout)
	root.SetErr(env.stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitOK
	}
	text := strings.ReplaceAll(api.Message(err), "\n", "; ")
	if !a.started {
		fmt.Fprintf(env.stderr, "overlayctl: %s; see overlayctl --help\n", text)
		return exitUsage
	}
	fmt.Fprintf(env.stderr, "overlayctl: %s\n", text)
	return exitFailure
}

func (a *app) newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "overlayctl",
		Short: "See what the overlayd of this host does",
		Long: `overlayctl asks the overlayd of this host what it forwards, to whom, and what
it drops.

Exit code: 0 when all went well, 1 when something failed, such as a daemon
that does not run, 2 when the command line is at fault.`,
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	socket := a.getenv(socketEnv)
	if socket == "" {
		socket = defaultSocket
	}
	root.PersistentFlags().StringVar(&a.socket, "socket", socket, "`path` of the daemon's socket; the environment variable "+socketEnv+" sets the default")
	root.AddCommand(a.statusCommand(), a.networkCommand(), a.fdbCommand(), a.peersCommand(), a.dropsCommand(), a.versionCommand(), lab.Command(), compare.Command())
	a.prepare(root)
	return root
}

// prepare makes every command of the tree tell faults of the command line from failures: what happens before
// its RunE is the former. A group of commands by itself is a fault too.
func (a *app) prepare(cmd *cobra.Command) {
	switch {
	case cmd.RunE != nil:
		inner := cmd.RunE
		cmd.RunE = func(c *cobra.Command, args []string) error {
			a.started = true
			return inner(c, args)
		}
	case cmd.HasSubCommands():
		cmd.Args = cobra.ArbitraryArgs
		cmd.RunE = func(c *cobra.Command, args []string) error {
			if len(args) == 0 {
				return fmt.Errorf("%s needs one of the commands %s", c.CommandPath(), subcommands(c))
			}
			return fmt.Errorf("%s has no command %q: choose from %s", c.CommandPath(), args[0], subcommands(c))
		}
	}
	for _, sub := range cmd.Commands() {
		a.prepare(sub)
	}
}

func subcommands(cmd *cobra.Command) string {
	var names []string
	for _, sub := range cmd.Commands() {
		if sub.IsAvailableCommand() {
			names = append(names, sub.Name())
		}
	}
	return strings.Join(names, ", ")
}

// addOutput gives a listing the flag -o.
func (a *app) addOutput(cmd *cobra.Command) {
	cmd.Flags().VarP(&a.output, "output", "o", "table or json")
	// The error says that the flag does not exist or is completed already; both would be seen at once.
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{string(formatTable), string(formatJSON)}, cobra.ShellCompDirectiveNoFileComp))
}

// ask runs f with a client whose calls are bounded in time.
func (a *app) ask(ctx context.Context, f func(context.Context, *api.Client) error) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	client := api.NewClient(a.socket)
	defer client.Close()
	err := f(ctx, client)
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return fmt.Errorf("overlayd did not answer on %s within %v: look at its log, or at what keeps it busy", a.socket, callTimeout)
	}
	return err
}

// completeNetwork offers the names of the networks to the shell.
func (a *app) completeNetwork(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	ctx, cancel := context.WithTimeout(cmd.Context(), completionTimeout)
	defer cancel()
	client := api.NewClient(a.socket)
	defer client.Close()
	res, err := client.ListNetworks(ctx, &overlaydv1.ListNetworksRequest{})
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	var names []string
	for _, n := range res.Networks {
		names = append(names, cobra.CompletionWithDesc(n.Name, fmt.Sprintf("VNI %d", n.Vni)))
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
