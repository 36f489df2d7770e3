package pathmtu

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/overlayd/overlayd/dataplane/probe"
)

var stranger = netip.MustParseAddr("198.51.100.66")

// heard is a packet that was sent in a world.
type heard struct {
	from, to netip.Addr
	payload  []byte
	size     int
	message  probe.Message
}

// overhear keeps what is sent in a world from now on, for an attacker who sits on the path.
func overhear(t *testing.T, w *world, keys probe.Keys) *[]heard {
	var all []heard
	w.tap = func(from, to netip.Addr, payload []byte, size int) {
		m, err := keys.Parse(payload)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, heard{from, to, slices.Clone(payload), size, m})
	}
	return &all
}

// inject hands a datagram to a host as if it came from the underlay.
func (h *host) inject(local, remote netip.Addr, payload []byte, size int) {
	h.prober.Receive(local, remote, payload, size)
	h.wake()
}

// known is what a host uses and counts, to see that nothing has moved.
func (h *host) known(peer netip.Addr) string {
	c := h.told[peer]
	return fmt.Sprintf("%+v", c)
}

// Acknowledgements count only if they are genuine and answer what was asked, from where it was asked.
func TestForgedAcks(t *testing.T) {
	keys, foreign := secretKeys(t, "k"), secretKeys(t, "f")
	// The path carries 1400 and the peer stays silent on larger probes, so any acknowledgement of one is a forgery.
	for _, c := range []struct {
		name string
		want Ignore
		make func(h heard, k probe.Keys) (remote netip.Addr, payload []byte)
	}{
		{"another key", IgnoreUnknownKey, func(h heard, _ probe.Keys) (netip.Addr, []byte) {
			return h.to, foreign.Append(nil, ackOf(h), probe.Len)
		}},
		{"the public key", IgnoreUnknownKey, func(h heard, _ probe.Keys) (netip.Addr, []byte) {
			return h.to, probe.Keys{}.Append(nil, ackOf(h), probe.Len)
		}},
		{"a broken seal", IgnoreBadTag, func(h heard, k probe.Keys) (netip.Addr, []byte) {
			b := k.Append(nil, ackOf(h), probe.Len)
			b[60] ^= 1
			return h.to, b
		}},
		{"cut off", IgnoreMalformed, func(h heard, k probe.Keys) (netip.Addr, []byte) {
			return h.to, k.Append(nil, ackOf(h), probe.Len)[:71]
		}},
		{"a guessed nonce", IgnoreStale, func(h heard, k probe.Keys) (netip.Addr, []byte) {
			m := ackOf(h)
			m.Nonce++
			return h.to, k.Append(nil, m, probe.Len)
		}},
		{"from elsewhere", IgnoreWrongSource, func(h heard, k probe.Keys) (netip.Addr, []byte) {
			return stranger, k.Append(nil, ackOf(h), probe.Len)
		}},
		{"another size", IgnoreWrongSize, func(h heard, k probe.Keys) (netip.Addr, []byte) {
			m := ackOf(h)
			m.Size--
			return h.to, k.Append(nil, m, probe.Len)
		}},
		{"by another node", IgnoreWrongNode, func(h heard, k probe.Keys) (netip.Addr, []byte) {
			m := ackOf(h)
			m.Sender = stranger
			return h.to, k.Append(nil, m, probe.Len)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w, x, _, links := floating(t, 1, path{mtu: 1400, delay: 10 * ms}, path{cut: true})
			x.stream[addrB] = true
			w.run(2 * time.Second)
			packets := overhear(t, w, keys)
			before := x.known(addrB)
			links[1].cut = false
			forged := 0
			for range 40 {
				w.run(500 * ms)
				for _, h := range *packets {
					if h.from == addrA && h.message.Type == probe.Probe && h.size > 1400 {
						remote, payload := c.make(h, keys)
						x.inject(addrA, remote, payload, 100)
						forged++
					}
				}
				*packets = nil
			}
			if n := x.prober.Counters().Ignored[c.want]; forged == 0 || n != uint64(forged) {
				t.Errorf("%d of %d were counted as %v: %+v", n, forged, c.want, x.prober.Counters())
			}
			if after := x.known(addrB); after != before {
				t.Errorf("before %s\nafter  %s", before, after)
			}
		})
	}
}

