package gro_test

import (
	"encoding/binary"
	"testing"

	"github.com/google/gopacket/layers"
	"pgregory.net/rapid"

	"github.com/overlayd/overlayd/dataplane/frame"
	ft "github.com/overlayd/overlayd/dataplane/frametest"
	"github.com/overlayd/overlayd/dataplane/gso"
	"github.com/overlayd/overlayd/dataplane/header"
)

// stream makes the frames of one flow, one behind the other. Fields may be changed between frames.
type stream struct {
	v6, udp  bool
	vlans    []uint16
	station  uint16 // source
	to       uint16 // destination
	port     uint16
	seq, ack uint32
	id       uint16
	df       bool
	tos, ttl uint8
	label    uint32 // IPv6
	window   uint16
	time     uint32 // TCP timestamp; 0 for none
	flags    uint8
	ae       bool // the flag of RFC 9768
	urgent   uint16
	options4 bool // IPv4 options or IPv6 extension header
	padded   bool
	partial  bool
	zero     bool // UDP over IPv4 without a checksum
	sent     byte
}

func newStream() *stream {
	return &stream{station: 1, to: 2, port: 40000, seq: 1000, id: 7, df: true, ttl: 64, window: 500, flags: header.TCPAck}
}

func (s *stream) builder(n int) *ft.Builder {
	b := ft.Ethernet(ft.MAC(s.to), ft.MAC(s.station))
	for _, v := range s.vlans {
		b.VLAN(v)
	}
	if s.v6 {
		b.IPv6(ft.IP6(s.station), ft.IP6(s.to), func(l *layers.IPv6) {
			l.TrafficClass, l.HopLimit, l.FlowLabel = s.tos, s.ttl, s.label
		})
		if s.options4 {
			b.Extension(header.ProtoDestOpts, nil)
		}
	} else {
		b.IPv4(ft.IP4(s.station), ft.IP4(s.to), func(l *layers.IPv4) {
			l.TOS, l.TTL, l.Id = s.tos, s.ttl, s.id
			if !s.df {
				l.Flags = 0
			}
			if s.options4 {
				l.Options = []layers.IPv4Option{{OptionType: 148, OptionLength: 4, OptionData: []byte{0, 0}}}
			}
		})
		s.id++
	}
	data := ft.Pattern(n)
	for i := range data {
		data[i] += s.sent
	}
	s.sent++
	if s.udp {
		return b.UDP(s.port, 80).Data(data)
	}
	b.TCP(s.port, 80, ft.TCPFlags(s.flags), func(l *layers.TCP) {
		l.Seq, l.Ack, l.Window, l.NS, l.Urgent = s.seq, s.ack, s.window, s.ae, s.urgent
		if s.time != 0 {
			l.Options = []layers.TCPOption{ft.Nop(), ft.Nop(), ft.Timestamps(s.time, 1)}
		}
	})
	s.seq += uint32(n)
	return b.Data(data)
}

// next is the next frame of the flow with n bytes of payload.
func (s *stream) next(n int) []byte {
	var f []byte
	if b := s.builder(n); s.partial {
		f = b.Partial()
	} else {
		f = b.Bytes()
	}
	if s.zero && s.udp && !s.v6 {
		at := 14 + 4*len(s.vlans) + 20 + 6
		if s.options4 {
			at += 4
		}
		binary.BigEndian.PutUint16(f[at:], 0)
	}
	if s.padded {
		f = append(f, 0xaa, 0xbb, 0xcc)
	}
	return f
}

// Whatever a batch holds, what comes out stands for exactly what went in.
func TestCoalesceProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		x := newBench(t, both)
		streams := make([]*stream, rapid.IntRange(1, 11).Draw(t, "flows"))
		for i := range streams {
			s := newStream()
			s.v6, s.udp = rapid.Bool().Draw(t, "v6"), rapid.Bool().Draw(t, "udp")
			s.port = uint16(rapid.IntRange(1, 3).Draw(t, "port")) // flows may meet
			s.df, s.partial = rapid.Bool().Draw(t, "df"), rapid.Bool().Draw(t, "partial")
			s.padded = rapid.Bool().Draw(t, "padded")
			s.vlans = rapid.SampledFrom([][]uint16{nil, nil, {3}, {4, 5}}).Draw(t, "tags")
			s.time = uint32(rapid.IntRange(0, 1).Draw(t, "timestamps"))
			s.seq = rapid.SampledFrom([]uint32{0, 0xfffffff0, 12345}).Draw(t, "seq")
			s.id = rapid.SampledFrom([]uint16{0, 0xfffe}).Draw(t, "id")
			streams[i] = s
		}
		for range rapid.IntRange(1, 80).Draw(t, "steps") {
			step(t, x, rapid.SampledFrom(streams).Draw(t, "flow"))
		}
		x.finish()
	})
}

