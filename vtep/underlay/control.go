package underlay

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// maxPeerErrors bounds what strangers' errors can make us keep.
	maxPeerErrors = 4096
	// maxDrain is how many errors are taken off a socket at once, so that whoever causes them cannot keep a sender busy.
	maxDrain = 64
	// maxQuote is how much is looked at of the payload that an ICMP message quotes.
	maxQuote = 128
)

// Send sends payload as one datagram to the VXLAN port of a, which is of the endpoint's family: with DF set and never
// cut. Its source port is the first of the pool, as that of data may be, so that it meets what data meets of firewalls
// and translators, and takes one and the same of several equal routes. Any goroutine may call it, and it does not wait.
// The error is a unix.Errno: EMSGSIZE if the datagram is larger than what the device takes.
func (e *Endpoint) Send(a netip.Addr, payload []byte) error {
	to := socketAddress(a, e.port)
	tried := false
	for {
		err := unix.Sendto(e.sources[0], payload, unix.MSG_DONTWAIT, to)
		errno, _ := err.(unix.Errno)
		switch {
		case errno == unix.EINTR:
		case errno != 0 && !tried && mayBeEcho(errno):
			e.drainErrors(e.sources[0]) // as in Sender.flush
			tried = true
		default:
			return err
		}
	}
}

func socketAddress(a netip.Addr, port uint16) unix.Sockaddr {
	if a.Is4() {
		return &unix.SockaddrInet4{Addr: a.As4(), Port: int(port)}
	}
	return &unix.SockaddrInet6{Addr: a.As16(), Port: int(port)}
}

// drainErrors takes the ICMP errors off the socket's error queue, keeps the last one for each peer, and hands on what
// they say of sizes.
func (e *Endpoint) drainErrors(fd int) {
	var data [maxQuote]byte
	var ctl [512]byte
	for range maxDrain {
		k, n, _, from, err := unix.Recvmsg(fd, data[:], ctl[:], unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
		if err != nil {
			if errors.Is(err, unix.EINTR) {
				continue
			}
			return
		}
		var peer netip.Addr
		switch a := from.(type) {
		case *unix.SockaddrInet4:
			peer = netip.AddrFrom4(a.Addr)
		case *unix.SockaddrInet6:
			peer = netip.AddrFrom16(a.Addr)
		}
		if msgs, err := unix.ParseSocketControlMessage(ctl[:n]); err == nil {
			for _, m := range msgs {
				v4 := m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_RECVERR
				v6 := m.Header.Level == unix.IPPROTO_IPV6 && m.Header.Type == unix.IPV6_RECVERR
				if v4 || v6 {
					e.noteExtendedError(peer, m.Data, data[:k])
				}
			}
		}
	}
}

// noteExtendedError notes a struct sock_extended_err, which is in the host's order: the errno, who says so, and what of
// sizes. What this host says itself, of a datagram that is too big, is the answer to a send and no news of the peer.
func (e *Endpoint) noteExtendedError(peer netip.Addr, b, quoted []byte) {
	const origin, info, size = 4, 8, 12
	if len(b) < size || b[origin] != unix.SO_EE_ORIGIN_ICMP && b[origin] != unix.SO_EE_ORIGIN_ICMP6 {
		return
	}
	errno := unix.Errno(binary.NativeEndian.Uint32(b))
	e.notePeerError(peer, errno)
	if errno == unix.EMSGSIZE && e.hint != nil {
		// An absurd number is one that does not fit, and stays absurd.
		e.hint(peer, int(min(binary.NativeEndian.Uint32(b[info:]), 1<<16)), quoted)
	}
}

func (e *Endpoint) notePeerError(peer netip.Addr, errno unix.Errno) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if _, known := e.icmp[peer]; known || len(e.icmp) < maxPeerErrors {
		e.icmp[peer] = PeerError{Err: errno, Time: time.Now()}
	}
}
