package gossip

import (
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/overlayd/overlayd/controlplane/gossip/gossiptest"
)

// Shutdown does not wait for streams to time out.
func TestShutdownEndsStreams(t *testing.T) {
	network := gossiptest.NewNetwork(1)
	at, from := netip.MustParseAddrPort("192.0.2.1:7790"), netip.MustParseAddrPort("192.0.2.2:7790")
	open := func(a netip.AddrPort) *transport {
		inner, err := network.Transport(a)
		if err != nil {
			t.Fatal(err)
		}
		keys := &atomic.Pointer[keyring]{}
		keys.Store(ringOf(t, 1))
		tr := &transport{inner: inner, cluster: here, keys: keys, count: &counters{}}
		tr.start()
		return tr
	}
	a, b := open(at), open(from)
	silent, err := b.DialTimeout(at.String(), time.Second)
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	for {
		a.mu.Lock()
		n := a.incoming
		a.mu.Unlock()
		if n == 1 {
			break
		}
		if time.Since(start) > 10*time.Second {
			t.Fatal("the stream has not arrived")
		}
		time.Sleep(time.Millisecond)
	}
	if err := a.Shutdown(); err != nil {
		t.Error(err)
	}
	if err := b.Shutdown(); err != nil {
		t.Error(err)
	}
	if took := time.Since(start); took >= streamTimeout {
		t.Errorf("Shutdown took %v", took)
	}
	if _, err := silent.Read(make([]byte, 1)); err == nil {
		t.Error("a stream of a transport that is shut down can be read")
	}
	if _, err := b.DialTimeout(at.String(), time.Second); err == nil {
		t.Error("a transport that is shut down can dial")
	}
	if err := a.Shutdown(); err != nil {
		t.Errorf("again: %v", err)
	}
}

// A member that means harm: its packets are sealed, and memberlist would decompress 40 MB from one of them, or
// follow nested compounds.
func TestPacketsNoMemberSends(t *testing.T) {
	network := gossiptest.NewNetwork(1)
	at, from := netip.MustParseAddrPort("192.0.2.1:7790"), netip.MustParseAddrPort("192.0.2.2:7790")
	inner, err := network.Transport(at)
	if err != nil {
		t.Fatal(err)
	}
	keys := &atomic.Pointer[keyring]{}
	keys.Store(ringOf(t, 1))
	tr := &transport{
		inner: inner, cluster: here, keys: keys, count: &counters{},
		room: func() int { return maxRoom }, sent: func([]byte) {}, got: func([]byte) {},
	}
	tr.start()
	defer func() { _ = tr.Shutdown() }()
	bad := [][]byte{
		{9, 0x80}, {10, 0}, {partPushPull, 0x80}, {partChecksum, 0}, {partCompound, 1}, {255},
		{partCompound, 1, 0, 2, partCompound, 0}, {partCompound, 2, 0, 1, 0, 1, partUser, 9}, {partCompound, 1, 0, 0},
	}
	send := func(b []byte) {
		sealed, err := keys.Load().sealPacket(here, b)
		if err != nil {
			t.Fatal(err)
		}
		if err := network.Inject(gossiptest.Packet{From: from, To: at, Payload: sealed}); err != nil {
			t.Fatal(err)
		}
	}
	for _, b := range bad {
		send(b)
	}
	send([]byte{partUser, messageBatch, 1})
	select {
	case p := <-tr.PacketCh():
		if p.Buf[0] != partUser {
			t.Errorf("% x came through", p.Buf)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("what a member sends did not come through")
	}
	if got := tr.count.rejectedMalformed.Load(); got != uint64(len(bad)) {
		t.Errorf("%d of %d were rejected", got, len(bad))
	}
}

func TestWhoMayBeAMember(t *testing.T) {
	good := memberlist.Node{
		Name: "00000000000000ab", Addr: net.IPv4(192, 0, 2, 1), Port: 7790,
		PMin: 1, PMax: 5, PCur: 5, DMin: 1, DMax: 1, DCur: 1,
	}
	for name, c := range map[string]struct {
		change func(n *memberlist.Node)
		want   bool
	}{
		"as it should be": {func(*memberlist.Node) {}, true},
		"IPv6":            {func(n *memberlist.Node) { n.Addr = net.ParseIP("2001:db8::1") }, true},
		"a later version": {func(n *memberlist.Node) { n.PMax, n.DMax = 6, 3 }, true},
		"no ID":           {func(n *memberlist.Node) { n.Name = "node" }, false},
		"with metadata":   {func(n *memberlist.Node) { n.Meta = []byte{1} }, false},
		"no address":      {func(n *memberlist.Node) { n.Addr = nil }, false},
		"odd address":     {func(n *memberlist.Node) { n.Addr = net.IP{1, 2, 3} }, false},
		"any address":     {func(n *memberlist.Node) { n.Addr = net.IPv4zero }, false},
		"multicast":       {func(n *memberlist.Node) { n.Addr = net.IPv4(224, 0, 0, 1) }, false},
		"no port":         {func(n *memberlist.Node) { n.Port = 0 }, false},
		"protocol":        {func(n *memberlist.Node) { n.PMin, n.PMax, n.PCur = 6, 7, 6 }, false},
		"speaks a later":  {func(n *memberlist.Node) { n.PMax, n.PCur = 6, 6 }, false},
		"messages":        {func(n *memberlist.Node) { n.DMin, n.DMax, n.DCur = 2, 2, 2 }, false},
	} {
		n := good
		c.change(&n)
		if err := (delegate{}).NotifyAlive(&n); (err == nil) != c.want {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestMessages(t *testing.T) {
	delivered, behind := 0, 0
	ours := Digest{Index: 5}
	g := &Gossip{cluster: here, id: [8]byte{9}, seen: newSeen(), calm: newCalm(time.Second), cfg: Config{
		Deliver: func([]byte) bool { delivered++; return true },
		State:   func() Digest { return ours },
		Behind:  func(string, Digest) { behind++ },
	}}
	g.queue.dropped = &g.count.queueDropped
	announce := func(c claim) []byte { return c.append([]byte{messageAnnounce}) }
	for _, b := range [][]byte{
		{messageBatch, 1},
		{messageBatch, 1}, // again
		announce(claim{cluster: here, node: there, digest: Digest{Index: 6}}),
		announce(claim{cluster: here, node: there, digest: Digest{Index: 4}}),
		announce(claim{cluster: there, node: there, digest: Digest{Index: 7}}),
		announce(claim{cluster: here, node: g.id, digest: Digest{Index: 8}}),
		{messageAnnounce}, {}, nil, {7}, make([]byte, maxRoom+1),
	} {
		g.receive(b)
	}
	s := &g.count
	if delivered != 1 || behind != 1 || s.spread.Load() != 2 || s.duplicates.Load() != 1 || s.unknown.Load() != 1 || s.rejectedMalformed.Load() != 5 {
		t.Errorf("delivered %d, behind %d, spread %d, duplicates %d, unknown %d, malformed %d, want 1, 1, 2, 1, 1, 5", delivered, behind,
			s.spread.Load(), s.duplicates.Load(), s.unknown.Load(), s.rejectedMalformed.Load())
	}
	g.closed.Store(true)
	delegate{g}.NotifyMsg([]byte{messageBatch, 2})
	delegate{g}.MergeRemoteState(claim{cluster: here, node: there, digest: Digest{Index: 9}}.append(nil), false)
	if delivered != 1 || behind != 1 {
		t.Error("called its owner after Close")
	}
}
