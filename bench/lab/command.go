package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// socketEnv is where overlayctl looks for the daemon to ask.
const socketEnv = "OVERLAYD_SOCKET"

// Command is "lab" with its subcommands, to be put below a root command.
func Command() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "lab",
		Short: "Hosts in network namespaces, to try the overlay and to look around in it",
		Long: "Hosts in network namespaces, joined by a router and with an overlay on top. Needs root.\n\n" +
			"SCENARIO is the path of a YAML file, or one of:\n" + describeScenarios(),
	}
	cmd.AddCommand(runCommand(), upCommand(), downCommand(), execCommand(), statusCommand())
	return cmd
}

func describeScenarios() string {
	var out strings.Builder
	for _, name := range Names() {
		sc, err := Load(name)
		if err != nil { // compiled in, and checked by a test
			continue
		}
		fmt.Fprintf(&out, "  %-15s %s\n", name, strings.ReplaceAll(wrap(sc.About, 80), "\n", "\n"+strings.Repeat(" ", 18)))
	}
	return out.String()
}

func completeScenario(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return Names(), cobra.ShellCompDirectiveDefault
}

// tidySignals returns a context that ends with any signal that would otherwise end the process before it
// has cleaned up: a broken pipe at the output, too.
func tidySignals(ctx context.Context) (context.Context, context.CancelFunc) {
	return signal.NotifyContext(ctx, unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGPIPE)
}

// addOverlayd gives a command the flag --overlayd.
func addOverlayd(cmd *cobra.Command, path *string) {
	cmd.Flags().StringVar(path, "overlayd", "", "`path` of the daemon's binary (default: overlayd beside this program, else in $PATH)")
}

// FindOverlayd returns the path of the daemon's binary: the one that the user named, else the one beside this
// program, else the one in $PATH; "" when there is none, which matters only to a scenario that runs it.
func FindOverlayd(flag string) string {
	if flag != "" {
		return flag
	}
	if self, err := os.Executable(); err == nil {
		beside := filepath.Join(filepath.Dir(self), "overlayd")
		if _, err := os.Stat(beside); err == nil {
			return beside
		}
	}
	found, err := exec.LookPath("overlayd")
	if err != nil {
		return ""
	}
	return found
}

func runCommand() *cobra.Command {
	var overlayd string
	cmd := &cobra.Command{
		Use:   "run SCENARIO",
		Short: "Bring a lab up, send traffic through it, show what happened, and take it down",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			sc, err := Load(args[0])
			if err != nil {
				return err
			}
			ctx, stop := tidySignals(cmd.Context())
			defer stop()
			return Demo(ctx, sc, Options{Overlayd: FindOverlayd(overlayd)}, cmd.OutOrStdout())
		},
		ValidArgsFunction: completeScenario,
	}
	addOverlayd(cmd, &overlayd)
	return cmd
}

func upCommand() *cobra.Command {
	var overlayd string
	cmd := &cobra.Command{
		Use:   "up SCENARIO",
		Short: "Bring a lab up and leave it there to look around",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			sc, err := Load(args[0])
			if err != nil {
				return err
			}
			ctx, stop := tidySignals(cmd.Context())
			defer stop()
			l, err := Up(ctx, sc, Options{Overlayd: FindOverlayd(overlayd), Detach: true})
			if errors.Is(err, ErrExists) {
				return fmt.Errorf("%s is up already, or was left half-way: see %[2]s status %[1]s, take it down with %[2]s down %[1]s",
					sc.Name, cmd.Parent().CommandPath())
			}
			if err != nil {
				return interrupted(ctx, err)
			}
			defer l.Release()
			p := newPage(cmd.OutOrStdout())
			p.printf("%s is up. %s\n\n", p.style(bold, sc.Name), sc.About)
			l.describe(p)
			p.printf("\nLook around:\n")
			host, self := l.hosts[0].name, cmd.Parent().CommandPath()
			for _, hint := range [][2]string{
				{fmt.Sprintf("%s exec %s %s", self, sc.Name, host), "a shell on " + host},
				{fmt.Sprintf("%s exec %s %s -- tcpdump -ni eth0", self, sc.Name, host), "the underlay as " + host + " sees it"},
				{fmt.Sprintf("%s status %s", self, sc.Name), "what runs"},
				{fmt.Sprintf("%s down %s", self, sc.Name), "take it down"},
			} {
				p.printf("  %-*s  %s\n", len(self)+len(sc.Name)+len(host)+31, hint[0], hint[1])
			}
			return p.err
		},
		ValidArgsFunction: completeScenario,
	}
	addOverlayd(cmd, &overlayd)
	return cmd
}

// labName is the name under which a scenario is up. A file is read for it, so that what brought a lab up
// takes it down, too.
func labName(scenario string) (string, error) {
	if !strings.Contains(scenario, "/") && filepath.Ext(scenario) == "" {
		return scenario, nil
	}
	sc, err := Load(scenario)
	return sc.Name, err
}

func downCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "down SCENARIO",
		Short: "Take a lab down; also one that was left half-way",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			name, err := labName(args[0])
			if err != nil {
				return err
			}
			p := newPage(cmd.OutOrStdout())
			switch err := Down(name); {
			case errors.Is(err, ErrNoLab):
				p.printf("%s is not up: nothing to do\n", name)
			case errors.Is(err, errBusy):
				return fmt.Errorf("take down %s: it is just being brought up or taken down: wait for that, or end it", name)
			case err != nil:
				return fmt.Errorf("take down %s: %w", name, err)
			default:
				p.printf("%s is down\n", name)
			}
			return p.err
		},
		ValidArgsFunction: completeScenario,
	}
}

func statusCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "status [SCENARIO]",
		Short: "Show what a lab consists of and whether it runs, or list the labs that are up",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			p := newPage(cmd.OutOrStdout())
			if len(args) == 0 {
				names, err := Detached()
				if err != nil {
					return err
				}
				if len(names) == 0 {
					p.printf("no lab is up\n")
				}
				for _, name := range names {
					p.printf("%s\n", name)
				}
				return p.err
			}
			name, err := labName(args[0])
			if err != nil {
				return err
			}
			l, err := open(cmd, name)
			if err != nil {
				return err
			}
			defer l.Release()
			return l.status(p)
		},
		ValidArgsFunction: completeScenario,
	}
}

// open is Open with an error that names the commands to use.
func open(cmd *cobra.Command, name string) (*Lab, error) {
	l, err := Open(name)
	if errors.Is(err, ErrNoLab) {
		return nil, fmt.Errorf("%s is not up: bring it up with %s up %[1]s", name, cmd.Parent().CommandPath())
	}
	return l, err
}

// describe shows the hosts.
func (l *Lab) describe(p *page) {
	table := rows{{"HOST", "UNDERLAY", " MTU", " LOSS", "NETWORK", "OVERLAY", "BY"}}
	for _, h := range l.hosts {
		var underlay []string
		for _, a := range h.spec.Underlay {
			underlay = append(underlay, a.String())
		}
		first := []string{h.name, strings.Join(underlay, " "), strconv.Itoa(int(h.spec.MTU)), h.spec.Loss.String()}
		for _, n := range l.scenario.Networks {
			kind := h.Kind(n.Name)
			if kind == "" {
				continue
			}
			var overlay []string
			for _, a := range h.Overlays(n.Name) {
				overlay = append(overlay, a.String())
			}
			table.add(append(first, n.Name, strings.Join(overlay, " "), string(kind))...)
			first = []string{"", "", "", ""}
		}
		if first[0] != "" {
			table.add(append(first, "", "", "")...)
		}
	}
	p.table(table)
}

// status shows what runs; it is an error when something that should run does not.
func (l *Lab) status(p *page) error {
	p.printf("%s, up for %v. %s\n\n", p.style(bold, l.scenario.Name), time.Since(l.Created()).Round(time.Second), l.scenario.About)
	if !l.state.Built {
		p.printf("It is still being brought up, or that was cut short.\n\n")
	}
	l.describe(p)
	filtered, err := l.Filtered()
	if err != nil {
		return err
	}
	p.printf("\n")
	table := rows{{"NAME", "NAMESPACE", " DROPPED ON PURPOSE", "OVERLAYD", "LOG"}}
	var dead []string
	for _, h := range l.hosts {
		daemon, log := "-", ""
		if h.RunsOverlayd() {
			daemon, log = "ended", h.LogPath()
			if pid := h.PID(); pid != 0 {
				daemon = fmt.Sprintf("process %d", pid)
			} else {
				dead = append(dead, h.name)
			}
		}
		table.add(h.name, h.full, grouped(filtered[h.name]), daemon, log)
	}
	if l.router != nil {
		table.add(routerName, l.router.full, grouped(filtered[routerName]), "-", "")
	}
	p.table(table)
	if len(dead) > 0 {
		return fmt.Errorf("overlayd does not run on %s: its log says why", strings.Join(dead, ", "))
	}
	return p.err
}

func execCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "exec SCENARIO HOST [-- COMMAND ARGS...]",
		Short: "Run a command on a host of a lab that is up, a shell by default",
		Long: "Run a command on a host of a lab that is up, or on its router; a shell by default.\n\n" +
			"The command takes the place of this one: terminal, signals and exit code are its own. overlayctl in\n" +
			"it asks the daemon of that host.",
		Args: cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			name, err := labName(args[0])
			if err != nil {
				return err
			}
			l, err := open(cmd, name)
			if err != nil {
				return err
			}
			defer l.Release()
			command := args[2:]
			if len(command) > 0 && command[0] == "--" {
				command = command[1:]
			}
			if len(command) == 0 {
				shell := os.Getenv("SHELL")
				if shell == "" {
					shell = "/bin/sh"
				}
				command = []string{shell}
			}
			env := os.Environ()
			ns := l.router
			if args[1] != routerName || ns == nil {
				h, err := l.find(args[1])
				if err != nil {
					return err
				}
				ns = &h.Namespace
				env = append(env, socketEnv+"="+h.Socket())
			}
			// Our own programs are found in there even where they are not installed.
			path, err := exec.LookPath(command[0])
			if self, serr := os.Executable(); serr == nil {
				env = append(env, "PATH="+os.Getenv("PATH")+":"+filepath.Dir(self))
				if err != nil && filepath.Base(command[0]) == command[0] {
					path, err = exec.LookPath(filepath.Join(filepath.Dir(self), command[0]))
				}
			}
			if err != nil {
				return fmt.Errorf("run %s on %s: %w", command[0], args[1], err)
			}
			return ns.become(path, command, env)
		},
		ValidArgsFunction: completeScenario,
	}
	cmd.Flags().SetInterspersed(false) // what comes after the host is the command's
	return cmd
}

// become replaces this process by a command in the namespace. It returns only on error.
func (n *Namespace) become(path string, command, env []string) error {
	// The calling thread alone changes; exec then makes it the whole process.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := netns.Set(n.handle); err != nil {
		return fmt.Errorf("enter the network namespace %s: %w", n.full, err)
	}
	// /sys shows the devices of the namespace in which it was mounted. Where this is not allowed, it shows
	// those of this host, and everything else is as it should be.
	if unix.Unshare(unix.CLONE_NEWNS) == nil && unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, "") == nil {
		_ = unix.Mount(n.name, "/sys", "sysfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
	}
	return fmt.Errorf("run %s on %s: %w", command[0], n.name, unix.Exec(path, command, env))
}
