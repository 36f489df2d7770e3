package underlay

import (
	"testing"
	"time"

	"github.com/safchain/ethtool"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/dataplane/frametest"
)

// listen listens on the wire, at the other host's end, and turns off the offloads of this host's end, so that what
// passes is what a real wire would carry. It returns a function that takes the next frame.
func (h *hosts) listen(t *testing.T) func() []byte {
	t.Helper()
	tool, err := ethtool.NewEthtool()
	must(t, err)
	defer tool.Close()
	must(t, tool.Change("eth0", map[string]bool{"tx-checksum-ip-generic": false}))
	h.enter(t, there)
	defer h.enter(t, here)
	const everything = unix.ETH_P_ALL>>8 | unix.ETH_P_ALL<<8&0xff00
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	t.Cleanup(func() { unix.Close(fd) })
	must(t,
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: int64(patience / time.Second)}),
		unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1),
		unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: everything, Ifindex: eth0(t).Attrs().Index}))
	return func() []byte {
		t.Helper()
		buf := make([]byte, 1<<16)
		n, _, err := next(fd, buf)
		if err != nil {
			t.Fatalf("nothing on the wire: %v", err)
		}
		return buf[:n]
	}
}

// capture is listen for UDP, checked from end to end. What the kernel says on its own account is passed over.
func (h *hosts) capture(t *testing.T) func() *frametest.Packet {
	t.Helper()
	wire := h.listen(t)
	return func() *frametest.Packet {
		t.Helper()
		for {
			if p := frametest.Check(t, wire()); p.UDP != nil {
				return p
			}
		}
	}
}
