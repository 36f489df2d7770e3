package tap

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// variants are the ways in which a TAP can be opened, from all to nothing.
var variants = map[string]Config{
	"vnet":              {Queues: 1, VNet: true, TSO: true, USO: true},
	"vnet without USO":  {Queues: 1, VNet: true, TSO: true},
	"vnet without TSO":  {Queues: 1, VNet: true, USO: true},
	"vnet with 2":       {Queues: 2, VNet: true, TSO: true, USO: true},
	"water":             {Queues: 1},
	"water, all wanted": {Queues: 4, TSO: true, USO: true},
}

// each runs a test for every variant, with a device called tap0, in a namespace of its own.
func each(t *testing.T, test func(t *testing.T, c Config)) {
	for name, c := range variants {
		t.Run(name, func(t *testing.T) {
			enterNamespace(t)
			c.Name = "tap0"
			test(t, c)
		})
	}
}

func TestDeviceLivesAsLongAsItIsOpen(t *testing.T) {
	each(t, func(t *testing.T, c Config) {
		before := descriptors(t)
		d, err := Open(c)
		if err != nil {
			t.Fatal(err)
		}
		l, err := netlink.LinkByName("tap0")
		if err != nil {
			t.Fatal(err)
		}
		queues, backend := c.Queues, "vnet"
		if !c.VNet {
			queues, backend = 1, "water"
		}
		tun, ok := l.(*netlink.Tuntap)
		if !ok || tun.Mode != netlink.TUNTAP_MODE_TAP || !tun.NonPersist {
			t.Errorf("it is %#v", l)
		}
		if d.Name != "tap0" || d.Backend != backend || len(d.Queues) != queues {
			t.Errorf("a device %q of backend %s with %d queues", d.Name, d.Backend, len(d.Queues))
		}
		want := Offload{Checksum: c.VNet, TSO: c.VNet && c.TSO, USO: c.VNet && c.TSO && c.USO}
		if d.Offload != want {
			t.Errorf("offload %+v, want %+v; missing %v", d.Offload, want, d.Missing)
		}
		if n := descriptors(t); n != before+queues {
			t.Errorf("%d descriptors, %d before", n, before)
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
		if exists("tap0") {
			t.Error("it is there after Close")
		}
		if n := descriptors(t); n != before {
			t.Errorf("%d descriptors after Close, %d before", n, before)
		}
		if err := d.Close(); err != nil {
			t.Errorf("the second Close: %v", err)
		}
	})
}

// Nobody's interface is taken over, whatever it is.
func TestOpenRefusesATakenName(t *testing.T) {
	persistent := func(mode netlink.TuntapMode, flags netlink.TuntapFlag) netlink.Link {
		return &netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: "tap0"}, Mode: mode, Flags: flags, Queues: 1}
	}
	for name, other := range map[string]netlink.Link{
		"veth":       &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "tap0"}, PeerName: "far0"},
		"bridge":     &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "tap0"}},
		"TAP":        persistent(netlink.TUNTAP_MODE_TAP, netlink.TUNTAP_NO_PI),
		"multiqueue": persistent(netlink.TUNTAP_MODE_TAP, netlink.TUNTAP_NO_PI|netlink.TUNTAP_MULTI_QUEUE|netlink.TUNTAP_VNET_HDR),
		"TUN":        persistent(netlink.TUNTAP_MODE_TUN, netlink.TUNTAP_NO_PI),
	} {
		t.Run(name, func(t *testing.T) {
			each(t, func(t *testing.T, c Config) {
				if err := netlink.LinkAdd(other); err != nil {
					t.Fatal(err)
				}
				if tun, ok := other.(*netlink.Tuntap); ok {
					for _, f := range tun.Fds {
						f.Close() // it persists, and nobody has it open
					}
				}
				before, err := netlink.LinkByName("tap0")
				if err != nil {
					t.Fatal(err)
				}
				open := descriptors(t)
				d, err := Open(c)
				if err == nil {
					t.Error("it was taken over: ", d.Close())
				}
				if !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.EEXIST) || !strings.Contains(fmt.Sprint(err), "tap0: the name is taken") {
					t.Errorf("Open: %v", err)
				}
				after, err := netlink.LinkByName("tap0")
				if err != nil || after.Attrs().Index != before.Attrs().Index || after.Type() != before.Type() {
					t.Errorf("afterwards there is %v, %v", after, err)
				}
				if n := descriptors(t); n != open {
					t.Errorf("%d descriptors, %d before", n, open)
				}
			})
		})
	}
}

func TestOpenRefusesANameInUse(t *testing.T) {
	each(t, func(t *testing.T, c Config) {
		open(t, c)
		d, err := Open(c)
		if err == nil {
			t.Error("opened twice: ", d.Close())
		}
		if !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.EEXIST) {
			t.Errorf("Open: %v", err)
		}
		if !exists("tap0") {
			t.Error("the device of the first is gone")
		}
	})
}

