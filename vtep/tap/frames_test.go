package tap

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/dataplane/addr"
	"github.com/overlayd/overlayd/dataplane/frame"
	"github.com/overlayd/overlayd/dataplane/frametest"
	"github.com/overlayd/overlayd/dataplane/header"
)

// experimental is an EtherType that is kept for experiments (IEEE 802), and that no protocol of the kernel takes.
const experimental = 0x88b5

// raw is a frame of n bytes of no protocol.
func raw(n int) []byte {
	f := frametest.Pattern(n)
	header.Ethernet(f).SetDst(addr.Broadcast)
	header.Ethernet(f).SetSrc(frametest.MAC(2))
	header.Ethernet(f).SetEtherType(experimental)
	return f
}

func TestFramesWrittenArriveAtAPacketSocket(t *testing.T) {
	each(t, func(t *testing.T, c Config) {
		d := open(t, c)
		up(t, "tap0")
		s := packetSocket(t, "tap0", experimental)
		buf := make([]byte, 1<<16)
		for n := header.EthernetLen; n <= 1514; n += 1 + n/7 {
			f := raw(n)
			write(t, d.Queues[n%len(d.Queues)], f[:1], f[1:1], f[1:n/2], f[n/2:])
			if k, err := next(s, buf); err != nil || !bytes.Equal(buf[:k], f) {
				t.Fatalf("of %d bytes, %d arrived, %v", n, k, err)
			}
		}
		// Each with as many pieces as a full batch of small frames makes.
		f := raw(1000)
		var pieces [][]byte
		for i := range f {
			pieces = append(pieces, f[i:i+1])
		}
		write(t, d.Queues[0], pieces...)
		if k, err := next(s, buf); err != nil || !bytes.Equal(buf[:k], f) {
			t.Errorf("in %d pieces: %d bytes, %v", len(pieces), k, err)
		}
	})
}

func TestTooManyPiecesAreAnError(t *testing.T) {
	enterNamespace(t)
	d := open(t, Config{Name: "tap0", Queues: 1, VNet: true})
	up(t, "tap0")
	pieces := make([][]byte, maxPieces+1)
	for i := range pieces {
		pieces[i] = []byte{0}
	}
	if err := d.Queues[0].Write(&header.VirtioNet{}, pieces); err != unix.EMSGSIZE {
		t.Errorf("Write of %d pieces: %v", len(pieces), err)
	}
	if err := d.Queues[0].Write(&header.VirtioNet{}, pieces[:maxPieces]); err != nil {
		t.Errorf("Write of %d pieces: %v", maxPieces, err)
	}
}

func TestFramesSentAreRead(t *testing.T) {
	each(t, func(t *testing.T, c Config) {
		c.Queues = 1
		d := open(t, c)
		up(t, "tap0")
		s := packetSocket(t, "tap0", experimental)
		var sent [][]byte
		for n := header.EthernetLen; n <= 1514; n += 1 + n/9 {
			f := raw(n)
			if _, err := unix.Write(s, f); err != nil {
				t.Fatal(err)
			}
			sent = append(sent, f)
		}
		for i, f := range read(t, d.Queues[0], len(sent)) {
			if !bytes.Equal(f.Bytes(), sent[i]) || f.Offload != (header.VirtioNet{}) && f.Offload != (header.VirtioNet{NumBuffers: 1}) {
				t.Errorf("frame %d of %d bytes came with %d and %+v", i, len(sent[i]), len(f.Bytes()), f.Offload)
			}
		}
	})
}

// The frames of a batch must not lie over each other, and their headroom must be theirs to write to.
func TestFramesOfABatchAreApart(t *testing.T) {
	enterNamespace(t)
	d := open(t, Config{Name: "tap0", Queues: 1, VNet: true})
	up(t, "tap0")
	s := packetSocket(t, "tap0", experimental)
	const n = 100
	var sent [][]byte
	for i := range n {
		f := raw(60 + i*14)
		sent = append(sent, f)
		if _, err := unix.Write(s, f); err != nil {
			t.Fatal(err)
		}
	}
	batch := make([]frame.Frame, 63)
	for got := 0; got < n; {
		await(t, d.Queues[0])
		k, err := d.Queues[0].Read(batch)
		if err != nil {
			t.Fatal(err)
		}
		for i := range batch[:k] {
			header.VXLAN(batch[i].Buf).Encode(42)
			if cap(batch[i].Buf) != len(batch[i].Buf) {
				t.Fatalf("an append to frame %d would write over the next", i)
			}
		}
		for _, f := range batch[:k] {
			if !bytes.Equal(f.Bytes(), sent[got]) {
				t.Fatalf("frame %d of %d bytes was changed", got, len(sent[got]))
			}
			got++
		}
	}
	if _, err := d.Queues[0].Read(batch); err != unix.EAGAIN {
		t.Errorf("Read of an empty queue: %v", err)
	}
}

