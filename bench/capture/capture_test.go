package capture

import (
	"bytes"
	"errors"
	"net"
	"os"
	"runtime"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/dataplane/header"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fresh is a network namespace with nothing but a loopback.
type fresh struct{ handle netns.NsHandle }

func (f fresh) Do(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := netns.Set(f.handle); err != nil {
			done <- err
			return
		}
		done <- fn()
	}()
	return <-done
}

// loopback makes a fresh namespace; without root it skips, or fails where CI=true.
func loopback(t *testing.T) fresh {
	t.Helper()
	var f fresh
	made := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked
		var err error
		if f.handle, err = netns.New(); err == nil {
			var lo netlink.Link
			if lo, err = netlink.LinkByName("lo"); err == nil {
				err = netlink.LinkSetUp(lo)
			}
		}
		made <- err
	}()
	if err := <-made; errors.Is(err, unix.EPERM) {
		if os.Getenv("CI") == "true" {
			t.Fatal("needs root")
		}
		t.Skip("needs root")
	} else if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.handle.Close() })
	return f
}

// send sends one UDP buffer to a port of the loopback on which nobody listens, cut by the kernel to segments
// of size unless that is 0.
func send(t *testing.T, ns fresh, payload []byte, size int) {
	t.Helper()
	if err := ns.Do(func() error {
		conn, err := net.DialUDP("udp4", nil, &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 9})
		if err != nil {
			return err
		}
		defer conn.Close()
		raw, err := conn.SyscallConn()
		if err == nil && size > 0 {
			err = raw.Control(func(fd uintptr) {
				if serr := unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_SEGMENT, size); serr != nil {
					t.Error(serr)
				}
			})
		}
		if err != nil {
			return err
		}
		_, err = conn.Write(payload)
		return err
	}); err != nil {
		t.Fatal(err)
	}
}

// record is what the handler saw of one UDP packet.
type record struct {
	offload header.VirtioNet
	sent    bool
	payload []byte
}

// recorder starts a capture of the loopback that keeps UDP packets.
func recorder(t *testing.T, ns fresh, d Direction) (*Capture, *[]record) {
	t.Helper()
	var seen []record
	c, err := Open(ns, "lo", d, func(p *Packet) {
		if len(p.Data) > 42 && p.Data[23] == header.ProtoUDP {
			seen = append(seen, record{p.Offload, p.Sent, bytes.Clone(p.Data[42:])})
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return c, &seen
}

func TestWhatIsLeftToDo(t *testing.T) {
	ns := loopback(t)
	c, seen := recorder(t, ns, Received)
	plain, super := []byte("one datagram"), bytes.Repeat([]byte("segment."), 500)
	send(t, ns, plain, 0)
	send(t, ns, super, 800)
	if err := c.Stop(); err != nil {
		t.Fatal(err)
	}
	got := *seen
	if len(got) != 2 {
		t.Fatalf("captured %d UDP packets, want 2", len(got))
	}
	for i, want := range [][]byte{plain, super} {
		if !bytes.Equal(got[i].payload, want) || got[i].sent {
			t.Errorf("packet %d: sent %v, payload %.40q of %d bytes", i, got[i].sent, got[i].payload, len(got[i].payload))
		}
		// The loopback leaves all to the receiver, who has no need to check it.
		if o := got[i].offload; o.Flags&header.VirtioFlagNeedsCsum == 0 || o.CsumStart != 34 || o.CsumOffset != 6 {
			t.Errorf("packet %d: offload %+v, want that the UDP checksum is left to do", i, o)
		}
	}
	if o := got[0].offload; o.GSOType != header.GSONone {
		t.Errorf("one datagram: offload %+v", o)
	}
	if o := got[1].offload; o.GSOType != header.GSOUDPL4 || o.GSOSize != 800 {
		t.Errorf("superframe: offload %+v, want segments of 800", o)
	}
	if s := c.Stats(); s.Packets < 2 || s.Missed != 0 {
		t.Errorf("%+v", s)
	}
}

func TestDirections(t *testing.T) {
	ns := loopback(t)
	c, seen := recorder(t, ns, Both)
	send(t, ns, []byte("there and back"), 0)
	if err := c.Stop(); err != nil {
		t.Fatal(err)
	}
	if got := *seen; len(got) != 2 || !got[0].sent || got[1].sent {
		t.Errorf("captured %+v, want the packet sent and received", got)
	}
	if err := c.Stop(); err != nil {
		t.Errorf("a second Stop: %v", err)
	}
}

// TestMissed holds the handler until more is there than the queue takes.
func TestMissed(t *testing.T) {
	ns := loopback(t)
	hold, handled := make(chan struct{}), 0
	c, err := Open(ns, "lo", Received, func(*Packet) { <-hold; handled++ })
	if err != nil {
		t.Fatal(err)
	}
	big := make([]byte, 60000)
	const n = 2 * queueBytes / 60000
	if err := ns.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		for range n {
			if err := unix.Sendto(fd, big, 0, &unix.SockaddrInet4{Port: 9, Addr: [4]byte{127, 0, 0, 1}}); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	close(hold)
	if err := c.Stop(); err != nil {
		t.Fatal(err)
	}
	s := c.Stats()
	if s.Missed == 0 || s.Packets < n || uint64(handled)+s.Missed != s.Packets {
		t.Errorf("%+v with %d handled, of at least %d sent", s, handled, n)
	}
}

func TestNoDevice(t *testing.T) {
	if _, err := Open(loopback(t), "nonesuch0", Both, nil); err == nil {
		t.Error("a device that does not exist gave no error")
	}
}
