package load

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// ear is a socket that announcements are sent to.
func ear(t *testing.T, ns Namespace) (int, netip.AddrPort) {
	t.Helper()
	var at netip.AddrPort
	fd, err := openSocket(ns, local4, unix.SOCK_DGRAM, 0, func(fd int) (err error) {
		bigBuffers(fd)
		at, err = bindTo(fd, local4)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd, at
}

// heard is what has come so far, and from which ports.
func heard(t *testing.T, fd int) (datagrams [][]byte, ports []int) {
	t.Helper()
	for {
		buf := make([]byte, 2048)
		n, from, err := unix.Recvfrom(fd, buf, unix.MSG_DONTWAIT)
		if errors.Is(err, unix.EAGAIN) {
			return datagrams, ports
		}
		if err != nil {
			t.Fatal(err)
		}
		datagrams, ports = append(datagrams, buf[:n]), append(ports, from.(*unix.SockaddrInet4).Port)
	}
}

func TestStations(t *testing.T) {
	ns := loopback(t)
	fd, at := ear(t, ns)
	// Stations 0, 1 and 2 behind the first VTEP, then behind the second, and again the first.
	c := StationsConfig{Behind: []Namespace{ns, ns}, To: at, VNIs: []uint32{42, 0xabcdef}, Count: 3, First: 1, Limit: 7}
	r, err := Stations(within(t), c)
	if err != nil || r.Sent != 7 || r.Refused != 0 || r.Elapsed <= 0 {
		t.Fatalf("%+v, %v", r, err)
	}
	got, ports := heard(t, fd)
	if len(got) != 7 {
		t.Fatalf("%d datagrams", len(got))
	}
	for i, vtep := range []int{0, 0, 1, 1, 1, 0, 0} {
		if want := ports[0]; (ports[i] == want) != (vtep == 0) {
			t.Errorf("ports %v", ports)
			break
		}
		station := byte((i + 1) % 3)
		vni := "00002a"
		if station == 1 {
			vni = "abcdef"
		}
		mac := "024f000000" + hex.EncodeToString([]byte{station})
		ip := "644000" + hex.EncodeToString([]byte{station})
		want, _ := hex.DecodeString("08000000" + vni + "00" + "ffffffffffff" + mac + "0806" + "0001080006040001" + mac + ip + "000000000000" + ip)
		if !bytes.Equal(got[i], want) {
			t.Errorf("announcement %d is\n%x, want\n%x", i, got[i], want)
		}
	}
}

func TestStationsPaced(t *testing.T) {
	ns := loopback(t)
	fd, at := ear(t, ns)
	r, err := Stations(within(t), StationsConfig{Behind: []Namespace{ns}, To: at, VNIs: []uint32{1}, Count: 300, Limit: 1000, Rate: 10_000})
	if err != nil || r.Sent != 1000 || r.Elapsed < 90*time.Millisecond {
		t.Errorf("%+v, %v", r, err)
	}
	got, _ := heard(t, fd)
	slices.SortFunc(got, bytes.Compare)
	if got = slices.CompactFunc(got, bytes.Equal); len(got) != 300 {
		t.Errorf("%d different stations", len(got))
	}
}

func TestStationsEnd(t *testing.T) {
	ns := loopback(t)
	var at netip.AddrPort
	for _, rate := range []float64{0, 1000} {
		var fd int
		fd, at = ear(t, ns)
		ctx, cancel := context.WithCancel(within(t))
		listened := make(chan struct{})
		go func() { // ends it with the first announcement
			defer close(listened)
			defer cancel()
			buf := make([]byte, 2048)
			for err := error(unix.EAGAIN); again(err) && ctx.Err() == nil; {
				_, _, err = unix.Recvfrom(fd, buf, 0)
			}
		}()
		r, err := Stations(ctx, StationsConfig{Behind: []Namespace{ns}, To: at, VNIs: []uint32{1}, Count: 10, Rate: rate})
		cancel()
		<-listened
		if !errors.Is(err, context.Canceled) || r.Sent == 0 || r.Elapsed <= 0 {
			t.Errorf("at a rate of %v: %+v, %v", rate, r, err)
		}
	}
	for _, bad := range []StationsConfig{
		{Behind: []Namespace{ns}, To: at, VNIs: []uint32{1}},
		{Behind: []Namespace{ns}, To: at, VNIs: []uint32{1}, Count: maxStations + 1},
		{Behind: []Namespace{ns}, To: at, Count: 1},
		{To: at, VNIs: []uint32{1}, Count: 1},
	} {
		if _, err := Stations(within(t), bad); err == nil {
			t.Errorf("%+v is taken", bad)
		}
	}
}

// TestTCPOthers has one host send to several.
func TestTCPOthers(t *testing.T) {
	ns := loopback(t)
	c := TCPConfig{From: ns, To: ns, Address: local4, Flows: 2, Bytes: 100_000, Verify: true,
		Others: []Receiver{{To: ns, Address: local6}, {To: ns, Address: local4}}}
	r, err := TCP(within(t), c)
	if err != nil || r.Forward.Bytes != 3*2*100_000 {
		t.Errorf("%+v, %v", r, err)
	}
	c.Others = append(c.Others, Receiver{To: ns, Address: netip.MustParseAddr("192.0.2.1")}) // of nobody
	if r, err := TCP(within(t), c); err == nil {
		t.Errorf("to one that is not there: %+v", r)
	}
}
