package forward

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/google/gopacket/layers"
	"pgregory.net/rapid"

	"github.com/overlayd/overlayd/dataplane/frame"
	ft "github.com/overlayd/overlayd/dataplane/frametest"
	"github.com/overlayd/overlayd/dataplane/header"
	"github.com/overlayd/overlayd/dataplane/mtu"
)

// IPv4 packets whose sender allows it are fragmented, each datagram of a run too.
func TestFragmentsToThePath(t *testing.T) {
	md5 := []layers.TCPOption{ft.Nop(), ft.Nop(), ft.MD5()}
	for name, c := range map[string]struct {
		b    *ft.Builder
		size int
	}{
		"UDP":                 {ft.UDP4(ft.Opts{Payload: 1422}), 0},
		"UDP tagged":          {ft.UDP4(ft.Opts{Payload: 1422, VLANs: []uint16{7}}), 0},
		"echo":                {ft.Ping4(ft.Opts{Payload: 1422}), -1},
		"run of UDP":          {ft.UDP4(ft.Opts{Payload: 14000}), 1400},
		"run with a rest":     {ft.UDP4(ft.Opts{Payload: 4500}), 1400},
		"run, rest too large": {ft.UDP4(ft.Opts{Payload: 2790}), 1400},
		"run of two, tagged":  {ft.UDP4(ft.Opts{Payload: 2797, VLANs: []uint16{7, 8}}), 1400},
		"run of one":          {ft.UDP4(ft.Opts{Payload: 1400}), 1400},
		"run of jumbos":       {ft.UDP4(ft.Opts{Payload: 50000}), 8900},
		"signed TCP":          {ft.TCP4(ft.Opts{Payload: 1400, Options: md5}), 0},
		"signed superframe":   {ft.TCP4(ft.Opts{Payload: 9000, Options: md5}), 1398},
		"urgent TCP":          {ft.TCP4(ft.Opts{Payload: 1400, Flags: header.TCPUrg}), 0},
		"SYN with data":       {ft.TCP4(ft.Opts{Payload: 1400, Flags: header.TCPSyn}), 0},
	} {
		t.Run(name, func(t *testing.T) {
			for _, path := range []mtu.PathMTU{1400, 1337, 1280, 576} {
				mayFragment := func(b []byte) []byte {
					l3 := 14
					for binary.BigEndian.Uint16(b[l3-2:]) == header.EtherTypeVLAN {
						l3 += 4
					}
					header.IPv4(b[l3:]).SetFlagsFragment(false, false, 0)
					header.IPv4(b[l3:]).UpdateChecksum()
					return b
				}
				h, f := header.VirtioNet{}, mayFragment(c.b.Bytes())
				want := [][]byte{bytes.Clone(f)}
				if c.size >= 0 {
					h, f = c.b.Offload(c.size)
					mayFragment(f)
				}
				if c.size > 0 {
					var err error
					if want, err = ft.Segments(mayFragment(c.b.Bytes()), c.size); err != nil {
						t.Fatal(err)
					}
				}
				w := narrow(t, path)
				room := int(path) - 50 + 14
				got := inner(t, room, w.send(t, fromTAP(h, f)))
				var whole [][]byte
				fragmented := uint64(0)
				for len(got) > 0 {
					n := 1
					for binary.BigEndian.Uint16(got[n-1][14+4*len(ft.Check(t, got[n-1]).VLANs)+6:])&0x2000 != 0 {
						n++
					}
					b, err := ft.Reassemble(got[:n])
					if err != nil {
						t.Fatal(err)
					}
					whole, got = append(whole, b), got[n:]
					fragmented++
				}
				same(t, whole, want...)
				w.wantRepaired(t, repaired{Fragmented: fragmented})
				w.checkLaw(t)
			}
		})
	}
}

// Whatever UDP is sent over whatever path: the datagrams that arrive are those that were sent, one by one, in order.
func TestDatagramsSurviveFragmentation(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		path := rapid.IntRange(150, 1500).Draw(rt, "path")
		w := narrow(t, mtu.PathMTU(path))
		var batch []frame.Frame
		var want [][]byte
		for range rapid.IntRange(1, 4).Draw(rt, "frames") {
			o := ft.Opts{Fragmentable: true, SrcPort: uint16(rapid.IntRange(1, 3).Draw(rt, "port")), Payload: rapid.IntRange(0, 6000).Draw(rt, "payload")}
			if rapid.Bool().Draw(rt, "tagged") {
				o.VLANs = []uint16{4}
			}
			size := rapid.IntRange(max(50, o.Payload/20), 3000).Draw(rt, "size")
			batch = append(batch, offloaded(ft.UDP4(o), size))
			segments, err := ft.Segments(ft.UDP4(o).Bytes(), size)
			if err != nil {
				rt.Fatal(err)
			}
			want = append(want, segments...)
		}
		var got [][]byte
		for _, d := range w.send(t, batch...) {
			if len(d) > path-28 {
				rt.Fatalf("a datagram of %d bytes on a path of %d", len(d), path)
			}
			got = append(got, d[header.VXLANLen:])
		}
		for i := range want {
			n := 0
			for l3 := len(want[i]) - len(ft.Check(t, want[i]).Payload) - 28; n < len(got); n++ {
				if ip := header.IPv4(got[n][l3:]); !ip.MoreFragments() {
					break
				}
			}
			b, err := ft.Reassemble(got[:min(n+1, len(got))])
			if err != nil {
				rt.Fatal(err)
			}
			if !bytes.Equal(b, want[i]) {
				rt.Fatalf("datagram %d\n got % x\nwant % x", i, b, want[i])
			}
			got = got[n+1:]
		}
		if len(got) != 0 || len(w.egress.Answers) != 0 {
			rt.Fatalf("%d frames too many, %d answers", len(got), len(w.egress.Answers))
		}
		w.checkLaw(rt)
	})
}
