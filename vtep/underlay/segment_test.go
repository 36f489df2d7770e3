package underlay

import (
	"bytes"
	"log/slog"
	"runtime"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/dataplane/forward"
)

// A device that refuses to segment is asked once. Then all goes out in single datagrams, the refused ones too.
func TestSegmentationIsGivenUpOnce(t *testing.T) {
	h := newHosts(t)
	var log bytes.Buffer
	c := all(here4)
	c.Log = slog.New(slog.NewTextHandler(&log, nil))
	a, b := h.openAt(t, here, c), h.openAt(t, there, all(there4))
	var x traffic
	x.train(0, 0, 10, 500)
	x.train(0, 1, 7, 400)
	reports := make(chan *report)
	failed := make(chan error, 1)
	go func() {
		// Never unlocked: the filter cannot be taken off this thread, which ends with the goroutine.
		runtime.LockOSThread()
		defer close(reports)
		err := refuseSegmentation(h.ns[here])
		if failed <- err; err != nil {
			return
		}
		s, dest := NewSender(), destinations(a, there4)
		for range 2 {
			reports <- x.send(s, dest)
		}
	}()
	for r := range reports {
		r.want(t, map[forward.DropReason]int{forward.NotDropped: 17})
	}
	must(t, <-failed)
	var came []string
	for _, g := range receiveN(t, b.Receivers[0], 2*17) {
		came = append(came, g.data)
		if g.stride != 0 {
			t.Errorf("a datagram of %d bytes came in a train", len(g.data))
		}
	}
	// The first train is refused, and comes behind the other one, which is another flow.
	if want := slices.Concat(x.sent[10:], x.sent[:10], x.sent); !slices.Equal(came, want) {
		t.Error("other datagrams than were sent, or in another order")
	}
	if a.GSO() || strings.Count(log.String(), "\n") != 1 || !strings.Contains(log.String(), here4.String()) {
		t.Errorf("GSO %v, the log says %q", a.GSO(), &log)
	}
}

// refuseSegmentation makes sendmmsg with a single message, which here is always one that is to be segmented, fail
// for this thread as it does over a device that cannot.
func refuseSegmentation(ns netns.NsHandle) error {
	if err := netns.Set(ns); err != nil {
		return err
	}
	const (
		number, vlen   = 0, 16 + 2*8 // offsets in struct seccomp_data; the low half of an argument, in little endian
		load           = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
		equal          = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
		answer         = unix.BPF_RET | unix.BPF_K
		setModeFilter  = 1
		allow, refusal = 0x7fff0000, 0x00050000 | uint32(unix.EIO)
	)
	filter := []unix.SockFilter{
		{Code: load, K: number},
		{Code: equal, K: unix.SYS_SENDMMSG, Jf: 3},
		{Code: load, K: vlen},
		{Code: equal, K: 1, Jf: 1},
		{Code: answer, K: refusal},
		{Code: answer, K: allow},
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if _, _, errno := unix.Syscall(unix.SYS_SECCOMP, setModeFilter, 0, uintptr(unsafe.Pointer(&prog))); errno != 0 {
		return errno
	}
	return nil
}

// TestGather looks at what the kernel has to read of parts, some of which lie behind one another.
func TestGather(t *testing.T) {
	mem := make([]byte, 100)
	parts := [][]byte{mem[10:20], mem[20:50], nil, mem[50:51], mem[60:70], mem[55:60], mem[60:70:70], {1}, nil}
	s := NewSender()
	s.gather([][]byte{mem[0:10]}) // another message, which must not go on
	s.gather(parts)
	want := [][]byte{mem[0:10], mem[10:51], mem[60:70], mem[55:70], parts[7]}
	if s.niov != len(want) {
		t.Fatalf("%d iovecs, want %d", s.niov, len(want))
	}
	for i, w := range want {
		if s.iov[i].Base != &w[0] || int(s.iov[i].Len) != len(w) {
			t.Errorf("iovec %d has %d bytes, want %d, or others", i, s.iov[i].Len, len(w))
		}
	}
}
