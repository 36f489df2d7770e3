package vtep

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	bpf "github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/vtep/link/linktest"
)

// said returns how often the log of a host has a text.
func (h *host) said(text string) int {
	h.t.Helper()
	return strings.Count(h.tell("log").Text, text)
}

// What keeps programs from a TAP, here a device in the way of its relay, does not keep them for ever: it is tried again, less
// and less often, and the log tells of it once, and of the end.
func TestHooksAreTriedAgain(t *testing.T) {
	c := newCluster(t)
	reaches(t, c.containers[0], inside4(1), 56)
	c.hosts[0].tell("stop")
	c.hosts[0].tell("close")
	c.enter(t, 0)
	linktest.Must(t, netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: relay}}))
	c.startAt(t, 0)
	h := c.hosts[0]
	const warning, note = "forwards nothing of this network by itself", "forwards packets of this network by itself now"
	linktest.Await(t, "a second attempt", func() bool {
		return h.must(request{Op: "hook wait", Name: "blue"}).Number >= int(2*reconcileEvery/time.Millisecond)
	})
	if w, n := h.said(warning), h.said(note); w != 1 || n != 0 {
		t.Errorf("%d warnings and %d notes after several attempts:\n%s", w, n, h.tell("log").Text)
	}
	reaches(t, c.containers[0], inside4(1), 56)
	if f := fastOut(h.lawful()); f != 0 {
		t.Errorf("%d frames were forwarded without programs", f)
	}
	c.enter(t, 0)
	linktest.Must(t, netlink.LinkDel(linktest.Device(t, relay)))
	wantHooks(t, "eth0 overlayd_arrive", relay+" overlayd_uplink")
	c.inSandbox(t, 0, func() { wantHooks(t, "host0 overlayd_down", "tap0 overlayd_leave") })
	c.fastBoth(t)
	if w, n := h.said(warning), h.said(note); w != 1 || n != 1 {
		t.Errorf("%d warnings and %d notes:\n%s", w, n, h.tell("log").Text)
	}
	h.tell("stop")
	conserved(t, "blue", h.network().Counters)
}

// The same for what comes in by a device of the underlay, where others have taken all places.
func TestUnderlayHooksAreTriedAgain(t *testing.T) {
	c := newCluster(t)
	c.hosts[0].tell("stop")
	c.hosts[0].tell("close")
	c.enter(t, 0)
	var places []bpf.Link
	for {
		prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
			Type: ebpf.SchedCLS, License: "GPL", Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, -1), asm.Return()}, // TCX_NEXT
		})
		linktest.Must(t, err)
		defer prog.Close()
		l, err := bpf.AttachTCX(bpf.TCXOptions{Interface: linktest.Device(t, "eth0").Attrs().Index, Program: prog, Attach: ebpf.AttachTCXIngress})
		if errors.Is(err, unix.ERANGE) {
			break
		}
		linktest.Must(t, err)
		defer l.Close()
		places = append(places, l)
	}
	c.startAt(t, 0)
	h := c.hosts[0]
	const warning, note = "what comes in by this device passes userspace", "takes what comes in by this device by itself now"
	linktest.Await(t, "a warning", func() bool { return h.said(warning) > 0 })
	reaches(t, c.containers[0], inside4(1), 56)
	c.enter(t, 0)
	for _, l := range places {
		linktest.Must(t, l.Close())
	}
	wantHooks(t, "eth0 overlayd_arrive", relay+" overlayd_uplink")
	c.fastBoth(t)
	if w, n := h.said(warning), h.said(note); w != 1 || n != 1 {
		t.Errorf("%d warnings and %d notes:\n%s", w, n, h.tell("log").Text)
	}
}
