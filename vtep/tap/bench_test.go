package tap

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/dataplane/frame"
	"github.com/overlayd/overlayd/dataplane/frametest"
	"github.com/overlayd/overlayd/dataplane/header"
	"github.com/overlayd/overlayd/vtep/link"
	"github.com/overlayd/overlayd/vtep/link/linktest"
)

// benchSegment is the payload of one segment of the superframes.
const benchSegment = 1400

// benchDevice opens a TAP with one queue, as station 1 of the overlay, with station 2 on the other side.
func benchDevice(b *testing.B) *Device {
	b.Helper()
	linktest.Enter(b)
	linktest.Setting(b, "net/ipv6/conf/default/disable_ipv6", "1")
	d, err := Open(Config{Name: "tap0", Queues: 1, VNet: true, TSO: true, USO: true})
	linktest.Must(b, err)
	b.Cleanup(func() { linktest.Must(b, d.Close()) })
	linktest.Must(b, link.SetMAC("tap0", frametest.MAC(1)),
		link.AddAddress("tap0", netip.PrefixFrom(frametest.IP4(1), 16)), link.SetUp("tap0"), neighbor("tap0"))
	return d
}

// reportMedian prints the median of the times that equal runs of calls took, in place of ns/op: a mean would hold what else
// the machine does. Each took that many calls and moved that many bytes; per says by what else to divide.
func reportMedian(b *testing.B, took []time.Duration, bytes int, per map[string]int) {
	b.Helper()
	slices.Sort(took)
	median := float64(took[len(took)/2].Nanoseconds())
	b.ReportMetric(0, "ns/op")
	for unit, n := range per {
		b.ReportMetric(median/float64(n), unit)
	}
	if bytes > 0 {
		b.ReportMetric(float64(bytes)/median*1e3, "MB/s")
	}
}

// BenchmarkWrite measures one Write: the system call, the copy into memory that the kernel allocates, what it reads of
// the headers, the way up to IP, and freeing all of it. The frame is addressed to another MAC, and IP drops it at once:
// neither TCP or UDP, nor a bridge, nor the wake-up of a receiver are in it. "hot" writes one buffer again and again;
// "cold" goes through 64 MB in an order that the hardware does not foresee, so that the payload comes from memory (from
// a shared cache, where that is larger). "in pieces" are as many as a superframe has that was joined of segments.
func BenchmarkWrite(b *testing.B) {
	d := benchDevice(b)
	headers := len(frametest.TCP4(frametest.Opts{}).Bytes())
	for _, c := range []struct {
		name   string
		size   int
		pieces int
		calls  int // between two looks at the clock
	}{
		{"64B", 64, 1, 64}, {"1400B", 1400, 1, 32}, {"16KB", 16 << 10, 1, 8}, {"62KB", 62 << 10, 1, 4},
		{"62KB in pieces", 62 << 10, 45, 4},
	} {
		gso := 0
		if c.size > 1500 {
			gso = benchSegment
		}
		offload, f := frametest.TCP4(frametest.Opts{
			SrcMAC: frametest.MAC(2), DstMAC: frametest.MAC(3), Src: frametest.IP4(2), Dst: frametest.IP4(1), Payload: c.size - headers,
		}).Offload(gso)
		for _, memory := range []struct {
			name string
			size int
		}{{"hot", len(f)}, {"cold", 64 << 20}} {
			b.Run(c.name+"/"+memory.name, func(b *testing.B) {
				benchWrite(b, d.Queues[0], &offload, copies(f, memory.size, c.pieces), c.calls)
			})
		}
	}
}

// copies returns the frame as often as it fits into so many bytes, each copy cut into that many pieces. It lies at the
// same place in a cache line each time.
func copies(f []byte, size, pieces int) [][][]byte {
	stride := (len(f) + 63) &^ 63
	mem := make([]byte, max(1, size/stride)*stride)
	var out [][][]byte
	for ; len(mem) > 0; mem = mem[stride:] {
		copy(mem, f)
		var one [][]byte
		for i := range pieces {
			one = append(one, mem[i*len(f)/pieces:(i+1)*len(f)/pieces])
		}
		out = append(out, one)
	}
	return out
}