// step does one thing that a flow may do.
func step(t *rapid.T, x *bench, s *stream) {
	const size = 600
	was := *s
	switch rapid.IntRange(0, 40).Draw(t, "step") {
	default:
		for range rapid.IntRange(1, 5).Draw(t, "run") {
			x.add(s.next(size))
		}
		return
	case 0:
		x.add(s.next(rapid.IntRange(1, size-1).Draw(t, "short")))
		return
	case 1:
		x.add(s.next(0))
		return
	case 2:
		s.seq += uint32(rapid.IntRange(1, 2000).Draw(t, "gap"))
		return
	case 3:
		s.seq -= size
		return
	case 4:
		s.ack++
		return
	case 5:
		s.window++
		return
	case 6:
		s.ttl--
		return
	case 7:
		s.tos ^= uint8(rapid.IntRange(1, 255).Draw(t, "tos"))
		return
	case 8:
		s.time++
		return
	case 9:
		s.id += uint16(rapid.IntRange(0, 3).Draw(t, "id"))
		return
	case 10:
		s.df = !s.df
		return
	case 11:
		s.label++
		return
	case 12:
		s.partial = !s.partial
		return
	case 13:
		x.add(s.next(size + 1))
		return
	case 14:
		x.add(ft.ARPRequest(ft.MAC(s.station), ft.IP4(1), ft.IP4(2)).Bytes())
		return
	case 15:
		x.add(ft.Ping4(ft.Opts{Payload: 56}).Bytes())
		return
	case 16:
		x.add(ft.Ethernet(ft.MAC(2), ft.MAC(1)).IPv4(ft.IP4(1), ft.IP4(2), func(l *layers.IPv4) {
			l.Flags, l.FragOffset, l.Protocol, l.Id = 0, 100, layers.IPProtocolUDP, s.id
		}).Payload(77).Bytes())
		return
	case 17:
		x.addSuper(s.superframe(t), size)
		return
	case 18:
		x.addCut(s.superframe(t), size)
		return

	// What follows is for one frame.
	case 19, 20:
		s.flags |= header.TCPPsh
	case 21:
		s.flags |= header.TCPFin
	case 22:
		s.flags = rapid.Uint8().Draw(t, "flags")
	case 23:
		s.options4 = true
	case 24:
		s.zero, s.partial = true, false
	case 25:
		s.ae = true
	}
	x.add(s.next(size))
	s.flags, s.options4, s.zero, s.partial, s.ae = was.flags, was.options4, was.zero, was.partial, was.ae
}

func (s *stream) superframe(t *rapid.T) []byte {
	was := *s
	s.padded, s.zero, s.partial = false, false, true
	if rapid.Bool().Draw(t, "reduced") {
		s.flags |= header.TCPCwr
	}
	b := s.next(rapid.IntRange(601, 8000).Draw(t, "superframe"))
	s.padded, s.zero, s.partial, s.flags = was.padded, was.zero, was.partial, was.flags
	return b
}

// FuzzCoalesce makes frames of four flows of which any header byte may be damaged. Three bytes of input make a
// frame: which flow and size, which byte, and what it is to be.
func FuzzCoalesce(f *testing.F) {
	f.Add([]byte{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 0})
	f.Add([]byte{1, 0, 0, 1, 22, 9, 1, 0, 0, 2, 0, 0, 2, 47, 0x18, 2, 0, 0, 3, 0, 0, 3, 60, 4})
	f.Add([]byte{4, 0, 0, 4, 46, 0x51, 4, 0, 0, 4, 15, 3, 4, 20, 64, 0, 20, 32})
	f.Fuzz(func(t *testing.T, ops []byte) {
		var streams [4]*stream
		for i := range streams {
			streams[i] = newStream()
			streams[i].v6, streams[i].udp = i&1 != 0, i&2 != 0
		}
		x := newBench(t, both)
		x.split = func(b []byte, size int) ([][]byte, error) {
			// The oracle does not keep every reserved bit; Split, which is tested against it, does.
			var out [][]byte
			p := x.parse(b)
			a := gso.NewArena(make([]byte, gso.Segments(gso.Payload(p), size)*int(p.PayloadOff)))
			pieces := gso.Split(nil, a, nil, b, p, size)
			for ; len(pieces) > 0; pieces = pieces[2:] {
				out = append(out, append(pieces[0], pieces[1]...))
			}
			return out, nil
		}
		for ; len(ops) >= 3 && len(x.in) < 200; ops = ops[3:] {
			s := streams[ops[0]&3]
			b := s.next([]int{60, 60, 60, 59, 1, 61, 0, 600}[ops[0]>>2&7])
			if ops[1] != 0 {
				b[int(ops[1])%min(len(b), 74)] = ops[2]
				if !s.v6 {
					sum4(b)
				}
			}
			var p frame.Parsed
			if p.Parse(b) != frame.Sound {
				continue
			}
			if p.PayloadOff != 0 && gso.Verify(b, &p) == gso.Wrong {
				gso.CompleteTransport(b, &p)
			}
			x.add(b)
		}
		x.finish()
	})
}

// sum4 makes the checksum of an IPv4 header of 20 bytes behind Ethernet right.
func sum4(b []byte) {
	b[24], b[25] = 0, 0
	var sum uint32
	for i := 14; i < 34; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	sum = sum>>16 + sum&0xffff
	binary.BigEndian.PutUint16(b[24:], ^uint16(sum+sum>>16))
}
