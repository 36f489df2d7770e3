package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/overlayd/overlayd/cmd/overlayd/config"
	"github.com/overlayd/overlayd/controlplane/api"
	"github.com/overlayd/overlayd/vtep"
)

// The exit codes.
const (
	exitOK      = 0
	exitFailure = 1 // something failed while starting or running
	exitConfig  = 2 // the command line or the configuration file is at fault
)

// defaultConfig is the file that is read when no other is named.
const defaultConfig = "/etc/overlayd/overlayd.yaml"

// system is what the daemon takes from outside of this program.
type system struct {
	open   func(vtep.Config) (tunnel, error)
	facts  func() (config.Facts, error)
	notify func(state string) error // to the service manager
	relax  func() error             // has the process cost less while nothing happens
}

// usageError is a fault of the command line.
type usageError struct{ err error }

func (e usageError) Error() string { return e.err.Error() + "; see overlayd --help" }
func (e usageError) Unwrap() error { return e.err }

// run is the program: it returns the exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer, sys system) int {
	cmd := newCommand(sys)
	cmd.SetArgs(args)
	cmd.SetOut(stdout)
	cmd.SetErr(stderr)
	err := cmd.ExecuteContext(ctx)
	if err == nil {
		return exitOK
	}
	// One line, whatever was joined or wrapped.
	fmt.Fprintf(stderr, "overlayd: %s\n", strings.ReplaceAll(err.Error(), "\n", "; "))
	if isConfigFault(err) {
		return exitConfig
	}
	return exitFailure
}

func isConfigFault(err error) bool {
	if _, runtime := errors.AsType[failure](err); runtime {
		return false
	}
	_, usage := errors.AsType[usageError](err)
	_, file := errors.AsType[*config.Error](err)
	return usage || file
}

func newCommand(sys system) *cobra.Command {
	var (
		file, logLevel, socket, metrics, dataDir string
		disable                                  []string
	)
	cmd := &cobra.Command{
		Use:   "overlayd",
		Short: "The userspace VXLAN overlay daemon",
		Long: `overlayd brings up the VXLAN networks of its configuration file and those of
the cluster that it is in, and forwards until it is told to end by SIGTERM or
SIGINT. Without a file it waits for overlayctl init or overlayctl join.

Exit code: 0 after such an end, 1 when something failed, 2 when the command
line or the configuration file is at fault.`,
		Args:              cobra.NoArgs,
		SilenceErrors:     true,
		SilenceUsage:      true,
		Version:           api.VersionLine(api.BuildVersion()),
		CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true},
	}
	flags := cmd.Flags()
	flags.StringVar(&file, "config", defaultConfig, "configuration `file`")
	flags.StringSliceVar(&disable, "disable", nil, "`features` not to use, instead of the key disable:\n"+strings.Join(featureNames(sys), ", "))
	flags.StringVar(&dataDir, "data-dir", "", "`directory` of the control plane, instead of the key data_dir")
	flags.StringVar(&logLevel, "log", "info", "debug, info, warn or error, instead of the key log")
	flags.StringVar(&metrics, "metrics", config.DefaultMetrics, "`address` of the Prometheus endpoint, instead of the key metrics; empty turns it off")
	flags.StringVar(&socket, "socket", config.DefaultSocket, "`path` of the local API's socket, instead of the key socket")
	cmd.SetVersionTemplate("overlayd {{.Version}}\n")
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	cmd.Args = func(_ *cobra.Command, args []string) error {
		if len(args) > 0 {
			return usageError{fmt.Errorf("unexpected argument %q", args[0])}
		}
		return nil
	}

	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		var over []config.Override
		for _, o := range []config.Override{
			{Key: "data_dir", Values: []string{dataDir}},
			{Key: "disable", Values: disable},
			{Key: "log", Values: []string{logLevel}},
			{Key: "metrics", Values: []string{metrics}},
			{Key: "socket", Values: []string{socket}},
		} {
			if name := strings.ReplaceAll(o.Key, "_", "-"); flags.Changed(name) {
				o.Flag = "--" + name
				over = append(over, o)
			}
		}
		facts, err := sys.facts()
		if err != nil {
			return err
		}
		cfg, err := load(file, flags.Changed("config"), over, facts)
		if err != nil {
			return err
		}
		return serve(cmd.Context(), cfg, sys, newLogger(cmd.ErrOrStderr(), cfg.Log))
	}
	return cmd
}

// load reads the file. The default one need not be there.
func load(file string, named bool, over []config.Override, facts config.Facts) (*config.Config, error) {
	if _, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) && !named {
		return config.Defaults(over, facts)
	}
	return config.Load(file, over, facts)
}

// featureNames lists the features for the help text.
func featureNames(sys system) []string {
	facts, err := sys.facts()
	if err != nil {
		return nil
	}
	return facts.Features
}

// newLogger logs key-values to w. Under systemd the journal stamps each line, so the time is left out.
func newLogger(w io.Writer, level slog.Level) *slog.Logger {
	opts := &slog.HandlerOptions{Level: level}
	if os.Getenv("JOURNAL_STREAM") != "" {
		opts.ReplaceAttr = func(groups []string, a slog.Attr) slog.Attr {
			if len(groups) == 0 && a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		}
	}
	return slog.New(slog.NewTextHandler(w, opts))
}
