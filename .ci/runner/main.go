package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

// grace is how long an interrupted go test may take to let its tests clean up.
const grace = 30 * time.Second

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], goTest, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// tester runs go test with args and writes its JSON events to events. Its error says that the tests
// failed or could not be run.
type tester func(ctx context.Context, args []string, events, errs io.Writer) error

// goTest is the tester that runs the real thing.
func goTest(ctx context.Context, args []string, events, errs io.Writer) error {
	cmd := exec.CommandContext(ctx, "go", append([]string{"test", "-json"}, args...)...)
	cmd.Stdout, cmd.Stderr = events, errs
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = grace
	return cmd.Run()
}

// run makes all passes and returns the exit code.
func run(ctx context.Context, argv []string, test tester, out, errs io.Writer) int {
	flags := flag.NewFlagSet("runner", flag.ContinueOnError)
	flags.SetOutput(errs)
	strict := flags.Bool("strict", false, "fail if a test was left out")
	if err := flags.Parse(argv); err != nil {
		return 2
	}
	if flags.NArg() == 0 {
		fmt.Fprintln(errs, "runner: nothing to do; give the arguments of each go test as one argument")
		return 2
	}
	failed := false
	book := newBook(out)
	for _, pass := range flags.Args() {
		fmt.Fprintf(out, "# go test %s\n", pass)
		before := book.ran
		err := test(ctx, strings.Fields(pass), book, errs)
		book.flush()
		if err != nil {
			failed = true
			fmt.Fprintf(errs, "runner: go test %s: %v\n", pass, err)
		} else if *strict && book.ran == before {
			failed = true
			fmt.Fprintf(errs, "runner: go test %s: no test ran; correct the list of packages\n", pass)
		}
		if ctx.Err() != nil {
			return 1
		}
	}
	if left := book.leftOut(); len(left) > 0 {
		if *strict {
			failed = true
			for _, s := range left {
				fmt.Fprintf(errs, "runner: left out: %s: %s\n", s.name, s.reason)
			}
			fmt.Fprintf(errs, "runner: %d test(s) left out; supply what they ask for\n", len(left))
		} else {
			fmt.Fprintln(out, summary(left, os.Geteuid()))
		}
	}
	if failed {
		return 1
	}
	return 0
}

// summary says in one line what did not run. euid is the user that the tests ran as.
func summary(left []skip, euid int) string {
	var packages []string
	for _, s := range left {
		if n := len(packages); n == 0 || packages[n-1] != s.pkg {
			packages = append(packages, s.pkg)
		}
	}
	line := fmt.Sprintf("left out: %d test(s) in %s", len(left), strings.Join(packages, ", "))
	if euid != 0 {
		return line + "; those that make network namespaces need root: sudo make test"
	}
	return line + "; go test -v says why"
}
