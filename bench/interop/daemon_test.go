package interop

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/bench/lab"
	"github.com/overlayd/overlayd/dataplane/header"
)

// simple is a configuration for a host with an underlay of both address families, or of the first alone.
func simple(h *lab.Host) string {
	var all []netip.Addr
	for _, p := range h.Underlay() {
		all = append(all, p.Addr())
	}
	return fmt.Sprintf(`underlay:
  addresses: %s
networks:
  - name: %s
    vni: %d
    device: %s0
    address: [10.42.0.1/24, "fd00:42::1/64"]
    peers: [198.51.100.1]
`, list(all), network, vni, network)
}

// TestNothingLeft starts a daemon, lets it work, ends it, and compares the host with what it was before.
func TestNothingLeft(t *testing.T) {
	l := up(t, scenario(lab.IPv4, "", ""))
	h1, h2 := l.Host("h1"), l.Host("h2")
	peer := start(t, h2, derived("10.42.0.2", underlay(h1)))
	reachableOnUnderlay(t, h1, h2)
	for name, end := range map[string]struct {
		signal unix.Signal
		code   int
	}{"SIGTERM": {unix.SIGTERM, 0}, "SIGINT": {unix.SIGINT, 0}} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			before := findings(t, h1, dir)
			d := start(t, h1, simple(h1))
			if len(differences(before, findings(t, h1, dir))) == 0 {
				t.Fatal("no difference was found between a host with a daemon and one without")
			}
			files := findingsOf(t, d.dir)
			if !slices.Contains(files, filepath.Join(d.dir, "run", "api.sock")) {
				t.Errorf("the API's socket is not among %q", files)
			}
			reachable(t, h1, netip.MustParseAddr("10.42.0.2"))
			if err := d.cmd.Process.Signal(end.signal); err != nil {
				t.Fatal(err)
			}
			if code := d.wait(t); code != end.code {
				t.Errorf("exit code %d, want %d", code, end.code)
			}
			unchanged(t, h1, before, dir)
			// Its own folder: the configuration and the socket for systemd are the test's.
			if left := findingsOf(t, d.dir); !slices.Equal(left, []string{filepath.Join(d.dir, "overlayd.yaml")}) {
				t.Errorf("files left behind: %q", left)
			}
			states := d.state()
			if !slices.Contains(states, "READY=1") || !slices.Contains(states, "STOPPING=1") {
				t.Errorf("it told the service manager %q", states)
			}
			if n := strings.Count(d.log(), "msg=ready"); n != 1 {
				t.Errorf("it said %d times that it is ready", n)
			}
		})
	}
	if code := peer.terminate(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

// reachableOnUnderlay makes two hosts know each other, so that what they know is not counted as a leftover.
func reachableOnUnderlay(t *testing.T, a, b *lab.Host) {
	t.Helper()
	reachable(t, a, underlay(b))
}

// findingsOf lists the files below a folder; sockets of the service manager are gone when it has ended.
func findingsOf(t *testing.T, dir string) []string {
	t.Helper()
	var out []string
	if err := filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		if err == nil && path != dir {
			out = append(out, path)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return out
}

// TestKilled ends a daemon the hard way: the kernel takes away all that it had, but for the file of the API's
// socket, which the next one takes over.
func TestKilled(t *testing.T) {
	l := up(t, scenario(lab.IPv4, "", ""))
	h1 := l.Host("h1")
	before := findings(t, h1)
	config := simple(h1)
	d := start(t, h1, config)
	if !hasDevice(t, h1, network+"0") {
		t.Fatal("there is no TAP")
	}
	if err := d.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	d.wait(t)
	unchanged(t, h1, before)
	if !slices.Contains(findingsOf(t, d.dir), d.socket) {
		t.Error("the file of the socket is gone, so this test tests nothing")
	}
	next := start(t, h1, config, "--socket", d.socket)
	if got := statusOf(t, d.socket).GetPid(); int(got) != next.cmd.Process.Pid {
		t.Errorf("process %d answers, want %d", got, next.cmd.Process.Pid)
	}
	if code := next.terminate(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
	unchanged(t, h1, before)
}

// TestTaken lets the daemon find what it needs in the hands of others. It must say whose they are.
func TestTaken(t *testing.T) {
	l := up(t, scenario(lab.IPv4, "", ""))
	h1, h2 := l.Host("h1"), l.Host("h2")
	// One with a device of the same name on another host is not to be blamed.
	start(t, h2, derived("10.42.0.2", underlay(h1)))
	device := network + "0"
	self := fmt.Sprintf("(process %d)", os.Getpid())
	listen := func(t *testing.T, at netip.Addr) {
		var conn *net.UDPConn
		on(t, h1, func() (err error) {
			conn, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(at, header.VXLANPort)))
			return err
		})
		t.Cleanup(func() { conn.Close() })
	}
	add := func(t *testing.T, dev netlink.Link) {
		on(t, h1, func() error { return netlink.LinkAdd(dev) })
		t.Cleanup(func() { on(t, h1, func() error { return netlink.LinkDel(dev) }) })
	}
	port := []string{"4789", underlay(h1).String()}
	for name, c := range map[string]struct {
		take func(*testing.T)
		want []string
	}{
		"port by a process": {func(t *testing.T) { listen(t, underlay(h1)) }, append(port, self)},
		"port by a process at all addresses": {
			func(t *testing.T) { listen(t, netip.IPv4Unspecified()) }, append(port, self)},
		"port by a vxlan device": {func(t *testing.T) {
			dev := &netlink.Vxlan{LinkAttrs: netlink.LinkAttrs{Name: "vx7"}, VxlanId: 7, Port: int(header.VXLANPort)}
			add(t, dev)
			on(t, h1, func() error { return netlink.LinkSetUp(dev) }) // it has no socket before
		}, append(port, "vxlan device vx7")},
		"port by another overlayd": {func(t *testing.T) {
			start(t, h1, strings.ReplaceAll(simple(h1), device, "other0"))
		}, append(port, "overlayd (process ")},
		"device by a bridge": {func(t *testing.T) {
			add(t, &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: device}})
		}, []string{device, "a device of type bridge"}},
		"device by a persistent TAP": {func(t *testing.T) {
			add(t, &netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: device}, Mode: netlink.TUNTAP_MODE_TAP})
		}, []string{device, "made to persist"}},
		"device by a process": {func(t *testing.T) {
			var fd int
			on(t, h1, func() (err error) { fd, err = holdTAP(device); return err })
			t.Cleanup(func() { unix.Close(fd) })
		}, []string{device, self}},
	} {
		for _, disable := range []string{"", "tap-vnet"} {
			if disable != "" && !strings.HasPrefix(name, "device") {
				continue
			}
			t.Run(strings.TrimSpace(name+" "+disable), func(t *testing.T) {
				c.take(t)
				before := findings(t, h1)
				var args []string
				if disable != "" {
					args = []string{"--disable", disable}
				}
				d := launch(t, h1, simple(h1), "", args...)
				d.fails(t, 1, c.want...)
				unchanged(t, h1, before)
				if left := findingsOf(t, d.dir); len(left) != 1 {
					t.Errorf("files left behind: %q", left)
				}
			})
		}
	}
}

