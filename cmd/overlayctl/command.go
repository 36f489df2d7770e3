package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	"github.com/overlayd/overlayd/bench/compare"
	"github.com/overlayd/overlayd/bench/lab"
	"github.com/overlayd/overlayd/controlplane/api"
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
	// changeTimeout bounds one change of the cluster. The daemon gives up earlier, and says why.
	changeTimeout = 70 * time.Second
	// completionTimeout bounds what the shell waits for when a key is pressed.
	completionTimeout = time.Second
)

// environment is what the program takes from outside.
type environment struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	getenv         func(string) string
	now            func() time.Time
	// namespaces returns the names of the network namespaces of this host.
	namespaces func() []string
	// recoverNode makes the manager whose data directory is given the only one of its cluster, and returns the ID of
	// its node. Its daemon must not run.
	recoverNode func(dir string) (string, error)
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
		Short: "See what the overlayd of this host does, and run its cluster",
		Long: `overlayctl asks the overlayd of this host what it forwards, to whom, and what
it drops. Through it, it makes hosts into a cluster, and networks and endpoints
in there; any host of the cluster will do.

Exit code: 0 when all went well, 1 when something failed, such as a daemon
that does not run, or was refused, 2 when the command line is at fault.`,
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	socket := a.getenv(socketEnv)
	if socket == "" {
		socket = defaultSocket
	}
	root.PersistentFlags().StringVar(&a.socket, "socket", socket, "`path` of the daemon's socket; the environment variable "+socketEnv+" sets the default")
	root.AddCommand(
		a.initCommand(), a.joinCommand(), a.leaveCommand(), a.tokenCommand(), a.nodeCommand(), a.clusterCommand(), a.backupCommand(), a.restoreCommand(),
		a.networkCommand(), a.endpointCommand(),
		a.statusCommand(), a.fdbCommand(), a.peersCommand(), a.mtuCommand(), a.dropsCommand(), a.versionCommand(),
		lab.Command(), compare.Command(),
	)
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
	completeFlag(cmd, "output", cobra.FixedCompletions([]string{string(formatTable), string(formatJSON)}, cobra.ShellCompDirectiveNoFileComp))
}

// ask runs f with a client whose calls are bounded in time.
func (a *app) ask(ctx context.Context, f func(context.Context, *api.Client) error) error {
	return a.within(ctx, callTimeout, f)
}

// change is ask for what changes the cluster.
func (a *app) change(ctx context.Context, f func(context.Context, *api.Client) error) error {
	return a.within(ctx, changeTimeout, f)
}

func (a *app) within(ctx context.Context, timeout time.Duration, f func(context.Context, *api.Client) error) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	client := api.NewClient(a.socket)
	defer client.Close()
	err := f(ctx, client)
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return fmt.Errorf("overlayd did not answer on %s within %v: look at its log, or at what keeps it busy", a.socket, timeout)
	}
	return err
}

// answer prints the answer to a request as JSON, or says in a sentence what has happened.
func (a *app) answer(res proto.Message, format string, args ...any) error {
	if a.output == formatJSON {
		return printJSON(a.stdout, res)
	}
	_, err := fmt.Fprintf(a.stdout, format+"\n", args...)
	return err
}

// exactly makes a command take as many arguments as it has names for them.
func exactly(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) == len(names) {
			return nil
		}
		return fmt.Errorf("%s takes %s, not %s", strings.TrimPrefix(cmd.CommandPath(), cmd.Root().Name()+" "), strings.Join(names, " and "), plural(uint64(len(args)), "argument"))
	}
}