func TestUDPBothWays(t *testing.T) {
	each(t, func(t *testing.T, c Config) {
		c.Queues = 1
		d := open(t, c)
		up(t, "tap0")
		q, s := d.Queues[0], udpSocket(t, 40000)
		for _, n := range []int{0, 1, 2, 1471, 1472} {
			// From the other side, with a complete checksum.
			in := frametest.UDP4(frametest.Opts{
				SrcMAC: frametest.MAC(2), DstMAC: frametest.MAC(1), Src: frametest.IP4(2), Dst: frametest.IP4(1),
				SrcPort: 80, DstPort: 40000, Payload: n,
			})
			write(t, q, in.Bytes())
			receive(t, s, frametest.Pattern(n))
			if d.Offload.Checksum {
				h, partial := in.Offload(0)
				if err := q.Write(&h, [][]byte{partial[:20], partial[20:]}); err != nil {
					t.Fatalf("Write of a partial checksum: %v", err)
				}
				receive(t, s, frametest.Pattern(n))
			}

			to := &unix.SockaddrInet4{Addr: frametest.IP4(2).As4(), Port: 80}
			if err := unix.Sendto(s, frametest.Pattern(n), 0, to); err != nil {
				t.Fatal(err)
			}
			out := read(t, q, 1)[0]
			check := frametest.Check
			if out.Offload.Flags&header.VirtioFlagNeedsCsum != 0 {
				check = frametest.CheckPartial
				if !d.Offload.Checksum || out.Offload.CsumStart != 34 || out.Offload.CsumOffset != 6 {
					t.Errorf("a partial checksum: %+v", out.Offload)
				}
			}
			p := check(t, out.Bytes())
			if p.UDP == nil || p.UDP.DstPort != 80 || !bytes.Equal(p.Payload, frametest.Pattern(n)) {
				t.Errorf("%d bytes sent came as % x", n, out.Bytes())
			}
		}
	})
}

// receive takes one datagram from a socket.
func receive(t *testing.T, s int, want []byte) {
	t.Helper()
	buf := make([]byte, 1<<16)
	if k, err := next(s, buf); err != nil || !bytes.Equal(buf[:k], want) {
		t.Fatalf("received %d bytes in place of %d, %v", k, len(want), err)
	}
}

func TestEveryQueueTakesAndGives(t *testing.T) {
	enterNamespace(t)
	d := open(t, Config{Name: "tap0", Queues: 4, VNet: true, TSO: true, USO: true})
	up(t, "tap0")
	s := udpSocket(t, 40000)
	for i, q := range d.Queues {
		write(t, q, frametest.UDP4(frametest.Opts{
			SrcMAC: frametest.MAC(2), DstMAC: frametest.MAC(1), Src: frametest.IP4(2), Dst: frametest.IP4(1),
			SrcPort: uint16(1000 + i), DstPort: 40000, Payload: 10 + i,
		}).Bytes())
		receive(t, s, frametest.Pattern(10+i))
		if err := unix.Sendto(s, []byte("answer"), 0, &unix.SockaddrInet4{Addr: frametest.IP4(2).As4(), Port: 1000 + i}); err != nil {
			t.Fatal(err)
		}
		if f, _ := readAny(t, d); !bytes.HasSuffix(f.Bytes(), []byte("answer")) {
			t.Errorf("the answer is % x", f.Bytes())
		}
	}
}

