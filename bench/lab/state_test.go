package lab

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/bench/load"
)

// TestSweep leaves a lab as a killed process would, and finds it swept by the next.
func TestSweep(t *testing.T) {
	root(t)
	dead, err := Up(within(t), kernelScenario(t, nil), Options{})
	if err != nil {
		t.Fatal(err)
	}
	stray := exec.Command("sleep", "1000")
	if err := dead.Host("h1").Start(stray); err != nil {
		t.Fatal(err)
	}
	l := up(t, kernelScenario(t, nil), Options{})
	if _, err := os.Stat(dead.Dir()); err != nil {
		t.Errorf("a lab that lives was swept: %v", err)
	}
	dead.Release() // the lock goes, as it does with the process
	sweep()
	if err := stray.Wait(); err == nil {
		t.Error("the stray process ended by itself")
	}
	nothingLeft(t, dead.state)
	if r, err := load.Ping(within(t), load.PingConfig{From: l.Host("h1"), To: l.Host("h2").Overlay("blue")}); err != nil || r.Received != 1 {
		t.Errorf("the lab that lives was damaged: %+v, %v", r, err)
	}
}

func TestDetached(t *testing.T) {
	sc := kernelScenario(t, nil)
	l := up(t, sc, Options{Detach: true})
	if _, err := Up(within(t), sc, Options{Detach: true}); !errors.Is(err, ErrExists) {
		t.Errorf("a second Up: %v, want ErrExists", err)
	}
	sweep() // must not touch it
	other, err := Open(sc.Name)
	if err != nil {
		t.Fatal(err)
	}
	r, err := load.Ping(within(t), load.PingConfig{From: other.Host("h2"), To: other.Host("h1").Overlay("blue")})
	if err != nil || r.Received != 1 {
		t.Errorf("ping in an opened lab: %+v, %v", r, err)
	}
	other.Release()
	names, err := Detached()
	if err != nil || !slices.Contains(names, sc.Name) {
		t.Errorf("Detached: %v, %v", names, err)
	}
	if err := Down(sc.Name); err != nil {
		t.Fatal(err)
	}
	nothingLeft(t, l.state)
	if err := Down(sc.Name); !errors.Is(err, ErrNoLab) {
		t.Errorf("a second Down: %v, want ErrNoLab", err)
	}
	if _, err := Open(sc.Name); !errors.Is(err, ErrNoLab) {
		t.Errorf("Open after Down: %v, want ErrNoLab", err)
	}
}

// TestDownDamaged takes down what a crash left in the middle.
func TestDownDamaged(t *testing.T) {
	sc := kernelScenario(t, nil)
	l := up(t, sc, Options{Detach: true})
	if err := deleteNamespace(l.Host("h1").NetNS()); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(sc.Name); err == nil || !strings.Contains(err.Error(), "take it down") {
		t.Errorf("Open of a damaged lab: %v", err)
	}
	if err := Down(sc.Name); err != nil {
		t.Errorf("Down of a damaged lab: %v", err)
	}
	nothingLeft(t, l.state)
	if err := os.MkdirAll(filepath.Join(Root, sc.Name), 0o755); err != nil { // cut short before the state was written
		t.Fatal(err)
	}
	if err := Down(sc.Name); err != nil {
		t.Errorf("Down of a lab without state: %v", err)
	}
	nothingLeft(t, l.state)
}

// TestRecycledPID makes sure that a process is known by more than its number.
func TestRecycledPID(t *testing.T) {
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	start, ok := startOf(cmd.Process.Pid)
	if !ok {
		t.Fatal("no start time of a process that runs")
	}
	if err := stop([]process{{PID: cmd.Process.Pid, Start: start + 1}}, unix.SIGTERM); err != nil {
		t.Error(err)
	}
	if now, ok := startOf(cmd.Process.Pid); !ok || now != start {
		t.Fatal("a process of another start time was ended")
	}
	if err := stop([]process{{PID: cmd.Process.Pid, Start: start}}, unix.SIGTERM); err != nil {
		t.Error(err)
	}
	if err := cmd.Wait(); err == nil {
		t.Error("the process ended by itself")
	}
}