// ackOf is what would acknowledge a probe.
func ackOf(h heard) probe.Message {
	return probe.Message{Type: probe.Ack, Size: h.size, Nonce: h.message.Nonce, Sender: addrB, Observed: h.from}
}

// Everything that was ever sent, sent again from where it came and from elsewhere, moves nothing, not even when
// the path has become narrower since.
func TestReplay(t *testing.T) {
	keys := secretKeys(t, "k")
	w, x, y, links := floating(t, 1, path{mtu: 1500, delay: 10 * ms}, path{mtu: 1450, delay: 15 * ms})
	packets := overhear(t, w, keys)
	x.stream[addrB], y.stream[addrA] = true, true
	w.run(10 * time.Second)
	all := slices.Clone(*packets)
	w.tap = nil
	links[0].mtu, links[1].mtu = 1300, 1300
	w.run(10 * time.Second)
	before := x.known(addrB)
	if !x.settledAt(addrB, 1450)() && !x.settledAt(addrB, 1300)() {
		t.Fatal(before)
	}
	x.history = nil
	for i, h := range all {
		if h.to != addrA && h.to != floatA {
			continue
		}
		x.inject(addrA, h.from, h.payload, h.size)
		x.inject(addrA, netip.AddrFrom4([4]byte{198, 51, 100, byte(i)}), h.payload, h.size)
		if i%50 == 0 {
			w.run(100 * ms)
		}
	}
	w.run(5 * time.Second)
	for _, m := range x.history {
		if !slices.Equal(m.Accept, []netip.Addr{addrB, floatB}) || m.Path > 1450 {
			t.Errorf("moved: %+v", m)
		}
	}
	c := x.prober.Counters()
	if c.Ignored[IgnoreStale] == 0 || c.Ignored[IgnoreObserved] == 0 {
		t.Errorf("counters %+v", c)
	}
	if after := x.known(addrB); after != before {
		t.Errorf("before %s\nafter  %s", before, after)
	}
	if n := len(x.prober.Status()[0].Candidates); n > 2+maxObserved {
		t.Errorf("%d candidates", n)
	}
}

// Someone who repeats probes of a peer makes this node send no more than he sends, and to addresses on trial
// nothing but a few small probes.
func TestNoAmplification(t *testing.T) {
	keys := secretKeys(t, "k")
	w, x, _, _ := floating(t, 1, path{mtu: 1500, delay: 10 * ms}, path{mtu: 1450, delay: 10 * ms})
	packets := overhear(t, w, keys)
	w.run(25 * time.Second)
	var small heard
	for _, h := range *packets {
		if h.to == addrA && h.message.Type == probe.Probe && h.size == 100 {
			small = h
		}
	}
	x.ways = func(netip.Addr) (Route, error) { return Route{Local: addrA, Device: "eth0", MTU: 1500}, nil }
	sent := make(map[netip.Addr]int)
	w.tap = func(_, to netip.Addr, _ []byte, size int) { sent[to] += size }
	for range 600 {
		x.inject(addrA, stranger, small.payload, small.size)
		w.run(100 * ms)
	}
	if small.payload == nil || sent[stranger] < 600*100 {
		t.Fatalf("%d bytes: it was not answered", sent[stranger])
	}
	if got := sent[stranger]; got > 600*100+100*70 {
		t.Errorf("%d bytes for %d", got, 600*100)
	}
	if accept := x.told[addrB].Accept; slices.Contains(accept, stranger) {
		t.Errorf("accepts %v", accept)
	}
}

