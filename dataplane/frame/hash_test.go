package frame

import (
	"encoding/binary"
	"math"
	"testing"

	ft "github.com/overlayd/overlayd/dataplane/frametest"
)

// counter is a 16-bit field of a frame in which flows count up: by step, from the value that is there.
type counter struct{ at, step int }

// TestFlowHashSpreadsEvenly counts how many of many flows have the same low bits of the hash, of which an Egress takes its
// source port, and the same bits above, which a table takes. Real flows differ in a few bits only, and never at random.
func TestFlowHashSpreadsEvenly(t *testing.T) {
	const (
		src4, dst4 = 14 + 14, 14 + 18 // lower halves of the addresses
		src6, dst6 = 14 + 22, 14 + 38
		port4      = 14 + 20
		port6      = 14 + 40
	)
	tcp4, udp6, ping4 := ft.TCP4(ft.Opts{}).Bytes(), ft.UDP6(ft.Opts{}).Bytes(), ft.Ping4(ft.Opts{}).Bytes()
	for _, c := range []struct {
		name  string
		frame []byte
		count []counter
	}{
		{"source ports", tcp4, []counter{{port4, 1}}},
		{"every other source port", tcp4, []counter{{port4, 2}}},
		{"destination ports", tcp4, []counter{{port4 + 2, 1}}},
		{"both ports", tcp4, []counter{{port4, 1}, {port4 + 2, 1}}},
		{"sources", tcp4, []counter{{src4, 1}}},
		{"destinations", tcp4, []counter{{dst4, 1}}},
		{"subnets of sources", tcp4, []counter{{src4 - 1, 1}}},
		{"subnets of destinations", tcp4, []counter{{dst4 - 1, 1}}},
		{"sources and destinations", tcp4, []counter{{src4, 1}, {dst4, 1}}},
		{"sources and source ports", tcp4, []counter{{src4, 1}, {port4, 1}}},
		{"destinations and source ports", tcp4, []counter{{dst4, 1}, {port4, 1}}},
		{"all", tcp4, []counter{{src4, 1}, {dst4, 1}, {port4, 1}, {port4 + 2, 1}}},
		{"sources of pings", ping4, []counter{{src4, 1}}},
		{"destinations of pings", ping4, []counter{{dst4, 1}}},
		{"IPv6 source ports", udp6, []counter{{port6, 1}}},
		{"IPv6 sources", udp6, []counter{{src6, 1}}},
		{"IPv6 destinations", udp6, []counter{{dst6, 1}}},
		{"IPv6 subnets of sources", udp6, []counter{{src6 - 8, 1}}},
		{"IPv6 subnets of destinations", udp6, []counter{{dst6 - 8, 1}}},
		{"IPv6 sources and source ports", udp6, []counter{{src6, 1}, {port6, 1}}},
		{"IPv6 all", udp6, []counter{{src6, 1}, {dst6, 1}, {port6, 1}, {port6 + 2, 1}}},
	} {
		for _, flows := range []int{2048, 32768} {
			hashes := hashesOf(t, c.frame, c.count, flows)
			spread(t, c.name, "lowest 4", hashes, 0, 4)
			spread(t, c.name, "next 6", hashes, 4, 6)
			spread(t, c.name, "6 above", hashes, 10, 6)
			if flows == 32768 {
				spread(t, c.name, "bits 4 to 15", hashes, 4, 12)
			}
		}
	}
}

// hashesOf returns the hashes of flows that count up from that of b.
func hashesOf(t *testing.T, b []byte, count []counter, flows int) []uint32 {
	t.Helper()
	var p Parsed
	if f := p.Parse(b); f != Sound {
		t.Fatalf("fault %d", f)
	}
	b = append([]byte(nil), b...)
	hashes := make([]uint32, flows)
	for i := range hashes {
		hashes[i] = p.FlowHash(b)
		for _, c := range count {
			binary.BigEndian.PutUint16(b[c.at:], binary.BigEndian.Uint16(b[c.at:])+uint16(c.step))
		}
	}
	return hashes
}

// spread compares how hashes fall into the buckets that width bits from low on name with what chance would do, by the sum
// of chi-square. What spreads more evenly than chance is welcome.
func spread(t *testing.T, flows, what string, hashes []uint32, low, width int) {
	t.Helper()
	n := make([]float64, 1<<width)
	for _, h := range hashes {
		n[h>>low&uint32(len(n)-1)]++
	}
	var chi float64
	mean := float64(len(hashes)) / float64(len(n))
	for _, v := range n {
		chi += (v - mean) * (v - mean) / mean
	}
	free := float64(len(n) - 1)
	if most := 1.25*free + 5*math.Sqrt(2*free); chi > most {
		t.Errorf("%s: %d flows, %s bits: chi-square is %.0f, want at most %.0f", flows, len(hashes), what, chi, most)
	}
}
