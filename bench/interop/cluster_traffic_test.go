package interop

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/bench/load"
)

// traffic is one TCP connection and one flow of pings between two containers, both slow and both long: they are what an
// operator has on a cluster while something happens to it.
//
// That it loses nothing means: every ping is answered, the connection is never broken, and each record that was written
// to it comes back once and in order. TCP would hide what the overlay loses, so that segments that were sent again are
// counted too; a machine that stalls for longer than TCP's timer has some without a loss, so they are told of and do
// not fail a test. Nothing is lost in silence either: the frames that the hosts of both containers have dropped are
// looked at by quiet.
type traffic struct {
	stop  context.CancelFunc
	tasks sync.WaitGroup

	ping    load.PingResult
	pingErr error
	records uint32 // that came back
	slowest time.Duration
	again   uint32 // segments that were sent again
	tcpErr  error
}

// beat is the time between two pings, and between two records.
const beat = 20 * time.Millisecond

// keepTalking starts traffic, and returns when it flows.
func keepTalking(t *testing.T, from, to *container) *traffic {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	w := &traffic{stop: cancel}
	var listener net.Listener
	on(t, to, func() (err error) {
		listener, err = net.Listen("tcp", netip.AddrPortFrom(to.ip, 0).String())
		return err
	})
	var conn net.Conn
	on(t, from, func() (err error) {
		dialer := net.Dialer{Timeout: 20 * time.Second}
		dialer.SetMultipathTCP(false)
		conn, err = dialer.Dial("tcp", listener.Addr().String())
		return err
	})
	peer, err := listener.Accept()
	listener.Close()
	if err != nil {
		t.Fatal(err)
	}
	w.tasks.Go(func() { // echo
		defer peer.Close()
		_, _ = io.Copy(peer, peer) // that it ends early, the other side sees
	})
	begun := make(chan struct{})
	w.tasks.Go(func() { // records
		defer conn.Close()
		w.tcpErr = w.write(ctx, conn.(*net.TCPConn), begun)
	})
	w.tasks.Go(func() { // pings
		for ctx.Err() == nil && w.pingErr == nil {
			var r load.PingResult
			// Its own context would end it in the middle of a ping.
			r, w.pingErr = load.Ping(context.WithoutCancel(ctx), load.PingConfig{From: from, To: to.ip, Count: 10, Interval: beat, Timeout: 10 * time.Second})
			w.ping.Sent += r.Sent
			w.ping.Received += r.Received
			w.ping.Corrupt += r.Corrupt
			w.ping.Duplicate += r.Duplicate
			w.ping.Max = max(w.ping.Max, r.Max)
		}
	})
	t.Cleanup(func() { cancel(); w.tasks.Wait() })
	select {
	case <-begun:
	case <-time.After(20 * time.Second):
		t.Fatal("the connection does not begin to flow")
	}
	return w
}

// write sends numbered records and reads them back.
func (w *traffic) write(ctx context.Context, conn *net.TCPConn, begun chan struct{}) error {
	var out, in [64]byte
	for ctx.Err() == nil {
		start := time.Now()
		if err := conn.SetDeadline(start.Add(30 * time.Second)); err != nil {
			return err
		}
		binary.BigEndian.PutUint32(out[:], w.records)
		if _, err := conn.Write(out[:]); err != nil {
			return err
		}
		if _, err := io.ReadFull(conn, in[:]); err != nil {
			return err
		}
		if in != out {
			return fmt.Errorf("record %d came back as %d", w.records, binary.BigEndian.Uint32(in[:]))
		}
		w.slowest = max(w.slowest, time.Since(start))
		if w.records++; w.records == 1 {
			close(begun)
		}
		select {
		case <-time.After(beat - time.Since(start)):
		case <-ctx.Done():
		}
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	cerr := raw.Control(func(fd uintptr) {
		var info *unix.TCPInfo
		if info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			w.again = info.Total_retrans
		}
	})
	return errors.Join(cerr, err)
}

// end stops it and fails the test if it has lost anything. during says what happened meanwhile.
func (w *traffic) end(t *testing.T, during string) {
	t.Helper()
	w.stop()
	w.tasks.Wait()
	t.Logf("%s: %d of %d pings, the slowest after %v; %d records by TCP, the slowest after %v, %d segments again",
		during, w.ping.Received, w.ping.Sent, w.ping.Max.Round(time.Millisecond), w.records, w.slowest.Round(time.Millisecond), w.again)
	if err := errors.Join(w.pingErr, w.tcpErr); err != nil {
		t.Errorf("%s: %v", during, err)
	}
	if w.ping.Received != w.ping.Sent || w.ping.Corrupt > 0 || w.ping.Duplicate > 0 || w.ping.Sent == 0 {
		t.Errorf("%s: lost pings: %+v", during, w.ping)
	}
}

// quiet expects that the daemons have dropped nothing of the network since before was read, and that none of them was
// started since.
func quiet(t *testing.T, all []*member, before []tally, during string) {
	t.Helper()
	for i, m := range all {
		if got := drops(t, m.socket).since(before[i]); len(got) > 0 {
			t.Errorf("%s: %s has dropped %v", during, m.host.Name(), got)
		}
		conserved(t, m.socket)
	}
}

// tallies reads what daemons have dropped.
func tallies(t *testing.T, all []*member) []tally {
	t.Helper()
	var out []tally
	for _, m := range all {
		out = append(out, drops(t, m.socket))
	}
	return out
}