// Someone near who passes the probes on, in both directions, gets no traffic while a stated address answers.
func TestRelay(t *testing.T) {
	keys := secretKeys(t, "k")
	w, x, _, _ := floating(t, 1, path{mtu: 1400, delay: 30 * ms}, path{mtu: 1400, delay: 30 * ms})
	packets := overhear(t, w, keys)
	x.stream[addrB] = true
	w.run(5 * time.Second)
	var captured heard
	for _, h := range *packets {
		if h.to == addrA && h.message.Type == probe.Probe {
			captured = h
		}
	}
	w.tap = nil
	ways := x.ways
	x.ways = func(remote netip.Addr) (Route, error) {
		if remote == stranger {
			return Route{Local: addrA, Device: "eth0", MTU: 1500}, nil
		}
		return ways(remote)
	}
	// What goes to the stranger comes out at the peer, and the other way round, in no time.
	w.paths[pair{addrA, stranger}], w.paths[pair{addrB, stranger}] = new(path), new(path)
	w.tap = func(from, to netip.Addr, payload []byte, size int) {
		if to == stranger {
			other := map[netip.Addr]netip.Addr{addrA: addrB, addrB: addrA}[from]
			copied := slices.Clone(payload)
			w.at(ms, func() { w.deliver(stranger, other, copied, size) })
		}
	}
	x.inject(addrA, stranger, captured.payload, captured.size)
	w.run(30 * time.Second)
	s := x.prober.Status()[0]
	if relayed := statusOf(s.Candidates, stranger); relayed == nil || relayed.State != StateReachable || relayed.RTT > 10*ms {
		t.Fatalf("the relay does not work: %+v", s)
	}
	if s.Remote == stranger || x.prober.Counters().Moves != 0 {
		t.Errorf("status %+v", s)
	}
}

// Without keys only peers are answered, and nobody is observed.
func TestPublic(t *testing.T) {
	w, x, y, _, _ := two(t, 1, 1500, addrA, addrB, path{mtu: 1400, delay: 10 * ms})
	exactly(t, w, x, y, addrA, addrB, 1400, time.Second)
	before, sent := x.known(addrB), x.sent
	b := probe.Keys{}.Append(nil, probe.Message{Type: probe.Probe, Size: 100, Nonce: 5, Sender: addrB}, probe.Len)
	for range 10 {
		x.inject(addrA, stranger, b, 100)
	}
	if x.sent != sent || x.prober.Counters().Ignored[IgnoreStranger] != 10 || x.known(addrB) != before || len(x.prober.Status()[0].Candidates) != 1 {
		t.Errorf("%d bytes sent, %+v", x.sent-sent, x.prober.Counters())
	}
}

// Acknowledgements are limited, and so is what waits to be looked at.
func TestFlood(t *testing.T) {
	w, x, y, _, _ := two(t, 1, 1500, addrA, addrB, path{mtu: 1400, delay: 10 * ms})
	exactly(t, w, x, y, addrA, addrB, 1400, time.Second)
	const flood = maxQueued + 500
	sent := x.prober.Counters().AcksSent
	b := probe.Keys{}.Append(nil, probe.Message{Type: probe.Probe, Size: 100, Nonce: 5, Sender: addrB}, probe.Len)
	for range flood {
		x.prober.Receive(addrA, addrB, b, 100)
	}
	x.wake()
	c := x.prober.Counters()
	if c.QueueLosses != 500 || c.AcksSent-sent+c.AcksLimited != maxQueued || c.AcksLimited < maxQueued-acksAtOnce {
		t.Errorf("counters %+v", c)
	}
	w.run(5 * time.Second)
	if !x.settledAt(addrB, 1400)() {
		t.Errorf("after the flood %+v", x.told[addrB])
	}
}

