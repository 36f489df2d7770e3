package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"gopkg.in/yaml.v3"

	"github.com/overlayd/overlayd/dataplane/mtu"
)

// startPatience is how long an overlayd may take to say that it is ready.
const startPatience = 15 * time.Second

// Names in the directory of a host.
const (
	configFile = "overlayd.yaml"
	socketFile = "overlayd.sock"
	logFile    = "overlayd.log"
	notifyFile = "notify.sock"
	dataDir    = "data"
)

// defaultConfig is where an overlayd that is told of no configuration file looks for one.
const defaultConfig = "/etc/overlayd/overlayd.yaml"

// metricsAddress is the same on every host: each has a loopback of its own.
const metricsAddress = "127.0.0.1:9789"

// daemonConfig is the configuration file of overlayd.
type daemonConfig struct {
	Node     string          `yaml:"node"`
	Socket   string          `yaml:"socket"`
	Metrics  string          `yaml:"metrics"`
	Log      string          `yaml:"log,omitempty"`
	Queues   int             `yaml:"queues,omitempty"`
	BusyPoll int             `yaml:"busy_poll,omitempty"`
	Disable  []string        `yaml:"disable,omitempty,flow"`
	Underlay daemonUnderlay  `yaml:"underlay"`
	Networks []daemonNetwork `yaml:"networks"`
}

type daemonUnderlay struct {
	Port      uint16       `yaml:"port"`
	Addresses []netip.Addr `yaml:"addresses,flow"`
	Checksum  string       `yaml:"checksum,omitempty"`
}

type daemonNetwork struct {
	Name        string         `yaml:"name"`
	VNI         uint32         `yaml:"vni"`
	Device      string         `yaml:"device"`
	Address     []netip.Prefix `yaml:"address,flow"`
	Peers       []netip.Addr   `yaml:"peers,flow"`
	Learning    bool           `yaml:"learning"`
	MTU         mtu.OverlayMTU `yaml:"mtu,omitempty"`
	AllowNested bool           `yaml:"allow_nested,omitempty"`
}

// daemon is an overlayd that this process started.
type daemon struct {
	process
	ended chan struct{} // closed when it has ended and err is set
	err   error
}

// config is what the scenario says to the overlayd of a host.
func (l *Lab) config(h *Host) daemonConfig {
	c := daemonConfig{
		Node:     h.name,
		Socket:   h.Socket(),
		Metrics:  metricsAddress,
		Log:      h.spec.Overlayd.Log,
		Queues:   h.spec.Overlayd.Queues,
		BusyPoll: h.spec.Overlayd.BusyPoll,
		Disable:  h.spec.Overlayd.Disable,
		Underlay: daemonUnderlay{Port: vxlanPort, Checksum: h.spec.Overlayd.Checksum},
	}
	used := make(map[Family]bool)
	for i := range l.scenario.Networks {
		n := &l.scenario.Networks[i]
		if n.Members[h.name] != Overlayd {
			continue
		}
		if !used[n.Underlay] {
			used[n.Underlay] = true
			c.Underlay.Addresses = append(c.Underlay.Addresses, h.spec.underlay(n.Underlay))
		}
		c.Networks = append(c.Networks, daemonNetwork{
			Name:        n.Name,
			VNI:         n.VNI,
			Device:      deviceName(n.Name),
			Address:     h.overlay[n.Name],
			Peers:       l.scenario.peers(n, h.name),
			Learning:    true,
			MTU:         n.MTU,
			AllowNested: n.AllowNested,
		})
	}
	return c
}

// arguments are those of the overlayd of a host. Its configuration file, if it is to have one, is written.
func (l *Lab) arguments(h *Host) ([]string, error) {
	if h.spec.Cluster != "" {
		args := []string{"--data-dir", h.DataDir(), "--socket", h.Socket()}
		if level := h.spec.Overlayd.Log; level != "" {
			args = append(args, "--log", level)
		}
		if off := h.spec.Overlayd.Disable; len(off) > 0 {
			args = append(args, "--disable", strings.Join(off, ","))
		}
		// That of this machine is not that of a host of the lab.
		if _, err := os.Stat(defaultConfig); err == nil {
			args = append(args, "--config", os.DevNull)
		}
		return args, nil
	}
	config, err := yaml.Marshal(l.config(h))
	if err != nil {
		return nil, fmt.Errorf("encode the configuration of %s: %w", h.name, err)
	}
	if err := os.WriteFile(h.ConfigPath(), config, 0o644); err != nil {
		return nil, fmt.Errorf("write the configuration of %s: %w", h.name, err)
	}
	return []string{"--config", h.ConfigPath()}, nil
}

