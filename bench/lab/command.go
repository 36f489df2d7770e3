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
	"slices"
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

// programs are the binaries that a lab may need. overlayctl is this program itself.
func programs(overlayd string) (Options, error) {
	self, err := os.Executable()
	if err != nil {
		return Options{}, fmt.Errorf("find the binary of overlayctl: %w", err)
	}
	return Options{Overlayd: FindOverlayd(overlayd), Overlayctl: self}, nil
}

func runCommand() *cobra.Command {
	var overlayd string
	var slack, transfer int
	cmd := &cobra.Command{
		Use:   "run SCENARIO",
		Short: "Bring a lab up, send traffic through it, show what happened, and take it down",
		Long: "Bring a lab up, send traffic through it, show what happened, and take it down. In a cluster of three\n" +
			"managers or more the leader is killed while containers on other hosts talk. A scenario with a story, such as\n" +
			"narrow-hop, goes through that. Each check is shown with what was expected and what was seen; the exit code is 1\n" +
			"if one failed.",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			sc, err := Load(args[0])
			if err != nil {
				return err
			}
			o, err := programs(overlayd)
			if err != nil {
				return err
			}
			if slack < 1 || transfer < 1 {
				return fmt.Errorf("--slack %d --transfer %d: each has to be 1 at least", slack, transfer)
			}
			o.Slack, o.Transfer = slack, int64(transfer)<<20
			ctx, stop := tidySignals(cmd.Context())
			defer stop()
			return Demo(ctx, sc, o, cmd.OutOrStdout())
		},
		ValidArgsFunction: completeScenario,
	}
	addOverlayd(cmd, &overlayd)
	cmd.Flags().IntVar(&slack, "slack", 1, "`factor` for the times within which a story expects something, on a slow machine")
	cmd.Flags().IntVar(&transfer, "transfer", defaultTransfer>>20, "how `many` MB narrow-hop sends each way")
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
			o, err := programs(overlayd)
			if err != nil {
				return err
			}
			p := newPage(cmd.OutOrStdout())
			start := time.Now()
			o.Detach = true
			o.Tell = func(host, line string) { p.command(time.Since(start), host, line) }
			ctx, stop := tidySignals(cmd.Context())
			defer stop()
			l, err := Up(ctx, sc, o)
			if errors.Is(err, ErrExists) {
				return fmt.Errorf("%s is up already, or was left half-way: see %[2]s status %[1]s, take it down with %[2]s down %[1]s",
					sc.Name, cmd.Parent().CommandPath())
			}
			if err != nil {
				return interrupted(ctx, err)
			}
			defer l.Release()
			p.printf("\n%s is up\n%s\n\n", p.style(bold, sc.Name), wrap(sc.About, pageWidth))
			l.describe(p)
			l.hint(p, cmd.Parent().CommandPath())
			return p.err
		},
		ValidArgsFunction: completeScenario,
	}
	addOverlayd(cmd, &overlayd)
	return cmd
}