// ICMP errors are hints: those that quote nothing of ours are ignored, the others only make the path be probed.
func TestHints(t *testing.T) {
	w, x, y, there, back := two(t, 1, 1500, addrA, addrB, path{mtu: 1450, delay: 10 * ms})
	y.kernel = false
	exactly(t, w, x, y, addrA, addrB, 1450, time.Second)
	w.run(5 * time.Second)
	frame := []byte{8, 0, 0, 0, 0, 0, 7, 0, 1, 2, 3}
	before := x.known(addrB)
	for _, c := range []struct {
		name   string
		remote netip.Addr
		path   int
		quoted []byte
		want   HintIgnore
	}{
		{"no quote", addrB, 1400, nil, HintNoQuote},
		{"less than a header", addrB, 1400, frame[:7], HintNoQuote},
		{"no VXLAN", addrB, 1400, make([]byte, 20), HintNoQuote},
		{"a probe that was never sent", addrB, 1400, probe.Keys{}.Append(nil, probe.Message{Type: probe.Probe, Nonce: 9}, 100), HintNoQuote},
		{"absurd", addrB, 68, frame, HintAbsurd},
		{"zero", addrB, 0, frame, HintAbsurd},
		{"negative", addrB, -1, frame, HintAbsurd},
		{"no less than what is used", addrB, 1450, frame, HintAbsurd},
		{"nobody", stranger, 1400, frame, HintUnknown},
	} {
		n := x.prober.Counters().HintsIgnored[c.want]
		x.prober.Hint(c.remote, c.path, c.quoted)
		x.wake()
		if got := x.prober.Counters().HintsIgnored[c.want]; got != n+1 {
			t.Errorf("%s: %+v", c.name, x.prober.Counters())
		}
	}
	// A lie that quotes a frame costs a few probes a second, and shrinks nothing.
	sent := x.prober.Counters().BytesSent
	for range 100 {
		x.prober.Hint(addrB, 1300, frame)
		x.wake()
		w.run(20 * ms)
	}
	c := x.prober.Counters()
	if c.HintsAccepted != 2 || c.HintsIgnored[HintLimited] != 98 || c.BytesSent-sent > 8000 {
		t.Errorf("%d bytes, %+v", c.BytesSent-sent, c)
	}
	if x.known(addrB) != before || len(x.history) == 0 || c.BlackHoles != 0 {
		t.Errorf("it moved to %s", x.known(addrB))
	}
	// The truth takes a few times there and back, even while idle.
	w.run(5 * time.Second)
	there.mtu, back.mtu = 1333, 1333
	x.prober.Hint(addrB, 1333, frame)
	x.wake()
	if took, ok := w.runUntil(500*ms, x.settledAt(addrB, 1333)); !ok {
		t.Errorf("after %v %+v", took, x.told[addrB])
	}
	// Of a peer that answers nothing, nothing can be proven.
	y.kernel = true
	w.run(2 * time.Minute)
	x.prober.Hint(addrB, 1290, frame)
	x.wake()
	if n := x.prober.Counters().HintsIgnored[HintUnanswered]; n != 1 {
		t.Errorf("%+v", x.prober.Counters())
	}
}

// A quoted probe counts while it is outstanding, at the address to which it went.
func TestHintQuotesProbe(t *testing.T) {
	w, x, y, there, back := two(t, 1, 1500, addrA, addrB, path{mtu: 1500, delay: 10 * ms})
	exactly(t, w, x, y, addrA, addrB, 1500, time.Second)
	there.mtu, back.mtu = 1400, 1400
	x.stream[addrB] = true
	var quoted []byte
	w.tap = func(_, to netip.Addr, payload []byte, size int) {
		if to == addrB && size == 1500 {
			quoted = slices.Clone(payload[:24])
		}
	}
	if _, ok := w.runUntil(5*time.Second, func() bool { return quoted != nil }); !ok {
		t.Fatal("no probe of full size")
	}
	x.prober.Hint(addrB, 1400, quoted)
	x.wake()
	if c := x.prober.Counters(); c.HintsAccepted != 1 {
		t.Errorf("%+v", c)
	}
	w.run(10 * time.Second)
	n := x.prober.Counters().HintsIgnored[HintNoQuote]
	x.prober.Hint(addrB, 1300, quoted)
	x.wake()
	if c := x.prober.Counters(); c.HintsIgnored[HintNoQuote] != n+1 {
		t.Errorf("%+v", c)
	}
}

