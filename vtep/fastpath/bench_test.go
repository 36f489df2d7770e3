package fastpath

import (
	"testing"

	"github.com/cilium/ebpf"

	"github.com/overlayd/overlayd/dataplane/frametest"
)

// small is a frame of 64 bytes in TCP.
func small() sample { return plain(frametest.Opts{Payload: 10})[0] }

// BenchmarkWrap measures what the program of a TAP does for a frame of 64 bytes with an entry: all of it but the way out,
// which a packet on no device has not. As one run of it changes the packet, each has a system call of its own, whose cost
// "bare" shows, with a program that finds nothing to do.
func BenchmarkWrap(b *testing.B) {
	r := newRig(b)
	s := small()
	r.keep(s.frame, s.from, way(), roomy)
	b.Run("wrap", func(b *testing.B) { measure(b, r.wrap, s.frame, redirected) })
	other := frametest.ARPRequest(frametest.MAC(1), frametest.IP4(1), frametest.IP4(2)).Bytes()
	b.Run("bare", func(b *testing.B) { measure(b, r.wrap, append(other, make([]byte, len(s.frame)-len(other))...), next) })
}

// BenchmarkUnwrap is the same for what arrives.
func BenchmarkUnwrap(b *testing.B) {
	r := newRig(b)
	s := small()
	r.await(s.frame, s.from, roomy)
	b.Run("unwrap", func(b *testing.B) { measure(b, r.unwrap, carry(s.frame), redirected) })
	other := carry(s.frame)
	other[5]++ // for somebody else
	b.Run("bare", func(b *testing.B) { measure(b, r.unwrap, other, next) })
}

// measure reports how long the kernel takes for one run, by its own clock.
func measure(b *testing.B, prog *ebpf.Program, packet []byte, want int32) {
	var total float64
	var n int
	for b.Loop() {
		verdict, took, err := prog.Benchmark(packet, 1, nil)
		if err != nil || int32(verdict) != want {
			b.Fatalf("verdict %d, %v", int32(verdict), err)
		}
		total += float64(took)
		n++
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(total/float64(n), "ns/packet")
}

// BenchmarkLeft measures what userspace does for each frame that it reads from a TAP: Leaving and LeftDone.
func BenchmarkLeft(b *testing.B) {
	r := newRig(b)
	s := small()
	b.ReportAllocs()
	for b.Loop() {
		_, hash, _ := r.Leaving(outlet, s.frame)
		r.LeftDone(hash)
	}
}

// BenchmarkArrived measures the same for each datagram: ArrivedDone and Arriving.
func BenchmarkArrived(b *testing.B) {
	r := newRig(b)
	d := carry(small().frame)[vxlanAt:]
	b.ReportAllocs()
	for b.Loop() {
		r.ArrivedDone(there4, source, d)
		r.Arriving(there4, here4, d)
	}
}