// hint says what may be done with a lab that is up. self is the command of which the others are part.
func (l *Lab) hint(p *page, self string) {
	p.printf("\nLook around:\n")
	host := l.hosts[0].name
	enter := fmt.Sprintf("%s exec %s ", self, l.scenario.Name)
	hints := [][2]string{
		{enter + host, "a shell on " + host},
		{enter + host + " -- tcpdump -ni eth0", "the underlay as " + host + " sees it"},
	}
	if len(l.containers) > 1 {
		hints = append(hints, [2]string{enter + host + " -- overlayctl node ls", "what " + host + " knows of the cluster"})
		from, to := l.containers[0], l.containers[len(l.containers)-1]
		for i := range l.scenario.Networks {
			if ips := to.Overlays(l.scenario.Networks[i].Name); len(ips) > 0 {
				hints = append(hints, [2]string{enter + from.name + " -- ping " + ips[0].String(), "from one container to another"})
				break
			}
		}
	}
	hints = append(hints,
		[2]string{fmt.Sprintf("%s status %s", self, l.scenario.Name), "what runs"},
		[2]string{fmt.Sprintf("%s down %s", self, l.scenario.Name), "take it down"})
	width := 0
	for _, h := range hints {
		width = max(width, len(h[0]))
	}
	for _, h := range hints {
		p.printf("  %-*s  %s\n", width, h[0], h[1])
	}
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
	titles := []string{"HOST", "UNDERLAY", " MTU", " LOSS", "CLUSTER", "NETWORK", "OVERLAY", "BY"}
	role := slices.Index(titles, "CLUSTER")
	table := rows{titles}
	for _, h := range l.hosts {
		var underlay []string
		for _, a := range h.spec.Underlay {
			underlay = append(underlay, a.String())
		}
		first := []string{h.name, strings.Join(underlay, " "), strconv.Itoa(int(h.spec.MTU)), h.spec.Loss.String(), string(h.spec.Cluster)}
		for i := range l.scenario.Networks {
			n := &l.scenario.Networks[i]
			for _, s := range l.stations(n.Name) {
				if s.host != h {
					continue
				}
				by := string(h.Kind(n.Name))
				if n.ofCluster() {
					by = "container " + s.name
				}
				var overlay []string
				for _, a := range s.addrs {
					overlay = append(overlay, a.String())
				}
				table.add(append(first, n.Name, strings.Join(overlay, " "), by)...)
				first = []string{"", "", "", "", ""}
			}
		}
		if first[0] != "" {
			table.add(append(first, "", "", "")...)
		}
	}
	if !l.scenario.hasCluster() {
		for i := range table {
			table[i] = slices.Delete(table[i], role, role+1)
		}
	}
	p.table(table)
}

// status shows what runs; it is an error when something that should run does not.
func (l *Lab) status(p *page) error {
	p.printf("%s, up for %v\n%s\n\n", p.style(bold, l.scenario.Name), time.Since(l.Created()).Round(time.Second), wrap(l.scenario.About, pageWidth))
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
	for _, c := range l.containers {
		table.add(c.name, c.full, "-", "-", "")
	}
	p.table(table)
	if len(dead) > 0 {
		return fmt.Errorf("overlayd does not run on %s: its log says why", strings.Join(dead, ", "))
	}
	return p.err
}

func execCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "exec SCENARIO PLACE [-- COMMAND ARGS...]",
		Short: "Run a command on a host of a lab that is up, or in a container, a shell by default",
		Long: "Run a command in a lab that is up, a shell by default. PLACE is a host, a container or \"" + routerName + "\".\n\n" +
			"The command takes the place of this one: terminal, signals and exit code are its own. overlayctl asks\n" +
			"the daemon of that host.",
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
			ns, h, err := l.place(args[1])
			if err != nil {
				return err
			}
			if h != nil {
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

// place finds the namespace of a host, a container or the router by its name, and the host that it is or is on.
func (l *Lab) place(name string) (*Namespace, *Host, error) {
	if name == routerName && l.router != nil {
		return l.router, nil, nil
	}
	if c := l.Container(name); c != nil {
		return &c.Namespace, c.host, nil
	}
	h, err := l.find(name)
	if err == nil {
		return &h.Namespace, h, nil
	}
	if len(l.containers) > 0 {
		var names []string
		for _, c := range l.containers {
			names = append(names, c.name)
		}
		err = fmt.Errorf("%w, its containers %s", err, strings.Join(names, ", "))
	}
	return nil, nil, err
}

// become replaces this process by a command in the namespace. It returns only on error.
func (n *Namespace) become(path string, command, env []string) error {
	// The calling thread alone changes; exec then makes it the whole process.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := netns.Set(n.handle); err != nil {
		return fmt.Errorf("enter the network namespace %s: %w", n.full, err)
	}
	if err := takeName(n.name); err != nil {
		return err
	}
	// /sys shows the devices of the namespace in which it was mounted. Where this is not allowed, it shows
	// those of this host, and everything else is as it should be.
	if unix.Unshare(unix.CLONE_NEWNS) == nil && unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, "") == nil {
		_ = unix.Mount(n.name, "/sys", "sysfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
	}
	return fmt.Errorf("run %s on %s: %w", command[0], n.name, unix.Exec(path, command, env))
}
