package api_test

import (
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/overlayd/overlayd/controlplane/api"
	"github.com/overlayd/overlayd/controlplane/api/overlayd/v1"
)

func TestSocketModesAndEnd(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run")
	path := filepath.Join(dir, "overlayd.sock")
	// Neither an open nor a closed umask shows in the mode.
	for _, umask := range []int{0, 0o177} {
		old := syscall.Umask(umask)
		s, err := api.Listen(path)
		syscall.Umask(old)
		if err != nil {
			t.Fatal(err)
		}
		st, err := os.Lstat(path)
		if err != nil || st.Mode() != fs.ModeSocket|0o660 {
			t.Errorf("umask %03o: mode %v, %v", umask, st.Mode(), err)
		}
		if st, err := os.Stat(dir); umask == 0 && (err != nil || st.Mode().Perm() != 0o750) {
			t.Errorf("directory %v, %v", st.Mode(), err)
		}
		for range 2 {
			if err := s.Close(); err != nil {
				t.Errorf("Close: %v", err)
			}
		}
		if _, err := os.Lstat(dir); !os.IsNotExist(err) {
			t.Errorf("the directory that Listen made is left: %v", err)
		}
	}
}

// stale makes a socket file that nobody listens on, as a daemon that was killed leaves it.
func stale(t *testing.T, path string) {
	t.Helper()
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	ln.SetUnlinkOnClose(false)
	ln.Close()
}

func TestSocketStaleIsTakenOver(t *testing.T) {
	path := filepath.Join(t.TempDir(), "overlayd.sock")
	stale(t, path)
	s, err := api.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
}

func TestSocketLiveIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "overlayd.sock")
	s, err := api.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	_, err = api.Listen(path)
	want := fmt.Sprintf("listen on the API socket %s: process %d (api.test) listens on it already: stop that process, or choose another socket", path, os.Getpid())
	if err == nil || err.Error() != want {
		t.Errorf("error %v\nwant  %s", err, want)
	}
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("the live socket is gone: %v", err)
	}
}

// TestSocketClaimedByMany lets several claim one stale socket at once: one shall have it.
func TestSocketClaimedByMany(t *testing.T) {
	path := filepath.Join(t.TempDir(), "overlayd.sock")
	stale(t, path)
	const claimants = 16
	var wg sync.WaitGroup
	won := make(chan *api.Socket, claimants)
	for range claimants {
		wg.Go(func() {
			if s, err := api.Listen(path); err == nil {
				won <- s
			}
		})
	}
	wg.Wait()
	close(won)
	if len(won) != 1 {
		t.Errorf("%d have the socket, want 1", len(won))
	}
	for s := range won {
		s.Close()
	}
}

func TestSocketRefusals(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("keep"), 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		file:                                 "a file that is not a socket is in the way: remove it, or choose another socket",
		filepath.Join(file, "s"):             "not a directory",
		filepath.Join(dir, "a/b/s"):          "neither " + dir + "/a/b nor the directory above it exists",
		"/" + strings.Repeat("x", 107):       "the path has 108 bytes, a socket's has 1 to 107: choose another one",
		"":                                   "the path has 0 bytes",
		filepath.Join(dir, "new", "..", "."): "is in the way",
	} {
		s, err := api.Listen(path)
		if err == nil {
			s.Close()
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Listen(%q) = %v, want %q", path, err, want)
		}
	}
	if data, err := os.ReadFile(file); err != nil || string(data) != "keep" {
		t.Errorf("the file is now %q, %v", data, err)
	}
}

// TestSocketOfAnotherIsLeft replaces the socket while it is in use.
func TestSocketOfAnotherIsLeft(t *testing.T) {
	path := filepath.Join(t.TempDir(), "overlayd.sock")
	s, err := api.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	stale(t, path)
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("Close removed what is not its own: %v", err)
	}
}

func TestClientWithoutDaemon(t *testing.T) {
	dir := t.TempDir()
	left := filepath.Join(dir, "left.sock")
	stale(t, left)
	for path, want := range map[string]string{
		filepath.Join(dir, "none.sock"): "overlayd is not running here: there is no socket ",
		left:                            "overlayd is not running here: nobody listens on ",
	} {
		_, err := client(t, path).GetStatus(t.Context(), &overlaydv1.GetStatusRequest{})
		if got := api.Message(err); !strings.HasPrefix(got, want+path) {
			t.Errorf("%q, want %q", got, want+path)
		}
	}
}

func TestDialErrorOfPermission(t *testing.T) {
	for _, c := range []struct {
		path string
		gid  int
		want string
	}{
		{"root.sock", 0, ": become root"},
		{"group.sock", 64123, ": become root, or a member of the group 64123"},
	} {
		path := filepath.Join(t.TempDir(), c.path)
		stale(t, path)
		if err := os.Chown(path, 0, c.gid); err != nil {
			t.Skipf("needs root to give a file away: %v", err)
		}
		err := &api.DialError{Socket: path, Err: &net.OpError{Err: os.NewSyscallError("connect", syscall.EACCES)}}
		if want := "not allowed to use the socket " + path + c.want; err.Error() != want {
			t.Errorf("%q, want %q", err.Error(), want)
		}
	}
}
