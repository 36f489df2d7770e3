package load

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// ICMP and ICMPv6 echo (RFC 792, RFC 4443 section 4): type, code, checksum, identifier, sequence number.
const (
	echoHeaderLen = 8

	echoRequest4, echoReply4 = 8, 0
	echoRequest6, echoReply6 = 128, 129
)

// pingTokenLen is the length of the random bytes by which a run knows its own replies: a raw socket sees
// those of all.
const pingTokenLen = 8

// PingConfig says what to ask for.
type PingConfig struct {
	From         Namespace
	To           netip.Addr
	Count        int           // requests; 0 = 1
	Interval     time.Duration // least time between two requests; 0 = as soon as the reply is there
	Timeout      time.Duration // for one reply; 0 = 5 s
	Size         int           // bytes after the ICMP header, at least 8; 0 = 56
	DontFragment bool          // requests are never fragmented: one that does not fit the device is an error
}

// PingResult is what came back.
type PingResult struct {
	Sent, Received int
	Corrupt        int           // replies whose bytes are not those of the request
	Duplicate      int           // further replies to a request
	Min, Avg, Max  time.Duration // of the replies; the first may include address resolution
}

// Ping sends echo requests one after the other and waits for the reply to each. A request that stays without
// a reply is no error; what the kernel refuses to send is.
func Ping(ctx context.Context, c PingConfig) (PingResult, error) {
	c.Count, c.Timeout = defaulted(c.Count, 1), defaulted(c.Timeout, 5*time.Second)
	c.Size = max(defaulted(c.Size, 56), pingTokenLen)
	v4 := c.To.Is4()
	proto := unix.IPPROTO_ICMPV6
	if v4 {
		proto = unix.IPPROTO_ICMP
	}
	fd, err := openSocket(c.From, c.To, unix.SOCK_RAW, proto, func(fd int) error {
		if c.DontFragment {
			if err := dontFragment(fd, v4); err != nil {
				return err
			}
		}
		return unix.Connect(fd, sockaddr(netip.AddrPortFrom(c.To, 0)))
	})
	if err != nil {
		return PingResult{}, fmt.Errorf("ping %v: %w", c.To, err)
	}
	defer unix.Close(fd)

	p := &pinger{fd: fd, v4: v4, in: make([]byte, 1<<16), out: make([]byte, echoHeaderLen+c.Size)}
	_, _ = rand.Read(p.out[echoHeaderLen:]) // never fails
	binary.BigEndian.PutUint16(p.out[4:], binary.BigEndian.Uint16(p.out[echoHeaderLen:]))
	for seq := range c.Count {
		start := time.Now()
		if err := p.send(ctx, uint16(seq)); err != nil {
			return p.result(), fmt.Errorf("ping %v with %d bytes: %w", c.To, c.Size, err)
		}
		if err := p.await(ctx, uint16(seq), start, c.Timeout); err != nil {
			return p.result(), fmt.Errorf("ping %v: %w", c.To, err)
		}
		if seq+1 < c.Count {
			if err := pause(ctx, c.Interval-time.Since(start)); err != nil {
				return p.result(), err
			}
		}
	}
	return p.result(), nil
}

type pinger struct {
	fd      int
	v4      bool
	in, out []byte
	seen    PingResult
	sum     time.Duration
}

func (p *pinger) result() PingResult {
	if p.seen.Received > 0 {
		p.seen.Avg = p.sum / time.Duration(p.seen.Received)
	}
	return p.seen
}

func (p *pinger) send(ctx context.Context, seq uint16) error {
	b := p.out
	b[0], b[1], b[2], b[3] = echoRequest6, 0, 0, 0
	binary.BigEndian.PutUint16(b[6:], seq)
	if p.v4 { // for ICMPv6 the kernel does it (RFC 3542, section 3.1)
		b[0] = echoRequest4
		binary.BigEndian.PutUint16(b[2:], internetChecksum(b))
	}
	for first := true; ; {
		err := unix.Send(p.fd, b, 0)
		switch {
		case err == nil:
			p.seen.Sent++
			return nil
		case again(err) && ctx.Err() == nil:
		case again(err):
			return ctx.Err()
		case unreachable(err) && first:
			first = false // it may be about an earlier request, and is told only once
		default:
			return err
		}
	}
}

// await reads until the reply to seq is there or its time is over.
func (p *pinger) await(ctx context.Context, seq uint16, start time.Time, timeout time.Duration) error {
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		over := time.Since(start) >= timeout // before the look: see stream.receive
		n, _, err := unix.Recvfrom(p.fd, p.in, 0)
		took := time.Since(start)
		switch {
		case again(err) && over:
			return nil
		case again(err), unreachable(err):
			continue // an ICMP error in place of the reply; the request may still be answered
		case err != nil:
			return err
		}
		reply, ok := p.ours(p.in[:n])
		if !ok {
			continue
		}
		if binary.BigEndian.Uint16(reply[6:]) != seq {
			p.seen.Duplicate++ // or one that came after its timeout
			continue
		}
		if !bytes.Equal(reply[echoHeaderLen:], p.out[echoHeaderLen:]) {
			p.seen.Corrupt++
			return nil
		}
		if p.seen.Received++; p.seen.Received == 1 || took < p.seen.Min {
			p.seen.Min = took
		}
		p.seen.Max = max(p.seen.Max, took)
		p.sum += took
		return nil
	}
}

// ours cuts the ICMP message out of what a raw socket received, if it is a reply to this run.
func (p *pinger) ours(b []byte) ([]byte, bool) {
	kind := byte(echoReply6)
	if p.v4 { // a raw IPv4 socket delivers the IP header, an IPv6 one does not
		kind = echoReply4
		if len(b) < 20 || len(b) < int(b[0]&0xf)*4 {
			return nil, false
		}
		b = b[int(b[0]&0xf)*4:]
	}
	if len(b) < echoHeaderLen+pingTokenLen || b[0] != kind || !bytes.Equal(b[4:6], p.out[4:6]) {
		return nil, false
	}
	return b, bytes.Equal(b[echoHeaderLen:][:pingTokenLen], p.out[echoHeaderLen:][:pingTokenLen])
}

func unreachable(err error) bool {
	for _, e := range []error{unix.EHOSTUNREACH, unix.ENETUNREACH, unix.ECONNREFUSED, unix.EMSGSIZE, unix.EPROTO, unix.EACCES} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// internetChecksum is that of RFC 1071, plain: it stands apart from the code that the traffic tests.
func internetChecksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(b[i])<<8 | uint32(b[i+1])
	}
	if len(b)%2 == 1 {
		sum += uint32(b[len(b)-1]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// defaulted is v, or its default when v is zero.
func defaulted[T comparable](v, otherwise T) T {
	var zero T
	if v == zero {
		return otherwise
	}
	return v
}
