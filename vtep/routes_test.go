package vtep

import (
	"testing"

	"github.com/overlayd/overlayd/dataplane/header"
	"github.com/overlayd/overlayd/dataplane/mtu"
	"github.com/overlayd/overlayd/vtep/underlay"
)

// A TCP superframe of gso_max_size over IPv4, cut and wrapped, goes into one send, and nearly fills it.
func TestGSOMaxSizeFillsOneSend(t *testing.T) {
	const (
		most    = 65507 // bytes of one send
		headers = 20 + 32
		// What Linux takes off gso_max_size before it counts whole segments (MAX_TCP_HEADER and one), with and
		// without the tunnels that add to it.
		least, largest = 160 + 1, 320 + 1
	)
	// Beyond jumbo frames a whole segment can be lost to the limit of 64 KB.
	for m := mtu.MinIPv6; m <= 65465; m++ {
		size := gsoMaxSize(m)
		datagram := header.VXLANLen + header.EthernetLen + int(m)
		fit := min(underlay.MaxSegments, most/datagram)
		for _, off := range []int{least, largest} {
			segments := max(1, (size-off)/(int(m)-headers))
			if size > 65536 || segments > fit || segments < fit && m <= 9000 {
				t.Fatalf("MTU %d: %d segments from gso_max_size %d, %d fit one send", m, segments, size, fit)
			}
		}
	}
}
