package lab

import (
	"net/netip"
	"path/filepath"
)

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

// ConfigPath is the path of the configuration of the host's overlayd.
func (h *Host) ConfigPath() string { return filepath.Join(h.dir, configFile) }

// LogPath is the path of the log of the host's overlayd. It is gone after Close.
func (h *Host) LogPath() string { return filepath.Join(h.dir, logFile) }

// LogTail quotes the end of that log, for an error message; it begins with a separator.
func (h *Host) LogTail() string { return tail(h.LogPath()) }
