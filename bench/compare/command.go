package compare

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/bench/lab"
	"github.com/overlayd/overlayd/bench/report"
)

// The defaults of a run for figures, and of --quick.
const (
	rounds        = 3
	duration      = 4 * time.Second
	warmup        = 500 * time.Millisecond
	quickRounds   = 1
	quickDuration = time.Second
	quickWarmup   = 100 * time.Millisecond
)

// settings are the flags.
type settings struct {
	Options
	json         string
	quick, check bool
}

// Command is "bench" with its subcommand, to be put below a root command.
func Command() *cobra.Command {
	var s settings
	cmd := &cobra.Command{
		Use:   "bench",
		Short: "Measure overlayd beside the kernel's VXLAN, in one run",
		Long: "Measure overlayd beside the kernel's VXLAN: the same traffic over the same kind of wire, in turns, between\n" +
			"network namespaces of this machine. Prints tables with the ratios. Needs root, and a machine with nothing\n" +
			"else to do.\n\n" + describeChoice(),
		Args: cobra.NoArgs,
		PreRunE: func(cmd *cobra.Command, _ []string) error {
			s.shorten(cmd)
			_, err := s.plan()
			return err
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			s.Overlayd = lab.FindOverlayd(s.Overlayd)
			if s.Overlayctl == "" {
				self, err := os.Executable()
				if err != nil {
					return fmt.Errorf("find the binary of overlayctl: %w", err)
				}
				s.Overlayctl = self
			}
			s.Progress = cmd.ErrOrStderr()
			ctx, stop := signal.NotifyContext(cmd.Context(), unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGPIPE)
			defer stop()
			return s.run(ctx, cmd.OutOrStdout())
		},
	}
	f := cmd.Flags()
	f.StringSliceVar(&s.Contenders, "contenders", []string{wordDefault}, "`names` of what to measure, separated by commas; what they are compared with comes along")
	f.StringSliceVar(&s.Workloads, "workloads", nil, "`names` of the traffic to measure with, separated by commas (default all)")
	f.IntVar(&s.Rounds, "rounds", rounds, "how often everything is measured")
	f.DurationVar(&s.Duration, "duration", duration, "of each measurement")
	f.DurationVar(&s.Warmup, "warmup", warmup, "of traffic before each measurement, which is left out")
	f.StringVar(&s.Congestion, "congestion-control", "", "`name` of the congestion control of TCP, such as cubic or bbr (default: that of this machine)")
	f.BoolVar(&s.quick, "quick", false, fmt.Sprintf("%d round, %v and %v of warm-up, to see whether it works", quickRounds, quickDuration, quickWarmup))
	f.StringVar(&s.json, "json", "", "`file` to write the results to")
	f.BoolVar(&s.check, "check", false, "exit with 1 when a floor or limit is missed or not measured")
	f.StringVar(&s.Overlayd, "overlayd", "", "`path` of the daemon's binary (default: overlayd beside this program, else in $PATH)")
	f.StringVar(&s.Overlayctl, "overlayctl", "", "`path` of the program that makes the cluster of overlayd-containers (default: this one)")
	cmd.AddCommand(showCommand())
	return cmd
}

// describeChoice lists contenders and workloads.
func describeChoice() string {
	var out strings.Builder
	width := 0
	for _, c := range contenders() {
		width = max(width, len(c.name))
	}
	out.WriteString("Contenders; those with a star are the default:\n")
	for _, c := range contenders() {
		star := " "
		if c.byDefault {
			star = "*"
		}
		fmt.Fprintf(&out, "%s %-*s  %s\n", star, width, c.name, c.about)
	}
	fmt.Fprintf(&out, "  %-*s  all of them\n", width, wordAll)
	fmt.Fprintf(&out, "  %-*s  those with a star\n\nWorkloads:\n", width, wordDefault)
	width = 0
	for _, w := range workloads() {
		width = max(width, len(w.Name))
	}
	for _, w := range workloads() {
		fmt.Fprintf(&out, "  %-*s  %s\n", width, w.Name, w.About)
	}
	return strings.TrimSuffix(out.String(), "\n")
}

// shorten applies --quick to what was not said otherwise.
func (s *settings) shorten(cmd *cobra.Command) {
	if !s.quick {
		return
	}
	if !cmd.Flags().Changed("rounds") {
		s.Rounds = quickRounds
	}
	if !cmd.Flags().Changed("duration") {
		s.Duration = quickDuration
	}
	if !cmd.Flags().Changed("warmup") {
		s.Warmup = quickWarmup
	}
}

// run measures, prints and judges.
func (s *settings) run(ctx context.Context, out io.Writer) error {
	var file *resultFile
	if s.json != "" {
		var err error
		if file, err = createResult(s.json); err != nil {
			return err
		}
	}
	r, err := Run(ctx, s.Options)
	if r == nil {
		return errors.Join(err, file.discard())
	}
	if file != nil {
		err = errors.Join(err, file.write(r))
	}
	err = errors.Join(err, r.Print(out))
	if n := len(r.Failures); n > 0 {
		err = errors.Join(err, fmt.Errorf("%d measurements failed; see \"Not measured\" in the output", n))
	}
	if missed, all := r.Missed(); s.check && missed > 0 {
		err = errors.Join(err, fmt.Errorf("%d of %d floors and limits were missed or not measured; see \"Floors and limits\" in the output", missed, all))
	}
	return err
}

// resultFile is where the JSON goes. It is opened before the measurements, so that minutes are not spent on
// what cannot be written.
type resultFile struct {
	f   *os.File
	old bool // it was there before
}

func createResult(path string) (*resultFile, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err == nil {
		return &resultFile{f: f}, nil
	}
	if !errors.Is(err, os.ErrExist) {
		return nil, fmt.Errorf("open the file for the results: %w", err)
	}
	if f, err = os.OpenFile(path, os.O_WRONLY, 0); err != nil {
		return nil, fmt.Errorf("open the file for the results: %w", err)
	}
	return &resultFile{f: f, old: true}, nil
}

// discard leaves things as they were. A nil file is fine.
func (o *resultFile) discard() error {
	if o == nil {
		return nil
	}
	err := o.f.Close()
	if !o.old {
		err = errors.Join(err, os.Remove(o.f.Name()))
	}
	return err
}

// write replaces what is in the file.
func (o *resultFile) write(r *report.Report) error {
	defer o.f.Close()
	if info, err := o.f.Stat(); err == nil && info.Mode().IsRegular() { // a pipe has nothing to be replaced
		if err := o.f.Truncate(0); err != nil {
			return fmt.Errorf("write the results: %w", err)
		}
	}
	if err := r.Encode(o.f); err != nil {
		return err
	}
	if err := o.f.Close(); err != nil {
		return fmt.Errorf("write the results: %w", err)
	}
	return nil
}

func showCommand() *cobra.Command {
	var chart bool
	cmd := &cobra.Command{
		Use:   "show FILE",
		Short: "Print the tables of an earlier run, from the file that --json has written",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			f, err := os.Open(args[0])
			if err != nil {
				return fmt.Errorf("show the results: %w", err)
			}
			defer f.Close()
			r, err := report.Decode(f)
			if err != nil {
				return fmt.Errorf("show the results in %s: %w", args[0], err)
			}
			if chart {
				return r.Chart(cmd.OutOrStdout())
			}
			return r.Print(cmd.OutOrStdout())
		},
	}
	cmd.Flags().BoolVar(&chart, "chart", false, "draw what is compared with the kernel, as an SVG image, instead of tables")
	return cmd
}
