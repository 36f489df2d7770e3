package load

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// An announcement: the VXLAN header (RFC 7348, section 5), the Ethernet header of a broadcast, and an ARP request
// (RFC 826) in which sender and target address are the same. Offsets into the datagram; big endian.
const (
	announceVNI     = 4 // 24 bits
	announceDst     = 8
	announceSrc     = 14
	announceType    = 20
	announceARP     = 22 // hardware type, protocol type, lengths, operation
	announceSender  = 30 // MAC, then address
	announceTarget  = 46 // address; its MAC before is zero
	announceLen     = 50
	announceVXLANOn = 0x08 // in the first byte: there is a VNI
)

// The stations. Their MACs are of the local kind; their addresses lie in 100.64.0.0/10 (RFC 6598).
const (
	stationMAC   = 0x024f << 32
	stationIP    = 100<<24 | 64<<16
	maxStations  = 1 << 22
	announceStep = 2000 // steps a second in which a rate is kept
)

// StationsConfig says which stations announce themselves, and where.
type StationsConfig struct {
	Behind []Namespace    // VTEPs: all stations are behind the first, then move one after the other to the next, and so on
	To     netip.AddrPort // of the VTEP that hears it
	VNIs   []uint32       // station number N is in the network VNIs[N mod their number]
	Count  int            // stations, at most 2^22
	First  uint64         // number of the first announcement; number N is that of station N mod Count
	Limit  int            // announcements; 0 = until ctx ends, which is then an error
	Rate   float64        // announcements a second; 0 = as many as the sender can
}

// StationsResult is what was sent. Nothing tells what arrived.
type StationsResult struct {
	Sent    uint64
	Refused uint64 // not taken by the kernel: no buffer, or a firewall
	Elapsed time.Duration
}

// Stations sends VXLAN datagrams in which stations announce themselves by gratuitous ARP (RFC 5227, section 3), as they
// do after they have moved.
func Stations(ctx context.Context, c StationsConfig) (StationsResult, error) {
	fail := func(r StationsResult, err error) (StationsResult, error) {
		return r, fmt.Errorf("announce stations to %v: %w", c.To, err)
	}
	if c.Count < 1 || c.Count > maxStations || len(c.VNIs) == 0 || len(c.Behind) == 0 {
		return fail(StationsResult{}, fmt.Errorf("%d stations in %d networks behind %d VTEPs: give at least one of each, and at most %d stations",
			c.Count, len(c.VNIs), len(c.Behind), maxStations))
	}
	var fds []int
	defer func() {
		for _, fd := range fds {
			_ = unix.Close(fd) // nothing is lost: what it took is in the network
		}
	}()
	for _, ns := range c.Behind {
		fd, err := openSocket(ns, c.To.Addr(), unix.SOCK_DGRAM, 0, func(fd int) error {
			bigBuffers(fd)
			return unix.Connect(fd, sockaddr(c.To))
		})
		if err != nil {
			return fail(StationsResult{}, err)
		}
		fds = append(fds, fd)
	}
	r, err := c.announce(ctx, fds)
	if err != nil {
		return fail(r, err)
	}
	return r, nil
}

func (c *StationsConfig) announce(ctx context.Context, fds []int) (r StationsResult, err error) {
	b := newBatch(announceLen)
	for _, buf := range b.bufs {
		buf[0] = announceVXLANOn
		binary.BigEndian.PutUint64(buf[announceDst-2:], 0xffff_ffff_ffff)
		binary.BigEndian.PutUint16(buf[announceType:], unix.ETH_P_ARP)
		binary.BigEndian.PutUint64(buf[announceARP:], 1<<48|unix.ETH_P_IP<<32|6<<24|4<<16|1)
	}
	// Paced, a batch is what half a millisecond asks for.
	step := batchLen
	if c.Rate > 0 {
		step = int(max(1, min(batchLen, c.Rate/announceStep)))
	}
	start := time.Now()
	defer func() { r.Elapsed = time.Since(start) }()
	for done := uint64(0); c.Limit == 0 || done < uint64(c.Limit); {
		if c.Rate > 0 {
			err = pause(ctx, time.Until(start.Add(time.Duration(float64(done)/c.Rate*float64(time.Second)))))
		} else {
			err = ctx.Err()
		}
		if err != nil {
			return r, err
		}
		seq := c.First + done
		pass, station := seq/uint64(c.Count), seq%uint64(c.Count)
		n := min(uint64(step), uint64(c.Count)-station) // of one VTEP
		if c.Limit > 0 {
			n = min(n, uint64(c.Limit)-done)
		}
		for i := range n {
			c.fill(b.bufs[i], station+i)
		}
		took, err := b.send(fds[pass%uint64(len(fds))], int(n))
		switch {
		case err == nil:
			done += uint64(took)
			r.Sent += uint64(took)
		case again(err):
		case errors.Is(err, unix.ENOBUFS), errors.Is(err, unix.EPERM):
			done++
			r.Refused++
		case errors.Is(err, unix.ECONNREFUSED), errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.ENETUNREACH):
			// An ICMP error about an earlier one, told once.
		default:
			return r, fmt.Errorf("send: %w", err)
		}
	}
	return r, nil
}

// fill makes the announcement of a station of one that was there.
func (c *StationsConfig) fill(buf []byte, station uint64) {
	vni := c.VNIs[station%uint64(len(c.VNIs))]
	binary.BigEndian.PutUint32(buf[announceVNI:], vni<<8)
	mac, ip := stationMAC|station, stationIP|uint32(station)
	for _, at := range []int{announceSrc, announceSender} {
		binary.BigEndian.PutUint16(buf[at:], uint16(mac>>32))
		binary.BigEndian.PutUint32(buf[at+2:], uint32(mac))
	}
	binary.BigEndian.PutUint32(buf[announceSender+6:], ip)
	binary.BigEndian.PutUint32(buf[announceTarget:], ip)
}
