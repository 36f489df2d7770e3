package load

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/bits"
	"math/rand/v2"
	"net/netip"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// A datagram of a stream: the token of the run, the sequence number, the CRC-32C of everything but itself,
// then filling. Big endian.
const (
	udpTokenOff = 0
	udpSeqOff   = 8
	udpCRCOff   = 16

	// MinUDP is the smallest payload of a stream, in bytes.
	MinUDP = 20
)

// UDPConfig says what to send.
type UDPConfig struct {
	From, To Namespace
	Address  netip.Addr    // of To
	Size     int           // payload of each datagram in bytes, at least MinUDP
	Flows    int           // source ports, which take turns; 0 = 1
	Rate     float64       // datagrams a second; 0 = as many as the sender can
	Count    int           // datagrams; 0 = as many as fit in Duration
	Duration time.Duration // of sending, when Count is 0; 0 = 1 s
	Drain    time.Duration // how long after the last one sent or received late ones are waited for; 0 = 300 ms
}

// UDPResult is what became of the datagrams. Sent = Received + Lost.
type UDPResult struct {
	Sent      uint64 // taken by the kernel
	Refused   uint64 // not taken: no buffer, or a firewall
	Received  uint64 // intact, each counted once
	Lost      uint64
	Duplicate uint64        // further copies of one that was received
	Reordered uint64        // received after one of the same flow that was sent later
	Corrupt   uint64        // wrong length, checksum or token
	Overflow  uint64        // of the lost: dropped at the receiver's own socket, behind the overlay
	SendTime  time.Duration // of sending all
	Elapsed   time.Duration // from the first received to the last
	BytesEach int           // the payload size
}

// Rate is datagrams received a second.
func (r UDPResult) Rate() float64 {
	if r.Elapsed <= 0 {
		return 0
	}
	return float64(r.Received) / r.Elapsed.Seconds()
}

// SendRate is datagrams sent a second.
func (r UDPResult) SendRate() float64 {
	if r.SendTime <= 0 {
		return 0
	}
	return float64(r.Sent) / r.SendTime.Seconds()
}

// BitsPerSecond is the payload received a second.
func (r UDPResult) BitsPerSecond() float64 { return r.Rate() * float64(r.BytesEach) * 8 }

// Loss is the part of the sent datagrams that was lost, from 0 to 1.
func (r UDPResult) Loss() float64 {
	if r.Sent == 0 {
		return 0
	}
	return float64(r.Lost) / float64(r.Sent)
}

// maxUDPFlows keeps the descriptors of a stream within the usual limit of a process.
const maxUDPFlows = 512

// turn is how many datagrams a flow sends before the next one does, when there are several.
const turn = 8

// UDP sends one stream of datagrams, by sendmmsg and without segmentation offload, and counts what arrives.
// Loss is a result, not an error.
func UDP(ctx context.Context, c UDPConfig) (UDPResult, error) {
	c.Drain, c.Duration = defaulted(c.Drain, 300*time.Millisecond), defaulted(c.Duration, time.Second)
	c.Flows = defaulted(c.Flows, 1)
	if c.Size < MinUDP || c.Size > 65507 {
		return UDPResult{}, fmt.Errorf("UDP stream to %v: payload of %d bytes is not between %d and 65507", c.Address, c.Size, MinUDP)
	}
	if c.Flows < 1 || c.Flows > maxUDPFlows {
		return UDPResult{}, fmt.Errorf("UDP stream to %v: %d flows are not between 1 and %d", c.Address, c.Flows, maxUDPFlows)
	}
	var at netip.AddrPort
	rx, err := openSocket(c.To, c.Address, unix.SOCK_DGRAM, 0, func(fd int) (err error) {
		bigBuffers(fd)
		at, err = bindTo(fd, c.Address)
		return err
	})
	if err != nil {
		return UDPResult{}, fmt.Errorf("UDP stream to %v: %w", c.Address, err)
	}
	defer unix.Close(rx)
	var tx []int
	defer func() {
		for _, fd := range tx {
			_ = unix.Close(fd) // nothing is lost: what it took is in the network
		}
	}()
	for range c.Flows {
		fd, err := openSocket(c.From, c.Address, unix.SOCK_DGRAM, 0, func(fd int) error {
			bigBuffers(fd)
			return unix.Connect(fd, sockaddr(at))
		})
		if err != nil {
			return UDPResult{}, fmt.Errorf("UDP stream to %v: %w", c.Address, err)
		}
		tx = append(tx, fd)
	}

	s := &stream{config: c, token: rand.Uint64(), table: crc32.MakeTable(crc32.Castagnoli), highest: make([]uint64, c.Flows)}
	s.sent.Store(-1)
	running, cancel := context.WithCancel(ctx)
	defer cancel()
	sender := make(chan error, 1)
	go func() {
		err := s.send(running, tx)
		if err != nil {
			cancel() // the receiver has nothing to wait for
		}
		sender <- err
	}()
	b := newBatch(c.Size)
	err = s.receive(running, b, func() (int, error) { return b.receive(rx) })
	cancel()
	if serr := <-sender; serr != nil && !errors.Is(serr, context.Canceled) {
		err = serr
	}
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	r := s.result
	r.BytesEach = c.Size
	r.Overflow = socketDrops(rx)
	r.Lost = r.Sent - min(r.Sent, r.Received)
	if err != nil {
		return r, fmt.Errorf("UDP stream to %v: %w", c.Address, err)
	}
	return r, nil
}

