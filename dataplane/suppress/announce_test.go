package suppress

import (
	"bytes"
	"encoding/hex"
	"net/netip"
	"testing"

	"github.com/overlayd/overlayd/dataplane/addr"
	"github.com/overlayd/overlayd/dataplane/frametest"
	"github.com/overlayd/overlayd/dataplane/header"
)

func TestAnnounce(t *testing.T) {
	four, six := frametest.IP4(2), frametest.IP6(2)
	for name, c := range map[string]struct {
		ip   netip.Addr
		want []byte
	}{
		"IPv4": {four, frametest.Ethernet(addr.Broadcast, owner).ARP(1, owner, four, addr.MAC{}, four).Bytes()},
		"IPv6": {six, frametest.NeighborAdv(owner, six, addr.MAC{0x33, 0x33, 0, 0, 0, 1}, netip.MustParseAddr("ff02::1"), six, header.NDFlagOverride).Bytes()},
	} {
		t.Run(name, func(t *testing.T) {
			out := bytes.Repeat([]byte{0xee}, MaxReplyLen)
			got, ok := Announce(c.ip, owner, out[:0])
			if !ok || !bytes.Equal(got, c.want) || &got[0] != &out[0] {
				t.Fatalf("announced, %v,\n%s\nwant\n%s", ok, hex.Dump(got), hex.Dump(c.want))
			}
			frametest.Check(t, got)
			if reply, ok := answer(got, nil, table()); ok {
				t.Errorf("it was answered: % x", reply)
			}
			for room := range c.want {
				if f, ok := Announce(c.ip, owner, make([]byte, 0, room)); ok || f != nil {
					t.Fatalf("announced in %d bytes", room)
				}
			}
			if n := testing.AllocsPerRun(100, func() { Announce(c.ip, owner, out) }); n != 0 {
				t.Errorf("%v allocations", n)
			}
		})
	}
	for name, c := range map[string]struct {
		ip  netip.Addr
		mac addr.MAC
	}{
		"no address": {netip.Addr{}, owner}, "nobody's address": {zero4, owner}, "nobody's IPv6 address": {zero6, owner},
		"group": {netip.MustParseAddr("224.0.0.9"), owner}, "IPv6 group": {netip.MustParseAddr("ff02::1"), owner},
		"broadcast": {netip.MustParseAddr("255.255.255.255"), owner}, "loopback": {netip.MustParseAddr("127.0.0.1"), owner},
		"link-local": {linkLocal, owner}, "mapped from IPv4": {mapped, owner},
		"group MAC": {four, addr.Broadcast}, "no MAC": {six, addr.MAC{}},
	} {
		if f, ok := Announce(c.ip, c.mac, make([]byte, MaxReplyLen)); ok || f != nil {
			t.Errorf("%s: announced % x", name, f)
		}
	}
}