// A name that is taken in another namespace only is free, though /sys may show that other one.
func TestOpenLooksAtItsOwnNamespace(t *testing.T) {
	for _, vnet := range []bool{true, false} {
		c := Config{Name: "tap0", Queues: 1, VNet: vnet}
		t.Run(fmt.Sprintf("vnet %v", vnet), func(t *testing.T) {
			enterNamespace(t)
			open(t, c)
			t.Run("inside", func(t *testing.T) {
				enterNamespace(t)
				open(t, c)
			})
			if !exists("tap0") {
				t.Error("the outer one is gone")
			}
		})
	}
}

func TestOpenRefusesABadName(t *testing.T) {
	for _, name := range []string{
		"", "0123456789abcdef", ".", "..", "a/b", "../tap0", "a b", "a\tb", "a\n", "a:b", "tap%d", "a%", "a\x00b",
	} {
		for _, vnet := range []bool{true, false} {
			t.Run(fmt.Sprintf("%q, vnet %v", name, vnet), func(t *testing.T) {
				enterNamespace(t)
				before := descriptors(t)
				for _, queues := range []int{1, 2} {
					d, err := Open(Config{Name: name, Queues: queues, VNet: vnet})
					if err == nil {
						t.Error("it was opened: ", d.Close())
						continue
					}
					if !strings.Contains(err.Error(), fmt.Sprintf("%q", name)) {
						t.Errorf("the error does not show the name: %v", err)
					}
				}
				links, err := netlink.LinkList()
				if err != nil || len(links) != 1 {
					t.Errorf("beside lo there are links: %v, %v", links, err)
				}
				if n := descriptors(t); n != before {
					t.Errorf("%d descriptors, %d before", n, before)
				}
			})
		}
	}
}

// Capabilities belong to a thread, so that the test can do without for a while.
func TestOpenWithoutPermission(t *testing.T) {
	each(t, func(t *testing.T, c Config) {
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var have, without [2]unix.CapUserData
		if err := unix.Capget(&header, &have[0]); err != nil {
			t.Fatal(err)
		}
		without = have
		without[0].Effective &^= 1 << unix.CAP_NET_ADMIN
		if err := unix.Capset(&header, &without[0]); err != nil {
			t.Fatal(err)
		}
		d, err := Open(c)
		if err := unix.Capset(&header, &have[0]); err != nil {
			t.Fatal(err)
		}
		if err == nil {
			t.Error("it was opened: ", d.Close())
		}
		if !errors.Is(err, unix.EPERM) || !strings.Contains(fmt.Sprint(err), "CAP_NET_ADMIN") {
			t.Errorf("Open: %v", err)
		}
		if exists("tap0") {
			t.Error("the device is there")
		}
	})
}

func TestOpenWithoutDriver(t *testing.T) {
	enterNamespace(t)
	for _, vnet := range []bool{true, false} {
		result := make(chan error)
		go func() {
			// Never unlocked: the thread, whose file systems are its own, ends with the goroutine.
			runtime.LockOSThread()
			err := hideDriver()
			if err == nil {
				_, err = Open(Config{Name: "tap0", Queues: 1, VNet: vnet})
			}
			result <- err
		}()
		if err := <-result; !errors.Is(err, ErrNoDevice) || !strings.Contains(err.Error(), "modprobe tun") {
			t.Errorf("vnet %v: %v", vnet, err)
		}
	}
}

// hideDriver takes /dev/net/tun out of the sight of this thread.
func hideDriver() error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return err
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	return unix.Mount("none", "/dev/net", "tmpfs", 0, "")
}

func TestOpenErrorsSayWhatToDo(t *testing.T) {
	for _, c := range []struct {
		err  error
		want string
	}{
		{os.ErrNotExist, "modprobe tun"},
		{unix.ENXIO, "modprobe tun"},
		{unix.ENODEV, "modprobe tun"},
		{unix.EACCES, "run as root"},
		{unix.EPERM, "run as root"},
		{unix.EMFILE, "too many open files"},
	} {
		if err := openError(c.err); !errors.Is(err, ErrNoDevice) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("openError(%v) = %v", c.err, err)
		}
	}
}

func TestMultiqueueOpensAsManyAsThereCanBe(t *testing.T) {
	enterNamespace(t)
	d := open(t, Config{Name: "tap0", Queues: MaxQueues + 1, VNet: true})
	if len(d.Queues) != MaxQueues || d.Missing["multiqueue"] == nil {
		t.Errorf("%d queues, missing %v", len(d.Queues), d.Missing)
	}
}
