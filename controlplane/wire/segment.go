package wire

import (
	"errors"
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"
)

// maxSegment is the most payload that a TCP segment carries here, in bytes: what fits a packet of 1280 with the headers
// of IPv6 and TCP, which every path carries (RFC 8200, section 5). A router that takes less than its interface says, and
// swallows the ICMP message about it, would otherwise let small requests through and hang on the first large one. The
// state of a cluster is no bulk, so that little is lost.
const maxSegment = 1280 - 40 - 20

// small has a socket send and announce segments of maxSegment, before it connects or listens.
func small(_, _ string, c syscall.RawConn) error {
	var err error
	if cerr := c.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_MAXSEG, maxSegment)
	}); cerr != nil || err != nil {
		return fmt.Errorf("set the size of TCP segments: %w", errors.Join(cerr, err))
	}
	return nil
}
