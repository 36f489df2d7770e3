package compare

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/safchain/ethtool"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/bench/lab"
	"github.com/overlayd/overlayd/bench/report"
	"github.com/overlayd/overlayd/controlplane/api"
)

// recordedOffloads are the features of a veth on which the numbers depend.
func recordedOffloads() []string {
	return []string{
		"rx-gro", "tx-checksum-ip-generic", "tx-generic-segmentation", "tx-scatter-gather", "tx-tcp-segmentation",
		"tx-tcp6-segmentation", "tx-udp-segmentation", "tx-udp_tnl-csum-segmentation", "tx-udp_tnl-segmentation",
	}
}

// recordedSettings are the kernel's settings on which they depend, of the hosts' namespaces.
func recordedSettings() []string {
	return []string{"net.core.default_qdisc", "net.ipv4.tcp_congestion_control", "net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem"}
}

// congestionPath is the setting of a network namespace that connections begin with.
const congestionPath = "/proc/sys/net/ipv4/tcp_congestion_control"

// checkCongestion reports whether the kernel has the congestion control, and lets other network namespaces have it. An empty
// name is that of the machine.
func checkCongestion(name string) error {
	if name == "" {
		return nil
	}
	lists := make(map[string][]string)
	for _, which := range []string{"available", "allowed"} {
		text, err := os.ReadFile("/proc/sys/net/ipv4/tcp_" + which + "_congestion_control")
		if err != nil {
			return fmt.Errorf("look whether the kernel has the congestion control %q: %w", name, err)
		}
		lists[which] = strings.Fields(string(text))
	}
	switch {
	case !slices.Contains(lists["available"], name):
		return fmt.Errorf("the kernel has no congestion control %q: it has %s; others are modules, such as tcp_%s, which modprobe loads",
			name, strings.Join(lists["available"], ", "), name)
	case !slices.Contains(lists["allowed"], name):
		return fmt.Errorf("the kernel keeps the congestion control %q from network namespaces other than the first: allow it with sysctl net.ipv4.tcp_allowed_congestion_control=%q",
			name, strings.Join(append(lists["allowed"], name), " "))
	}
	return nil
}

// describe records the machine and the wires of the contenders.
func (a *arena) describe() (report.Environment, error) {
	e := report.Environment{
		CPU:        cpuModel(),
		Cores:      runtime.NumCPU(),
		Governor:   readWord("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
		Go:         runtime.Version(),
		Overlayctl: api.VersionLine(api.BuildVersion()),
		Settings:   make(map[string]string),
	}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return e, fmt.Errorf("ask for the version of the kernel: %w", err)
	}
	e.Kernel, e.Architecture = unix.ByteSliceToString(u.Release[:]), unix.ByteSliceToString(u.Machine[:])
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return e, fmt.Errorf("ask for the size of the memory: %w", err)
	}
	e.MemoryBytes = uint64(info.Totalram) * uint64(info.Unit)
	host := a.stands[0].lab.Hosts()[0]
	if err := host.Do(func() error {
		for _, name := range recordedSettings() {
			// Some are there only once, for the whole machine, and not to be seen from a host.
			if v := readWord(filepath.Join("/proc/sys", strings.ReplaceAll(name, ".", "/"))); v != "" {
				e.Settings[name] = v
			}
		}
		return nil
	}); err != nil {
		return e, err
	}
	seen := make(map[string]bool)
	for _, s := range a.stands {
		if seen[s.wire.name] {
			continue
		}
		seen[s.wire.name] = true
		w, err := describeWire(s.wire, s.lab.Hosts()[0])
		if err != nil {
			return e, err
		}
		e.Wires = append(e.Wires, w)
	}
	return e, nil
}

// describeWire looks at one end of the wire; the other is made alike.
func describeWire(w wire, h *lab.Host) (report.Wire, error) {
	out := report.Wire{Name: w.name, About: w.about, Offloads: make(map[string]bool)}
	var err error
	if out.MTU, err = h.MTU(underlayDevice); err != nil {
		return out, err
	}
	err = h.Do(func() error {
		tool, err := ethtool.NewEthtool()
		if err != nil {
			return err
		}
		defer tool.Close()
		got, err := tool.Features(underlayDevice)
		for _, name := range recordedOffloads() {
			if on, known := got[name]; known {
				out.Offloads[name] = on
			}
		}
		return err
	})
	if err != nil {
		return out, fmt.Errorf("read the offloads of %s of %s: %w", underlayDevice, h.Name(), err)
	}
	return out, nil
}

// readWord returns what a small file of the kernel says, "" when it is not there.
func readWord(path string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return strings.Join(strings.Fields(string(text)), " ")
}

// cpuModel is what /proc/cpuinfo calls the first CPU.
func cpuModel() string {
	text, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return "unknown model"
	}
	return parseCPUModel(text)
}

func parseCPUModel(text []byte) string {
	for line := range bytes.Lines(text) {
		if name, value, ok := bytes.Cut(line, []byte(":")); ok && string(bytes.TrimSpace(name)) == "model name" {
			return string(bytes.TrimSpace(value))
		}
	}
	return "unknown model" // arm64 has none
}
