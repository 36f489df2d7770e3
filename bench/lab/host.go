package lab

import (
	"fmt"
	"net/netip"
	"os/exec"
	"path/filepath"
	"runtime"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Start starts a command on the host: in its namespace, and under its host name. Files and mounts are those of this
// process.
func (h *Host) Start(cmd *exec.Cmd) error {
	done := make(chan error, 1)
	go func() {
		// Never unlocked: the thread, which has become part of the host, ends with the goroutine.
		runtime.LockOSThread()
		err := netns.Set(h.handle)
		if err == nil {
			err = takeName(h.name)
		}
		if err == nil {
			err = cmd.Start() // forked from this thread
		}
		done <- err
	}()
	return <-done
}

// takeName gives the calling thread a host name of its own, which is that of what it starts.
func takeName(name string) error {
	if err := unix.Unshare(unix.CLONE_NEWUTS); err != nil {
		return fmt.Errorf("take the host name %s: %w", name, err)
	}
	if err := unix.Sethostname([]byte(name)); err != nil {
		return fmt.Errorf("take the host name %s: %w", name, err)
	}
	return nil
}

// Kind says what speaks VXLAN for the host on a network; "" when the host has no part in it.
func (h *Host) Kind(network string) Kind { return h.members[network] }

// Device is the name of the interface of a network on this host.
func (h *Host) Device(network string) string { return deviceName(network) }

// Overlay is the host's address on a network, in its first subnet; invalid when the host has no part in it.
func (h *Host) Overlay(network string) netip.Addr {
	if all := h.Overlays(network); len(all) > 0 {
		return all[0]
	}
	return netip.Addr{}
}

// Overlays are the host's addresses on a network, one for each subnet in the order of the scenario.
func (h *Host) Overlays(network string) []netip.Addr {
	var out []netip.Addr
	for _, p := range h.overlay[network] {
		out = append(out, p.Addr())
	}
	return out
}

// Underlay are the host's addresses on eth0.
func (h *Host) Underlay() []netip.Prefix { return h.spec.Underlay }

// Spec is what the scenario says about the host.
func (h *Host) Spec() HostSpec { return *h.spec }

// RunsOverlayd reports whether the host has a daemon.
func (h *Host) RunsOverlayd() bool { return h.lab.scenario.runsOverlayd(h.name) }

// PID is the process of the host's overlayd; 0 when it has none or that has ended.
func (h *Host) PID() int {
	h.lab.mu.Lock()
	defer h.lab.mu.Unlock()
	if h.daemon.PID == 0 || !h.daemon.alive() {
		return 0
	}
	return h.daemon.PID
}

// Socket is the path of the local API of the host's overlayd.
func (h *Host) Socket() string { return filepath.Join(h.dir, socketFile) }

// DataDir is the directory in which the overlayd of a host of the cluster keeps what has to outlast it.
func (h *Host) DataDir() string { return filepath.Join(h.dir, dataDir) }

// ConfigPath is the path of the configuration of the host's overlayd. There is none on a host of the cluster.
func (h *Host) ConfigPath() string { return filepath.Join(h.dir, configFile) }

// LogPath is the path of the log of the host's overlayd. It is gone after Close.
func (h *Host) LogPath() string { return filepath.Join(h.dir, logFile) }

// LogTail quotes the end of that log, for an error message; it begins with a separator.
func (h *Host) LogTail() string { return tail(h.LogPath()) }
