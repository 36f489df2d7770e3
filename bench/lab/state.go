package lab

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/vtep/link"
)

// Root is where labs keep their state, logs and sockets: a directory for each.
const Root = "/run/overlayd-lab"

const (
	stateFile   = "state.json"
	privateMark = "~" // between scenario and ID in the name of the directory of a lab that ends with its process
)

// ErrExists says that a detached lab of this name is there already.
var ErrExists = errors.New("the lab is there already")

// ErrNoLab says that there is no detached lab of this name.
var ErrNoLab = errors.New("there is no such lab")

// state is what must be known to take a lab down, whoever made it.
type state struct {
	ID         string           `json:"id"`
	Scenario   Scenario         `json:"scenario"`
	Created    time.Time        `json:"created"`
	Overlayd   string           `json:"overlayd,omitempty"`   // path of the binary, where one is needed
	Overlayctl string           `json:"overlayctl,omitempty"` // likewise
	Built      bool             `json:"built"`                // false: still being built, or that was cut short
	Namespaces []stateNamespace `json:"namespaces"`           // written before they are made
	Processes  []process        `json:"processes"`            // written after they were started; others are found by their namespace
	Endpoints  []endpoint       `json:"endpoints,omitempty"`
}

type stateNamespace struct {
	Host      string `json:"host"`                // or "router"
	Container string `json:"container,omitempty"` // on that host; empty = it is the host itself
	NetNS     string `json:"netns"`               // in the system
}

// claim is a directory under Root, locked by this process.
type claim struct {
	dir  string
	lock *os.File // the directory itself; the kernel lets the lock go when the process ends
}

// newID returns an identifier of a run, short because namespaces are called by it.
func newID() string {
	var b [3]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// claimNew makes and locks the directory of a lab. ErrExists if it is there.
func claimNew(dir string) (*claim, error) {
	for {
		if err := os.MkdirAll(Root, 0o755); err != nil {
			return nil, fmt.Errorf("make the directory of all labs: %w", err)
		}
		err := os.Mkdir(dir, 0o755)
		switch {
		case errors.Is(err, os.ErrExist):
			return nil, ErrExists
		case errors.Is(err, os.ErrNotExist):
			continue // the last lab went, and Root with it
		case err != nil:
			return nil, fmt.Errorf("make the directory of the lab: %w", err)
		}
		// Who has it now takes it for a leftover, and will have removed it or let it go in a moment.
		c, err := lockDir(dir, unix.LOCK_EX)
		if !errors.Is(err, ErrNoLab) {
			return c, err
		}
	}
}

// errBusy says that another process has the lock.
var errBusy = errors.New("another process is at work on the lab")

// claimExisting locks the directory of a lab that is there: ErrNoLab if it is not, errBusy if it is locked.
func claimExisting(dir string) (*claim, error) {
	return lockDir(dir, unix.LOCK_EX|unix.LOCK_NB)
}

func lockDir(dir string, how int) (*claim, error) {
	f, err := os.Open(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, ErrNoLab
	}
	if err != nil {
		return nil, fmt.Errorf("open the directory of the lab: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), how); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, errBusy
		}
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	// Between open and lock it may have been removed, and even made anew.
	locked, err := f.Stat()
	if err == nil {
		var there os.FileInfo
		if there, err = os.Stat(dir); err == nil && os.SameFile(locked, there) {
			return &claim{dir: dir, lock: f}, nil
		}
	}
	f.Close()
	return nil, ErrNoLab
}

// release lets the lock go and leaves the directory.
func (c *claim) release() {
	if c.lock != nil {
		_ = c.lock.Close() // nothing was written through it
		c.lock = nil
	}
}

// remove takes the directory away, and Root if that was the last.
func (c *claim) remove() error {
	if err := os.RemoveAll(c.dir); err != nil {
		return fmt.Errorf("remove the directory of the lab: %w", err)
	}
	c.release()
	_ = os.Remove(Root) // fails while there are other labs
	return nil
}

// writeState replaces the state in one step, so that a reader or a crash never sees half of it.
func writeState(dir string, s *state) error {
	text, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return fmt.Errorf("encode the state of the lab: %w", err)
	}
	next := filepath.Join(dir, stateFile+".new")
	if err := os.WriteFile(next, append(text, '\n'), 0o644); err != nil {
		return fmt.Errorf("write the state of the lab: %w", err)
	}
	if err := os.Rename(next, filepath.Join(dir, stateFile)); err != nil {
		return fmt.Errorf("write the state of the lab: %w", err)
	}
	return nil
}

// readState returns nil without an error when there is no state: nothing was made yet.
func readState(dir string) (*state, error) {
	text, err := os.ReadFile(filepath.Join(dir, stateFile))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the state of the lab: %w", err)
	}
	s := new(state)
	if err := json.Unmarshal(text, s); err != nil {
		return nil, fmt.Errorf("decode the state of the lab in %s: %w", dir, err)
	}
	return s, nil
}

// dismantle removes everything that a state names, whatever of it is still there, and then the directory.
// What cannot be removed is in the error, and the state stays for another try.
func (c *claim) dismantle() error {
	s, err := readState(c.dir)
	if err != nil {
		return err
	}
	if s == nil {
		return c.remove()
	}
	if err := s.clear(); err != nil {
		return err
	}
	return c.remove()
}

// clear ends the processes and removes the namespaces.
func (s *state) clear() error {
	errs := []error{stop(s.Processes, unix.SIGTERM)}
	var inodes []uint64
	for _, ns := range s.Namespaces {
		if inode, err := namespaceInode(ns.NetNS); err == nil {
			inodes = append(inodes, inode)
		}
	}
	// Shells that someone left open (an interactive one heeds SIGHUP, not SIGTERM), and daemons whose start
	// was cut short before it was written down. One that is just forking may escape the first look.
	for range 3 {
		if rest := inside(inodes); len(rest) > 0 {
			errs = append(errs, stop(rest, unix.SIGHUP, unix.SIGTERM))
			continue
		}
		break
	}
	for _, ns := range s.Namespaces {
		errs = append(errs, removeSandboxes(ns.NetNS), deleteNamespace(ns.NetNS))
	}
	return errors.Join(errs...)
}

// removeSandboxes removes the namespaces that the overlayd of a host keeps for the networks of a cluster. They outlast it.
func removeSandboxes(netns string) error {
	ns, err := link.OpenNamespace(netns)
	if errors.Is(err, link.ErrNoNamespace) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look for the sandboxes of %s: %w", netns, err)
	}
	defer ns.Close()
	vnis, err := link.Sandboxes(ns.ID())
	for _, vni := range vnis {
		err = errors.Join(err, link.RemoveSandbox(vni, ns.ID()))
	}
	return err
}

// sweep removes what is left of labs whose process was killed. Errors are for the next sweep: they must not
// keep anyone from starting a lab of his own.
func sweep() {
	entries, err := os.ReadDir(Root)
	if err != nil {
		return
	}
	for _, e := range entries {
		if !strings.Contains(e.Name(), privateMark) {
			continue
		}
		if c, err := claimExisting(filepath.Join(Root, e.Name())); err == nil {
			if c.dismantle() != nil {
				c.release()
			}
		}
	}
}

// Detached lists the labs that were brought up to stay, by the names of their scenarios.
func Detached() ([]string, error) {
	entries, err := os.ReadDir(Root)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("list the labs: %w", err)
	}
	var names []string
	for _, e := range entries {
		if e.IsDir() && !strings.Contains(e.Name(), privateMark) {
			names = append(names, e.Name())
		}
	}
	slices.Sort(names)
	return names, nil
}
