package forward

import (
	"testing"

	"github.com/overlayd/overlayd/dataplane/addr"
	"github.com/overlayd/overlayd/dataplane/frametest"
	"github.com/overlayd/overlayd/dataplane/header"
)

// TestIsolatedQuestions asks for addresses from behind the TAP.
func TestIsolatedQuestions(t *testing.T) {
	const answered, flooded = "answered", "flooded"
	me, mine4, mine6 := frametest.MAC(here), frametest.IP4(here), frametest.IP6(here)
	unicast := func(b []byte, to addr.MAC) []byte {
		header.Ethernet(b).SetDst(to)
		return b
	}
	for name, c := range map[string]struct {
		f    []byte
		want DropReason
		how  string
	}{
		"ARP, elsewhere":              {frametest.ARPRequest(me, mine4, frametest.IP4(behindB)).Bytes(), NotDropped, answered},
		"ARP, here":                   {frametest.ARPRequest(me, mine4, frametest.IP4(alsoHere)).Bytes(), DestinationLocal, ""},
		"ARP, nobody":                 {frametest.ARPRequest(me, mine4, frametest.IP4(nobody)).Bytes(), NeighborUnknown, ""},
		"ARP, nobody, to one":         {unicast(frametest.ARPRequest(me, mine4, frametest.IP4(nobody)).Bytes(), frametest.MAC(behindB)), NeighborUnknown, ""},
		"ARP, still there?":           {unicast(frametest.ARPRequest(me, mine4, frametest.IP4(behindB)).Bytes(), frametest.MAC(behindB)), NotDropped, "sent"},
		"ARP probe, own":              {frametest.ARPRequest(me, none4, mine4).Bytes(), NotDropped, flooded},
		"ARP probe, taken":            {frametest.ARPRequest(me, none4, frametest.IP4(behindB)).Bytes(), NotDropped, answered},
		"ARP probe, taken here":       {frametest.ARPRequest(me, none4, frametest.IP4(alsoHere)).Bytes(), DestinationLocal, ""},
		"ARP probe, free":             {frametest.ARPRequest(me, none4, frametest.IP4(nobody)).Bytes(), NeighborUnknown, ""},
		"ARP probe, to one":           {unicast(frametest.ARPRequest(me, none4, frametest.IP4(behindB)).Bytes(), frametest.MAC(behindB)), ARPSpoofed, ""},
		"ARP announcement":            {frametest.ARPRequest(me, mine4, mine4).Bytes(), NotDropped, flooded},
		"ARP reply, to nobody":        {frametest.ARPReply(me, mine4, addr.Broadcast, frametest.IP4(nobody)).Bytes(), NotDropped, flooded},
		"NS, elsewhere":               {frametest.NeighborSol(me, mine6, frametest.IP6(behindB)).Bytes(), NotDropped, answered},
		"NS, here":                    {frametest.NeighborSol(me, mine6, frametest.IP6(alsoHere)).Bytes(), DestinationLocal, ""},
		"NS, nobody":                  {frametest.NeighborSol(me, mine6, frametest.IP6(nobody)).Bytes(), NeighborUnknown, ""},
		"NS, link-local elsewhere":    {frametest.NeighborSol(me, linkLocal(here), linkLocal(behindB)).Bytes(), NotDropped, flooded},
		"NS, link-local here":         {frametest.NeighborSol(me, linkLocal(here), linkLocal(alsoHere)).Bytes(), DestinationLocal, ""},
		"NS, link-local nobody":       {frametest.NeighborSol(me, linkLocal(here), linkLocal(nobody)).Bytes(), NeighborUnknown, ""},
		"NS, link-local of no MAC":    {frametest.NeighborSol(me, linkLocal(here), byHand).Bytes(), NeighborUnknown, ""},
		"DAD, own":                    {frametest.NeighborSol(me, none6, mine6).Bytes(), NotDropped, flooded},
		"DAD, taken":                  {frametest.NeighborSol(me, none6, frametest.IP6(behindB)).Bytes(), NotDropped, answered},
		"DAD, taken here":             {frametest.NeighborSol(me, none6, frametest.IP6(alsoHere)).Bytes(), DestinationLocal, ""},
		"DAD, free":                   {frametest.NeighborSol(me, none6, frametest.IP6(nobody)).Bytes(), NeighborUnknown, ""},
		"DAD, link-local of another":  {frametest.NeighborSol(me, none6, linkLocal(behindB)).Bytes(), NDSpoofed, ""},
		"ordinary frame, local":       {frametest.UDP4(frametest.Opts{DstMAC: frametest.MAC(alsoHere)}).Bytes(), DestinationLocal, ""},
		"ordinary frame, to itself":   {frametest.UDP4(frametest.Opts{DstMAC: me}).Bytes(), DestinationLocal, ""},
		"ordinary frame, elsewhere":   {frametest.UDP4(frametest.Opts{DstMAC: frametest.MAC(behindA)}).Bytes(), NotDropped, "sent"},
		"ordinary frame, to everyone": {frametest.UDP4(frametest.Opts{DstMAC: addr.Broadcast}).Bytes(), NotDropped, flooded},
	} {
		t.Run(name, func(t *testing.T) {
			w := newIsolated(t, full)
			sent := len(w.send(t, plain(c.f)))
			answers := len(w.egress.Answers)
			for _, a := range w.egress.Answers {
				w.egress.ReportAnswer(a, NotDropped)
			}
			w.wantClaim(t, claim{c.f, c.want}, sent+answers)
			if want := map[string][2]int{answered: {0, 1}, flooded: {2, 0}, "sent": {1, 0}}[c.how]; want != [2]int{sent, answers} {
				t.Errorf("%d datagrams and %d answers, want %v", sent, answers, want)
			}
		})
	}
}
