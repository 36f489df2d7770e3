package fastpath

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/vtep/link/linktest"
)

// actEnv makes the test program act as a daemon: see act.
const actEnv = "OVERLAYD_FASTPATH_ACT"

// loopback is the index of that device in every namespace.
const loopback = 1

// act attaches everything to the loopback device, says which objects it has made, and waits for its own end.
func act() {
	_, _, ids, err := attachAll()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(strings.Join(ids, " "))
	time.Sleep(time.Minute)
}

// attachAll opens a table and attaches one of each program, and returns what the kernel calls all that there is now.
func attachAll() (t *Table, hooks []*Hook, ids []string, err error) {
	t, err = Open(port)
	if err != nil {
		return nil, nil, nil, err
	}
	for _, m := range []*ebpf.Map{t.leave, t.arrive, t.locals, t.leaveGates.m, t.arriveGates.m, t.counters.m} {
		info, err := m.Info()
		if err != nil {
			return nil, nil, nil, err
		}
		id, _ := info.ID()
		ids = append(ids, fmt.Sprintf("map:%d", id))
	}
	for _, attach := range []func() (*Hook, error){
		func() (*Hook, error) { return t.AttachTAP(t.NewOutlet(), loopback, 0) },
		func() (*Hook, error) { return t.AttachTAP(t.NewOutlet(), loopback, loopback) },
		func() (*Hook, error) { return t.AttachUnderlay(loopback) },
		func() (*Hook, error) { return AttachUplink(loopback) },
		func() (*Hook, error) { return AttachDownlink(loopback, loopback) },
	} {
		h, err := attach()
		if err != nil {
			return nil, nil, nil, err
		}
		hooks = append(hooks, h)
		prog, err := h.prog.Info()
		if err != nil {
			return nil, nil, nil, err
		}
		id, _ := prog.ID()
		tcx, err := h.link.Info()
		if err != nil {
			return nil, nil, nil, err
		}
		ids = append(ids, fmt.Sprintf("prog:%d", id), fmt.Sprintf("link:%d", tcx.ID))
	}
	return t, hooks, ids, nil
}

// exists reports whether the kernel still has an object.
func exists(t *testing.T, id string) bool {
	t.Helper()
	var n uint32
	kind, number, _ := strings.Cut(id, ":")
	_, err := fmt.Sscan(number, &n)
	linktest.Must(t, err)
	var object interface{ Close() error }
	switch kind {
	case "map":
		object, err = ebpf.NewMapFromID(ebpf.MapID(n))
	case "prog":
		object, err = ebpf.NewProgramFromID(ebpf.ProgramID(n))
	case "link":
		object, err = link.NewFromID(link.ID(n))
	default:
		t.Fatalf("what is %s?", id)
	}
	if errors.Is(err, os.ErrNotExist) {
		return false
	}
	if err == nil {
		linktest.Must(t, object.Close())
	}
	return true
}

// gone waits until none of the objects is there any more, which the kernel sees to when nobody uses them for certain.
func gone(t *testing.T, ids []string) {
	t.Helper()
	for _, id := range ids {
		linktest.Await(t, "end of "+id, func() bool { return !exists(t, id) })
	}
}

// TestGone looks that nothing is left behind, however the process ends.
func TestGone(t *testing.T) {
	newTable(t)
	linktest.Enter(t)
	table, hooks, ids, err := attachAll()
	linktest.Must(t, err)
	for _, id := range ids {
		if !exists(t, id) {
			t.Errorf("%s is not there to begin with", id)
		}
	}
	for _, h := range hooks {
		linktest.Must(t, h.Close(), h.Close())
	}
	linktest.Must(t, table.Close(), table.Close())
	gone(t, ids)

	for _, how := range []os.Signal{unix.SIGTERM, unix.SIGKILL} {
		self, err := os.Executable()
		linktest.Must(t, err)
		cmd := exec.Command(self)
		cmd.Env = append(os.Environ(), actEnv+"=1")
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		linktest.Must(t, err, cmd.Start())
		buf := make([]byte, 4096)
		n, err := out.Read(buf) // one line in one write
		ids := strings.Fields(string(buf[:n]))
		there := true
		for _, id := range ids {
			there = there && exists(t, id)
		}
		_ = cmd.Process.Signal(how)
		_ = cmd.Wait() // it ends by the signal
		linktest.Must(t, err)
		if !there || len(ids) != 16 {
			t.Errorf("not all of %v were there", ids)
		}
		gone(t, ids)
	}
}

// TestAttachNowhere looks that an error names the device, and that TAPs get numbers of their own.
func TestAttachNowhere(t *testing.T) {
	table := newTable(t)
	linktest.Enter(t)
	for name, attach := range map[string]func() (*Hook, error){
		"TAP":      func() (*Hook, error) { return table.AttachTAP(table.NewOutlet(), 9999, 0) },
		"underlay": func() (*Hook, error) { return table.AttachUnderlay(9999) },
		"uplink":   func() (*Hook, error) { return AttachUplink(9999) },
		"downlink": func() (*Hook, error) { return AttachDownlink(9999, loopback) },
	} {
		h, err := attach()
		if err == nil {
			linktest.Must(t, h.Close())
		}
		if !errors.Is(err, unix.ENODEV) || !strings.Contains(err.Error(), "9999") {
			t.Errorf("%s, on no device: %v", name, err)
		}
	}
	if a, b := table.NewOutlet(), table.NewOutlet(); a == 0 || a == b {
		t.Errorf("outlets %d and %d", a, b)
	}
}