func benchWrite(b *testing.B, q Queue, offload *header.VirtioNet, frames [][][]byte, calls int) {
	// A step of about 0.6 of the whole comes by every copy once before it comes by the first one again, as long as
	// both have no common divisor.
	step := len(frames)*3/5 | 1
	for ; gcd(step, len(frames)) != 1; step++ {
	}
	at, took, bytes := 0, []time.Duration(nil), 0
	for _, p := range frames[0] {
		bytes += len(p)
	}
	for b.Loop() {
		start := time.Now()
		for range calls {
			if err := q.Write(offload, frames[at]); err != nil {
				b.Fatal(err)
			}
			if at += step; at >= len(frames) {
				at %= len(frames)
			}
		}
		took = append(took, time.Since(start))
	}
	reportMedian(b, took, calls*bytes, map[string]int{"ns/write": calls})
}

func gcd(a, b int) int {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

// BenchmarkRead measures one Read of as many frames as were queued before, beside the timer: a system call and a copy
// for each of them, and a last call that finds nothing where the batch has room left. ns/read is all of that,
// ns/syscall and ns/frame are that divided. What the sender of the frames costs is not in it, nor the wake-up of the reader. The memory
// read into is hot, and so is what the kernel holds, since the same core has just put it there: with the sender on
// another core, the payload has to come from there. "empty" is a call that finds nothing.
func BenchmarkRead(b *testing.B) {
	d := benchDevice(b)
	q := d.Queues[0]
	// Made here: the benchmarks below have threads of their own, which are in no namespace.
	single, train := benchSocket(b, 0), benchSocket(b, benchSegment)
	const udpHeaders = header.EthernetLen + header.IPv4MinLen + header.UDPLen
	for _, c := range []struct {
		name         string
		fd, payload  int
		frames, room int // queued, and space in the batch
	}{
		{"64B", single, 64 - udpHeaders, 63, 63}, {"64B single", single, 64 - udpHeaders, 1, 63},
		{"44x1400B USO", train, 44 * benchSegment, 1, 63},
	} {
		b.Run(c.name, func(b *testing.B) {
			if c.fd == train && !d.Offload.USO {
				b.Skipf("this kernel's TAP has no USO: %v", d.Missing["uso"])
			}
			benchRead(b, q, c.fd, c.payload, c.frames, c.room)
		})
	}
	b.Run("empty", func(b *testing.B) {
		const calls = 64
		batch, took := make([]frame.Frame, 1), []time.Duration(nil)
		for b.Loop() {
			start := time.Now()
			for range calls {
				if _, err := q.Read(batch); err != unix.EAGAIN {
					b.Fatalf("Read of an empty queue: %v", err)
				}
			}
			took = append(took, time.Since(start))
		}
		reportMedian(b, took, 0, map[string]int{"ns/read": calls})
	})
}

func benchRead(b *testing.B, q Queue, fd, payload, frames, room int) {
	data, batch, took, bytes := frametest.Pattern(payload), make([]frame.Frame, room), []time.Duration(nil), 0
	for b.Loop() {
		for range frames {
			if _, err := unix.Write(fd, data); err != nil {
				b.Fatal(err)
			}
		}
		start := time.Now()
		n, err := q.Read(batch)
		took = append(took, time.Since(start))
		if n != frames || err != nil {
			b.Fatalf("%d frames in place of %d, %v", n, frames, err)
		}
		bytes = 0
		for _, f := range batch[:n] {
			bytes += len(f.Bytes())
		}
	}
	calls := min(frames+1, room)
	reportMedian(b, took, bytes, map[string]int{"ns/read": 1, "ns/syscall": calls, "ns/frame": frames})
}

// benchSocket opens a UDP socket that sends to station 2, in trains of that segment size if it is not 0.
func benchSocket(b *testing.B, segment int) int {
	b.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	linktest.Must(b, err)
	b.Cleanup(func() { unix.Close(fd) })
	linktest.Must(b, unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_SEGMENT, segment),
		unix.Connect(fd, &unix.SockaddrInet4{Addr: frametest.IP4(2).As4(), Port: 80}))
	return fd
}