// stream is one run of UDP. The sender owns Sent, Refused and SendTime of the result, the receiver the rest.
type stream struct {
	config UDPConfig
	token  uint64
	table  *crc32.Table
	sent   atomic.Int64 // how many in all, once the sender has ended; -1 before
	result UDPResult
	seen   []uint64 // a bit for each sequence number received

	highest []uint64 // sequence number received, of each flow
}

// flow is which flow the datagram with this sequence number belongs to.
func (s *stream) flow(seq uint64) int { return int(seq / turn % uint64(s.config.Flows)) }

func (s *stream) crc(b []byte) uint32 {
	sum := crc32.Update(0, s.table, b[:udpCRCOff])
	return crc32.Update(sum, s.table, b[udpCRCOff+4:])
}

func (s *stream) send(ctx context.Context, fds []int) error {
	c := s.config
	b := newBatch(c.Size)
	filling := rand.NewChaCha8([32]byte{1})
	for _, buf := range b.bufs {
		_, _ = filling.Read(buf) // never fails
		binary.BigEndian.PutUint64(buf[udpTokenOff:], s.token)
	}
	// Paced, a batch is what half a millisecond asks for.
	step := batchLen
	if c.Rate > 0 {
		step = int(max(1, min(batchLen, c.Rate/2000)))
	}
	start := time.Now()
	defer func() {
		s.result.SendTime = time.Since(start)
		s.sent.Store(int64(s.result.Sent))
	}()
	for seq := uint64(0); ; {
		if err := ctx.Err(); err != nil {
			return err
		}
		if c.Rate > 0 {
			due := start.Add(time.Duration(float64(seq) / c.Rate * float64(time.Second)))
			if err := pause(ctx, time.Until(due)); err != nil {
				return err
			}
		}
		n := step
		if c.Count > 0 {
			n = int(min(uint64(n), uint64(c.Count)-seq))
		} else if time.Since(start) >= c.Duration {
			n = 0
		}
		if n == 0 {
			return nil
		}
		if c.Flows > 1 {
			n = int(min(uint64(n), turn-seq%turn))
		}
		for i := range n {
			buf := b.bufs[i]
			binary.BigEndian.PutUint64(buf[udpSeqOff:], seq+uint64(i))
			binary.BigEndian.PutUint32(buf[udpCRCOff:], s.crc(buf))
		}
		took, err := b.send(fds[s.flow(seq)], n)
		switch {
		case err == nil:
			seq += uint64(took)
			s.result.Sent += uint64(took)
		case again(err):
		case errors.Is(err, unix.ENOBUFS), errors.Is(err, unix.EPERM):
			seq++ // its number is not seen at the other end either, and is not counted as sent
			s.result.Refused++
		case errors.Is(err, unix.ECONNREFUSED), errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.ENETUNREACH):
			// An ICMP error about an earlier one, told once; that one is lost, as the count will show.
		default:
			return fmt.Errorf("send %d bytes: %w", c.Size, err)
		}
	}
}

// receive counts what take puts into the batch, until all is there or no more comes.
func (s *stream) receive(ctx context.Context, b *batch, take func() (int, error)) error {
	var first, last time.Time
	quiet := time.Now() // since when nothing happened
	for {
		// Only a look that began when the time was over says that nothing came: on a busy machine this thread may
		// stand still after one, while the last datagrams are sent and wait in the socket.
		began, sending := time.Now(), s.sent.Load() < 0
		n, err := take()
		now := time.Now()
		if err != nil && !again(err) {
			return fmt.Errorf("receive: %w", err)
		}
		if err != nil {
			n = 0
		}
		for i := range n {
			seq, ok := s.check(b.bufs[i][:b.msgs[i].len], b.msgs[i].hdr.Flags)
			b.msgs[i].hdr.Flags = 0
			switch {
			case !ok:
				s.result.Corrupt++
				continue
			case s.mark(seq):
				s.result.Duplicate++
				continue
			}
			highest := &s.highest[s.flow(seq)]
			if s.result.Received++; seq < *highest {
				s.result.Reordered++
			}
			*highest = max(*highest, seq)
		}
		if n > 0 {
			if first.IsZero() {
				first = now
			}
			last = now
			s.result.Elapsed = last.Sub(first)
		}
		if sent := s.sent.Load(); sent >= 0 && s.result.Received >= uint64(sent) {
			return nil
		}
		if sending {
			if err := ctx.Err(); err != nil {
				return err
			}
		}
		switch {
		case sending || n > 0:
			quiet = now
		case began.Sub(quiet) >= s.config.Drain:
			return nil
		}
	}
}

// check returns the sequence number of an intact datagram of this run.
func (s *stream) check(b []byte, flags int32) (uint64, bool) {
	if len(b) != s.config.Size || flags&unix.MSG_TRUNC != 0 ||
		binary.BigEndian.Uint64(b[udpTokenOff:]) != s.token || binary.BigEndian.Uint32(b[udpCRCOff:]) != s.crc(b) {
		return 0, false
	}
	return binary.BigEndian.Uint64(b[udpSeqOff:]), true
}

// mark notes a sequence number and reports whether it was noted before.
func (s *stream) mark(seq uint64) bool {
	word, bit := int(seq/bits.UintSize), uint64(1)<<(seq%bits.UintSize)
	for word >= len(s.seen) {
		s.seen = append(s.seen, 0)
	}
	before := s.seen[word]&bit != 0
	s.seen[word] |= bit
	return before
}
