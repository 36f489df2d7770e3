package underlay

import (
	"fmt"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/dataplane/fdb"
	"github.com/overlayd/overlayd/dataplane/forward"
	"github.com/overlayd/overlayd/dataplane/frametest"
	"github.com/overlayd/overlayd/dataplane/header"
)

// traffic collects sends as forward.Egress makes them.
type traffic struct {
	sends  []forward.Send
	pieces [][]byte
	sent   []string // the datagrams, in order
}

// add appends one send of datagrams that are all of a size but for the last, each made of that many pieces.
func (x *traffic) add(to fdb.VTEPID, bucket int, tos uint8, perDatagram int, sizes ...int) {
	s := forward.Send{
		VTEP: to, Bucket: bucket, TOS: tos, Size: sizes[0], First: len(x.pieces), PerDatagram: perDatagram, Frames: len(sizes),
	}
	for _, n := range sizes {
		b := frametest.Pattern(n)
		copy(b, fmt.Sprintf("%4d", len(x.sent))) // no two alike
		x.sent = append(x.sent, string(b))
		s.Bytes += n - header.VXLANLen
		for i := range perDatagram {
			// Apart from the one before, as headers and payload are: what lies behind it is sent with it as one.
			x.pieces = append(x.pieces, append([]byte{0}, b[i*n/perDatagram:(i+1)*n/perDatagram]...)[1:])
		}
	}
	s.End = len(x.pieces)
	x.sends = append(x.sends, s)
}

// train appends one send of n datagrams of a size, the last being shorter.
func (x *traffic) train(to fdb.VTEPID, bucket, n, size int) {
	sizes := make([]int, n)
	for i := range sizes {
		sizes[i] = size
	}
	sizes[n-1] = size/2 + 1
	x.add(to, bucket, 0, 2, sizes...)
}

// report is a Reporter that adds up.
type report struct {
	frames, bytes map[forward.DropReason]int
}

func newReport() *report {
	return &report{frames: map[forward.DropReason]int{}, bytes: map[forward.DropReason]int{}}
}

func (r *report) Report(_ *forward.Send, frames, bytes int, outcome forward.DropReason) {
	r.frames[outcome] += frames
	r.bytes[outcome] += bytes
}

// want compares with the frames expected for each outcome.
func (r *report) want(t *testing.T, want map[forward.DropReason]int) {
	t.Helper()
	if fmt.Sprint(r.frames) != fmt.Sprint(want) {
		t.Errorf("reported %v, want %v", r.frames, want)
	}
}

// destinations numbers peers.
func destinations(e *Endpoint, peers ...netip.Addr) []Destination {
	var out []Destination
	for _, a := range peers {
		out = append(out, NewDestination(e, a, port))
	}
	return out
}

// send hands the traffic over and returns what was reported.
func (x *traffic) send(s *Sender, dest []Destination) *report {
	r := newReport()
	s.Send(x.sends, x.pieces, dest, r)
	return r
}

// got is one datagram that came.
type got struct {
	data   string
	from   netip.Addr
	tos    uint8
	stride int // of the buffer that it came in
}

// receiveN takes n datagrams from a receiver, cut out of trains.
func receiveN(t *testing.T, r *Receiver, n int) []got {
	t.Helper()
	var out []got
	batch := make([]forward.Received, 2*maxBatch)
	for len(out) < n {
		if !ready(t, r.FD(), unix.POLLIN, patience) {
			t.Fatalf("%d datagrams of %d came within %v", len(out), n, patience)
		}
		k, err := r.Receive(batch)
		if err != nil {
			t.Fatalf("Receive: %v", err)
		}
		for _, b := range batch[:k] {
			stride := b.Stride
			if stride == 0 {
				stride = max(1, len(b.Data))
			}
			for first := true; first || len(b.Data) > 0; first = false {
				n := min(stride, len(b.Data))
				out = append(out, got{string(b.Data[:n]), b.From, b.TOS, b.Stride})
				b.Data = b.Data[n:]
			}
		}
	}
	if _, err := r.Receive(batch); err != unix.EAGAIN || len(out) != n {
		t.Fatalf("%d datagrams in place of %d, then %v", len(out), n, err)
	}
	return out
}