// startDaemon starts the overlayd of a host and waits until it says that it forwards, by the protocol of
// sd_notify(3).
func (l *Lab) startDaemon(ctx context.Context, h *Host) error {
	if err := os.MkdirAll(h.dir, 0o755); err != nil {
		return fmt.Errorf("make the directory of %s: %w", h.name, err)
	}
	args, err := l.arguments(h)
	if err != nil {
		return err
	}
	l.show(h, "overlayd", args...)
	notifyPath := filepath.Join(h.dir, notifyFile)
	notify, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram", Name: notifyPath})
	if err != nil {
		return fmt.Errorf("listen for the start of overlayd on %s: %w", h.name, err)
	}
	defer os.Remove(notifyPath)
	defer notify.Close()
	log, err := os.OpenFile(h.LogPath(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return fmt.Errorf("open the log of %s: %w", h.name, err)
	}
	defer log.Close()

	cmd := exec.Command(l.state.Overlayd, args...)
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+notifyPath)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // the Ctrl-C of a terminal is for the lab to act on
	if err := h.Start(cmd); err != nil {
		return fmt.Errorf("start overlayd on %s: %w", h.name, err)
	}
	d := &daemon{process: process{Host: h.name, PID: cmd.Process.Pid}, ended: make(chan struct{})}
	d.Start, _ = startOf(d.PID) // not reaped yet; 0 when it is a zombie already, which nothing has to stop
	l.daemons.Go(func() {
		d.err = cmd.Wait()
		close(d.ended)
	})
	if err := l.remember(h, d); err != nil {
		return err
	}

	ctx, cancel := context.WithTimeout(ctx, startPatience)
	defer cancel()
	ready := make(chan error, 1)
	go func() { ready <- awaitReady(notify) }()
	select {
	case err = <-ready:
	case <-d.ended:
		err = fmt.Errorf("it ended: %w", exitError(d.err))
	case <-ctx.Done():
		err = fmt.Errorf("it did not get ready: %w", ctx.Err())
	}
	notify.Close() // ends awaitReady
	if err != nil {
		return fmt.Errorf("start overlayd on %s: %w%s", h.name, err, tail(h.LogPath()))
	}
	for _, n := range l.scenario.Networks {
		if n.Members[h.name] == Overlayd {
			if err := h.awaitUp(ctx, deviceName(n.Name)); err != nil {
				return err
			}
		}
	}
	return nil
}

// StartOverlayd starts the overlayd of the host again after it has ended, on the data that it had, and waits until it
// is ready.
func (h *Host) StartOverlayd(ctx context.Context) error {
	switch {
	case !h.RunsOverlayd():
		return fmt.Errorf("start overlayd on %s: the scenario has none there", h.name)
	case h.PID() != 0:
		return fmt.Errorf("start overlayd on %s: it runs, as process %d", h.name, h.PID())
	}
	return h.lab.startDaemon(ctx, h)
}

// KillOverlayd ends the overlayd of the host by SIGKILL, as the kernel does when memory is short, and waits for its end.
func (h *Host) KillOverlayd() error {
	h.lab.mu.Lock()
	p := h.daemon
	h.lab.mu.Unlock()
	if p.PID == 0 || !p.alive() {
		return fmt.Errorf("kill overlayd on %s: it does not run", h.name)
	}
	h.lab.show(h, "kill", "-KILL", strconv.Itoa(p.PID))
	if err := stop([]process{p}, unix.SIGKILL); err != nil {
		return fmt.Errorf("kill overlayd on %s: %w", h.name, err)
	}
	return nil
}

// exitError makes an error of a clean exit, which at the start is none that was hoped for.
func exitError(err error) error {
	if err == nil {
		return errors.New("exit status 0")
	}
	return err
}

// awaitReady reads messages of sd_notify until one says READY=1.
func awaitReady(notify *net.UnixConn) error {
	buf := make([]byte, 4096)
	for {
		n, err := notify.Read(buf)
		if err != nil {
			return err
		}
		for line := range bytes.Lines(buf[:n]) {
			if string(bytes.TrimSpace(line)) == "READY=1" {
				return nil
			}
		}
	}
}

// tail quotes the last lines of a log for an error; the log goes with the lab.
func tail(path string) string {
	text, err := os.ReadFile(path)
	if err != nil || len(bytes.TrimSpace(text)) == 0 {
		return " (its log is empty)"
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	if len(lines) > 10 {
		lines = lines[len(lines)-10:]
	}
	return "; the end of its log:\n  " + strings.Join(lines, "\n  ")
}