// Rubbish of any kind moves nothing.
func TestRubbish(t *testing.T) {
	w, x, y, _, _ := two(t, 1, 1500, addrA, addrB, path{mtu: 1400, delay: 10 * ms})
	exactly(t, w, x, y, addrA, addrB, 1400, time.Second)
	before := x.known(addrB)
	rng := rand.New(rand.NewPCG(1, 2))
	good := probe.Keys{}.Append(nil, probe.Message{Type: probe.Ack, Size: 1500, Nonce: 5, Sender: addrB}, probe.Len)
	for range 5000 {
		b := slices.Clone(good)
		for range 1 + rng.IntN(5) {
			b[8+rng.IntN(len(b)-8)] = byte(rng.Uint32())
		}
		x.prober.Receive([]netip.Addr{addrA, {}}[rng.IntN(2)], []netip.Addr{addrB, stranger, {}}[rng.IntN(3)], b[:rng.IntN(len(b)+1)], rng.IntN(70000)-10)
		x.wake()
	}
	w.run(time.Second)
	if x.known(addrB) != before {
		t.Errorf("before %s, after %s", before, x.known(addrB))
	}
}

func statusOf(all []CandidateStatus, remote netip.Addr) *CandidateStatus {
	for i := range all {
		if all[i].Remote == remote {
			return &all[i]
		}
	}
	return nil
}

// An acknowledgement counts once.
func TestRepeatedAcks(t *testing.T) {
	w, x, y, there, back := two(t, 1, 1500, addrA, addrB, path{mtu: 1400, delay: 10 * ms})
	x.stream[addrB], y.stream[addrA] = true, true
	back.twice, there.twice = 1, 1
	exactly(t, w, x, y, addrA, addrB, 1400, time.Second)
	w.run(30 * time.Second)
	c := x.prober.Counters()
	if c.Ignored[IgnoreStale] < c.ProbesAcked || c.ProbesAcked > c.ProbesSent {
		t.Errorf("%+v", c)
	}
}

// The address of one peer does not become one of another because a probe is repeated from there.
func TestNotAnothersAddress(t *testing.T) {
	keys := secretKeys(t, "k")
	w, x, _, _ := floating(t, 1, path{mtu: 1500, delay: 10 * ms}, path{mtu: 1450, delay: 10 * ms})
	w.join(addrA, stranger, path{mtu: 1500, delay: ms})
	z := w.host(1500, stranger)
	z.prober.SetKeys(keys, stranger)
	packets := overhear(t, w, keys)
	z.setPeers(peerAt(addrA))
	x.setPeers(peerAt(addrB, floatB), peerAt(stranger))
	w.run(time.Minute)
	refused := x.prober.Counters().Ignored[IgnoreObserved]
	for _, h := range *packets {
		if h.to == addrA && h.from == addrB {
			x.inject(addrA, stranger, h.payload, h.size)
		}
	}
	w.run(time.Second)
	if n := x.prober.Counters().Ignored[IgnoreObserved]; n == refused {
		t.Error("nothing was refused")
	}
	for _, s := range x.prober.Status() {
		if s.Peer == addrB && len(s.Candidates) != 2 {
			t.Errorf("%+v", s)
		}
	}
}

// A socket for both families gives IPv4 addresses mapped into IPv6.
func TestMapped(t *testing.T) {
	w := newWorld(t, 1)
	w.join(addrA, addrB, path{mtu: 1400, delay: ms})
	x, y := w.host(1500, addrA), w.host(1500, addrB)
	mapped := func(a netip.Addr) netip.Addr { return netip.AddrFrom16(a.As16()) }
	x.mapped = true
	x.setPeers(Peer{Address: mapped(addrB), Candidates: []netip.Addr{mapped(addrB), addrB}})
	y.setPeers(peerAt(addrA))
	exactly(t, w, x, y, addrA, addrB, 1400, time.Second)
	if s := x.prober.Status()[0]; len(s.Candidates) != 1 || s.Peer != addrB {
		t.Errorf("%+v", s)
	}
}