func TestWriteToADownInterfaceIsEIO(t *testing.T) {
	each(t, func(t *testing.T, c Config) {
		d := open(t, c)
		for range 2 {
			for i, q := range d.Queues {
				f := raw(100)
				if err := q.Write(&header.VirtioNet{}, [][]byte{f}); err != unix.EIO {
					t.Errorf("queue %d: %v", i, err)
				}
				if err := q.Write(&header.VirtioNet{}, [][]byte{f[:50], f[50:]}); err != unix.EIO {
					t.Errorf("queue %d, in pieces: %v", i, err)
				}
			}
		}
		up(t, "tap0")
		for _, q := range d.Queues {
			write(t, q, raw(100))
		}
	})
}

// What the kernel does not take is an error with its number, and the next frame goes through.
func TestWriteOfNonsenseIsAnError(t *testing.T) {
	each(t, func(t *testing.T, c Config) {
		d := open(t, c)
		up(t, "tap0")
		q := d.Queues[0]
		f := raw(100)
		if err := q.Write(&header.VirtioNet{}, [][]byte{f[:header.EthernetLen-1]}); err != unix.EINVAL {
			t.Errorf("a runt: %v", err)
		}
		if c.VNet {
			for name, h := range map[string]header.VirtioNet{
				"a checksum behind the end": {Flags: header.VirtioFlagNeedsCsum, CsumStart: 99, CsumOffset: 16},
				"segments of 0 bytes":       {Flags: header.VirtioFlagNeedsCsum, GSOType: header.GSOTCPv4, CsumStart: 34, CsumOffset: 16},
				"an unknown type":           {Flags: header.VirtioFlagNeedsCsum, GSOType: 7, GSOSize: 10, CsumStart: 34, CsumOffset: 16},
			} {
				if err := q.Write(&h, [][]byte{f}); err != unix.EINVAL {
					t.Errorf("%s: %v", name, err)
				}
			}
		}
		s := packetSocket(t, "tap0", experimental)
		write(t, q, f)
		buf := make([]byte, 1<<16)
		if k, err := next(s, buf); err != nil || !bytes.Equal(buf[:k], f) {
			t.Errorf("the next frame: %d bytes, %v", k, err)
		}
	})
}

// Deleting the device ends the wait of a reader, who gets an error at once and each time.
func TestReadFromADeletedDeviceIsAnError(t *testing.T) {
	each(t, func(t *testing.T, c Config) {
		d, err := Open(c)
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		up(t, "tap0")
		l, err := netlink.LinkByName("tap0")
		if err == nil {
			err = netlink.LinkDel(l)
		}
		if err != nil {
			t.Fatal(err)
		}
		for i, q := range d.Queues {
			await(t, q)
			for range 3 {
				if n, err := q.Read(make([]frame.Frame, 4)); n != 0 || err == nil || err == unix.EAGAIN {
					t.Errorf("queue %d: Read = %d, %v", i, n, err)
				}
			}
			if err := q.Write(&header.VirtioNet{}, [][]byte{raw(100)}); err != unix.EBADFD {
				t.Errorf("queue %d: Write: %v", i, err)
			}
		}
	})
}

func TestReadAndWriteDoNotAllocate(t *testing.T) {
	each(t, func(t *testing.T, c Config) {
		c.Queues = 1
		d := open(t, c)
		up(t, "tap0")
		q, s := d.Queues[0], packetSocket(t, "tap0", experimental)
		f, batch, buf := raw(1000), make([]frame.Frame, 16), make([]byte, 2000)
		h, pieces := header.VirtioNet{}, [][]byte{f[:100], f[100:]}
		var failed error
		note := func(what string, err error) {
			if err != nil {
				failed = fmt.Errorf("%s: %w", what, err)
			}
		}
		for name, run := range map[string]func(){
			"Write": func() {
				note("Write", q.Write(&h, pieces))
				_, err := next(s, buf)
				note("reading the socket", err)
			},
			"Read": func() {
				_, err := unix.Write(s, f)
				note("writing to the socket", err)
				// The frame is there when write has returned: a TAP has no queue before its own.
				n, err := q.Read(batch)
				note("Read", err)
				if n != 1 {
					note("Read", fmt.Errorf("%d frames", n))
				}
			},
		} {
			if n := testing.AllocsPerRun(100, run); n != 0 {
				t.Errorf("%s allocates %v times", name, n)
			}
			if failed != nil {
				t.Error(failed)
			}
		}
	})
}
