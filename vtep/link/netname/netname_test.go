//go:build linux

package netname

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

const childVariable = "OVERLAYD_NETNAME_TEST"

// On a host that has had no names yet, those that are made can be taken away, and nothing of them is left.
func TestFirstNames(t *testing.T) {
	if os.Getenv(childVariable) == "" {
		cmd := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v")
		cmd.Env = append(os.Environ(), childVariable+"=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS} // whose mounts are private
		out, err := cmd.CombinedOutput()
		if errors.Is(err, unix.EPERM) && os.Getenv("CI") != "true" {
			t.Skip("needs root: mount namespaces")
		}
		if err != nil || !strings.Contains(string(out), "--- PASS") {
			t.Fatalf("the child: %v\n%s", err, out)
		}
		return
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(unix.Mount("tmpfs", filepath.Dir(Dir), "tmpfs", 0, "")) // a host that has just started
	must(Make("a"))
	must(os.WriteFile(filepath.Join(Dir, "b"), nil, 0o600)) // left by somebody else
	if err := Make("b"); !errors.Is(err, os.ErrExist) {
		t.Errorf("a name that is taken: %v", err)
	}
	must(Make("c"))
	if shared, _ := propagation("self"); !shared {
		t.Error("names do not show in other mount namespaces")
	}
	for _, name := range []string{"a", "b", "c", "c", "d"} {
		must(Clear(name))
	}
	left, err := os.ReadDir(Dir)
	must(err)
	if len(left) > 0 {
		t.Errorf("left are %v", left)
	}
}