// holdTAP opens a TAP that exists as long as the descriptor.
func holdTAP(name string) (int, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	req, err := unix.NewIfreq(name)
	if err == nil {
		req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// TestSecondDaemon starts a daemon on the socket of one that runs. The first one goes on.
func TestSecondDaemon(t *testing.T) {
	l := up(t, scenario(lab.IPv4, "", ""))
	h1 := l.Host("h1")
	first := start(t, h1, simple(h1))
	before := findings(t, h1)
	second := launch(t, h1, simple(h1), "", "--socket", first.socket)
	second.fails(t, 1, first.socket)
	unchanged(t, h1, before)
	if got := statusOf(t, first.socket).GetPid(); int(got) != first.cmd.Process.Pid {
		t.Errorf("process %d answers, want %d", got, first.cmd.Process.Pid)
	}
	if code := first.terminate(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

// TestNotAllowed takes away what the daemon cannot do without.
func TestNotAllowed(t *testing.T) {
	l := up(t, scenario(lab.IPv4, "", ""))
	h1 := l.Host("h1")
	for part, words := range map[string][]string{
		withoutTun:   {"/dev/net/tun", "modprobe tun"},
		withoutAdmin: {"CAP_NET_ADMIN", "root"},
	} {
		for _, disable := range []string{"", "tap-vnet"} {
			t.Run(strings.TrimSpace(part+" "+disable), func(t *testing.T) {
				before := findings(t, h1)
				var args []string
				if disable != "" {
					args = []string{"--disable", disable}
				}
				d := launch(t, h1, simple(h1), part, args...)
				d.fails(t, 1, words...)
				unchanged(t, h1, before)
				if left := findingsOf(t, d.dir); len(left) != 1 {
					t.Errorf("files left behind: %q", left)
				}
			})
		}
	}
}

// TestBadConfig gives the daemon files that are wrong on this host or on any. One line says what, where and what
// to do.
func TestBadConfig(t *testing.T) {
	l := up(t, scenario(lab.IPv4, "", ""))
	h1 := l.Host("h1")
	good := simple(h1)
	replaced := func(old, now string) string {
		if !strings.Contains(good, old) {
			t.Fatalf("%q is not in the configuration", old)
		}
		return strings.Replace(good, old, now, 1)
	}
	second := func(name string, number int, device string) string {
		return good + fmt.Sprintf("  - {name: %s, vni: %d, device: %s, peers: [198.51.100.1]}\n", name, number, device)
	}
	for name, c := range map[string]struct {
		config string
		want   []string // besides the name of the file
	}{
		"unknown key":            {"colour: red\n" + good, []string{":3", "colour"}},
		"unknown key of network": {good + "    colour: red\n", []string{":11", "colour"}},
		"VNI over 24 bits":       {replaced("vni: 42", "vni: 16777216"), []string{":7", "networks[0].vni", "16777215"}},
		"duplicate VNI":          {second("red", vni, "red0"), []string{":11", "networks[1].vni", "networks[0].vni"}},
		"duplicate device":       {second("red", 43, "blue0"), []string{":11", "networks[1].device", "networks[0].device"}},
		"peer is this host":      {replaced("198.51.100.1", "192.0.2.1"), []string{":10", "networks[0].peers[0]", "eth0"}},
		"family mismatch":        {replaced("198.51.100.1", "2001:db8::9"), []string{":10", "networks[0].peers[0]", "IPv6"}},
		"address of nobody":      {replaced(`"192.0.2.1"`, `"192.0.2.200"`), []string{":4", "underlay.addresses[0]", "192.0.2.200"}},
		"unknown feature":        {good + "disable: [warp]\n", []string{":11", "warp", "tap-vnet"}},
		"no YAML":                {"networks: [\n", nil},
	} {
		t.Run(name, func(t *testing.T) {
			before := findings(t, h1)
			d := launch(t, h1, c.config, "")
			d.fails(t, 2, append(c.want, filepath.Join(d.dir, "overlayd.yaml"))...)
			unchanged(t, h1, before)
			if left := findingsOf(t, d.dir); len(left) != 1 {
				t.Errorf("files left behind: %q", left)
			}
		})
	}
}
