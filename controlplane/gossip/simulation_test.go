//go:build !race

package gossip_test

import (
	"encoding/binary"
	"encoding/csv"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/overlayd/overlayd/controlplane/gossip"
	"github.com/overlayd/overlayd/controlplane/gossip/gossiptest"
)

const (
	batchSize  = 250                   // bytes of a signed batch that moves one endpoint
	fetchDelay = 20 * time.Millisecond // what it takes to fetch from a manager
)

// simulation is many nodes that each apply a chain of changes, in order, and fetch what they lack.
type simulation struct {
	t   *testing.T
	net *gossiptest.Network
	all []*replica
	tr  []*gossiptest.Transport
	csv [][]string

	mu       sync.Mutex
	issued   []time.Time       // of change i+1
	informed [][]time.Duration // of change i+1: how long each node took, in order
	fetches  int
	deaths   int
}

// replica is one node's copy.
type replica struct {
	node
	high     uint64
	pending  map[uint64]bool
	fetching bool
}

func simAddr(i int) netip.AddrPort {
	a := netip.MustParseAddr("2001:db8::").As16()
	binary.BigEndian.PutUint32(a[12:], uint32(i+1))
	return netip.AddrPortFrom(netip.AddrFrom16(a), 7790)
}

// apply takes change i to r. The lock must be held.
func (s *simulation) apply(r *replica, i uint64) {
	for n := r.high + 1; n <= i; n++ {
		s.informed[n-1] = append(s.informed[n-1], time.Since(s.issued[n-1]))
	}
	for r.high = max(r.high, i); r.pending[r.high+1]; r.high++ {
		delete(r.pending, r.high+1)
		s.informed[r.high] = append(s.informed[r.high], time.Since(s.issued[r.high]))
	}
}

func (s *simulation) start(i int, managers []netip.AddrPort) {
	r := &replica{node: node{id: idOf(i), addr: simAddr(i)}, pending: map[uint64]bool{}}
	tr, err := s.net.Transport(r.addr)
	if err != nil {
		s.t.Fatal(err)
	}
	r.open(s.t, gossip.Config{
		NodeID: r.id, Cluster: testCluster, Advertise: r.addr, Keys: [][]byte{testKey(1)}, Transport: tr,
		PacketSize: func() int { return 1452 },
		Rejoin:     func() []netip.AddrPort { return managers },
		Deliver: func(m []byte) bool {
			s.mu.Lock()
			defer s.mu.Unlock()
			i := binary.BigEndian.Uint64(m)
			if i <= r.high || r.pending[i] {
				return false
			}
			if i == r.high+1 {
				s.apply(r, i)
			} else {
				r.pending[i] = true
			}
			return true
		},
		State: func() gossip.Digest {
			s.mu.Lock()
			defer s.mu.Unlock()
			return gossip.Digest{Index: r.high}
		},
		Behind: func(_ string, theirs gossip.Digest) {
			s.mu.Lock()
			defer s.mu.Unlock()
			if r.fetching {
				return
			}
			r.fetching = true
			s.fetches++
			time.AfterFunc(fetchDelay, func() {
				s.mu.Lock()
				defer s.mu.Unlock()
				r.fetching = false
				s.apply(r, theirs.Index)
			})
		},
		Events: func(e gossip.Event) {
			s.mu.Lock()
			defer s.mu.Unlock()
			if e.Kind == gossip.Dead {
				s.deaths++
			}
		},
	})
	s.all, s.tr = append(s.all, r), append(s.tr, tr)
}

// change has a manager make the next change.
func (s *simulation) change() {
	m := make([]byte, batchSize)
	s.mu.Lock()
	i := uint64(len(s.issued) + 1)
	s.issued, s.informed = append(s.issued, time.Now()), append(s.informed, nil)
	s.apply(s.all[0], i)
	s.mu.Unlock()
	binary.BigEndian.PutUint64(m, i)
	if err := s.all[0].Broadcast(m); err != nil {
		s.t.Fatal(err)
	}
}

func (s *simulation) everywhere() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !slices.ContainsFunc(s.all, func(r *replica) bool { return r.high < uint64(len(s.issued)) })
}

func (s *simulation) full() bool {
	return !slices.ContainsFunc(s.all, func(r *replica) bool { return r.Stats().Members != len(s.all) })
}

// traffic is what one node sends on average.
type traffic struct{ packets, bytes, streams, streamBytes float64 }

func (s *simulation) traffic() (t traffic) {
	n := float64(len(s.tr))
	for _, tr := range s.tr {
		c := tr.Counts()
		t.packets += float64(c.PacketsSent) / n
		t.bytes += float64(c.BytesSent) / n
		t.streams += float64(c.StreamsDialled) / n
		t.streamBytes += float64(c.StreamBytesSent) / n
	}
	return t
}

func (t traffic) less(o traffic, share float64) traffic {
	return traffic{t.packets - o.packets*share, t.bytes - o.bytes*share, t.streams - o.streams*share, t.streamBytes - o.streamBytes*share}
}

func (s *simulation) record(scenario, measure string, x, value float64) {
	s.csv = append(s.csv, []string{scenario, strconv.Itoa(len(s.all)), measure,
		strconv.FormatFloat(x, 'f', 3, 64), strconv.FormatFloat(value, 'f', 4, 64)})
}

func (s *simulation) recordTraffic(scenario, per string, t traffic, units float64) {
	s.record(scenario, "packets_per_node_and_"+per, 0, t.packets/units)
	s.record(scenario, "packet_bytes_per_node_and_"+per, 0, t.bytes/units)
	s.record(scenario, "streams_per_node_and_"+per, 0, t.streams/units)
	s.record(scenario, "stream_bytes_per_node_and_"+per, 0, t.streamBytes/units)
	s.t.Logf("%-7s per node and %s: %.1f packets, %.0f bytes; %.3f streams, %.0f bytes", scenario, per,
		t.packets/units, t.bytes/units, t.streams/units, t.streamBytes/units)
}

// recordChanges records how long nodes took for the changes from first on, and returns the times in order.
func (s *simulation) recordChanges(scenario string, first int) []time.Duration {
	s.mu.Lock()
	var times []time.Duration
	for _, d := range s.informed[first:] {
		times = append(times, d...)
	}
	fetches := s.fetches
	s.fetches = 0
	s.mu.Unlock()
	slices.Sort(times)
	for i := range 201 {
		at := times[i*(len(times)-1)/200]
		s.record(scenario, "share_informed_by_ms", float64(at.Microseconds())/1e3, float64(i)/200)
	}
	s.record(scenario, "fetches", 0, float64(fetches))
	s.t.Logf("%-7s a change is at a node after %v (median), %v (99 %%), %v (last); %d of %d came by fetching", scenario,
		times[len(times)/2], times[len(times)*99/100], times[len(times)-1], fetches, len(times))
	return times
}

// changes makes k changes, one a second, and waits until they are everywhere.
func (s *simulation) changes(scenario string, k int, idle traffic) []time.Duration {
	s.t.Helper()
	first, before, start := len(s.issued), s.traffic(), time.Now()
	for range k {
		s.change()
		time.Sleep(time.Second)
	}
	within(s.t, time.Minute, "all changes are everywhere", s.everywhere)
	share := time.Since(start).Seconds()
	s.recordTraffic(scenario, "change", s.traffic().less(before, 1).less(idle, share), float64(k))
	return s.recordChanges(scenario, first)
}

// TestSimulation runs a cluster of 50 nodes in virtual time, or of 1,000 if OVERLAYD_SOAK is set, and reports what
// gossip costs and how fast it is. With OVERLAYD_GOSSIP_CSV set to a path, results go to that file as well: one row
// for each number, and for curves one row a point, with x in ms or s as the name of the measure says.
func TestSimulation(t *testing.T) {
	nodes := 50
	if os.Getenv("OVERLAYD_SOAK") != "" {
		nodes = 1000
	}
	s := &simulation{}
	virtual(t, func(t *testing.T) {
		s.t, s.net = t, gossiptest.NewNetwork(1)
		s.run(nodes)
	})
	path := os.Getenv("OVERLAYD_GOSSIP_CSV")
	if path == "" || t.Failed() {
		return
	}
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	w := csv.NewWriter(f)
	err = w.WriteAll(append([][]string{{"scenario", "nodes", "measure", "x", "value"}}, s.csv...))
	if cerr := f.Close(); err != nil || cerr != nil {
		t.Fatalf("writing %s: %v, %v", path, err, cerr)
	}
}

func (s *simulation) run(nodes int) {
	t := s.t
	t.Cleanup(func() {
		var wg sync.WaitGroup
		for _, r := range s.all {
			wg.Go(r.stop)
		}
		wg.Wait()
	})
	link := gossiptest.Link{Latency: 500 * time.Microsecond, Jitter: 500 * time.Microsecond, MTU: 1500}
	s.net.SetLink(link)
	managers := []netip.AddrPort{simAddr(0), simAddr(1), simAddr(2)}

	// The cluster forms: a node every 10 ms, each joins by a manager.
	begin := time.Now()
	for i := range nodes {
		s.start(i, managers)
		if i > 0 {
			if _, err := s.all[i].Join(managers[i%min(i, 3) : i%min(i, 3)+1]); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
	started := time.Since(begin)
	took := within(t, 5*time.Minute, "everybody knows everybody", s.full)
	s.record("form", "seconds_after_last_start", 0, took.Seconds())
	t.Logf("form    %d nodes in %v; everybody knows everybody %v later", nodes, started, took)
	s.recordTraffic("form", "cluster", s.traffic(), 1)

	time.Sleep(2 * time.Minute) // until the first exchanges are over
	const quiet = 60
	before := s.traffic()
	time.Sleep(quiet * time.Second)
	idle := s.traffic().less(before, 1)
	idle = idle.less(idle, 1-1.0/quiet)
	s.recordTraffic("idle", "second", idle, 1)

	times := s.changes("change", 30, idle)
	if worst := times[len(times)*99/100]; worst > time.Second {
		t.Errorf("99 %% of nodes had a change after %v, want 1 s at most", worst)
	}
	lossy := link
	lossy.Loss = 0.1
	s.net.SetLink(lossy)
	times = s.changes("loss", 30, idle)
	if worst := times[len(times)*99/100]; worst > 2*time.Second {
		t.Errorf("99 %% of nodes had a change after %v at 10 %% loss, want 2 s at most", worst)
	}
	if s.deaths != 0 {
		t.Errorf("%d reports of a dead node, and none has died", s.deaths)
	}
	s.net.SetLink(link)
	s.heal()
}

// heal cuts the cluster in half for two minutes.
func (s *simulation) heal() {
	t := s.t
	var half []netip.AddrPort // with the third manager
	for i := 2; i < len(s.all); i += 2 {
		half = append(half, simAddr(i))
	}
	s.net.Partition(half)
	time.Sleep(time.Minute)
	first := len(s.issued)
	for range 10 {
		s.change()
		time.Sleep(time.Second)
	}
	time.Sleep(50 * time.Second)
	before := s.traffic()
	s.net.Heal()
	healed := time.Now()
	for !s.full() && time.Since(healed) < 5*time.Minute {
		sum := 0
		for _, r := range s.all {
			sum += r.Stats().Members
		}
		s.record("heal", "share_of_members_known_by_s", time.Since(healed).Seconds(), float64(sum)/float64(len(s.all)*len(s.all)))
		time.Sleep(250 * time.Millisecond)
	}
	took := time.Since(healed)
	s.record("heal", "seconds_to_full_membership", 0, took.Seconds())
	if took > 2*time.Minute {
		t.Errorf("everybody knew everybody %v after the heal, want 2 min at most", took)
	}
	within(t, time.Minute, "the changes of the other half are everywhere", s.everywhere)
	s.mu.Lock()
	last := time.Duration(0)
	for i, d := range s.informed[first:] {
		last = max(last, d[len(d)-1]-healed.Sub(s.issued[first+i]))
	}
	s.mu.Unlock()
	s.record("heal", "seconds_to_last_change_everywhere", 0, last.Seconds())
	t.Logf("heal    everybody knows everybody after %v, all changes are everywhere after %v", took, last)
	s.recordTraffic("heal", "heal", s.traffic().less(before, 1), 1)
	synctest.Wait()
	for i, r := range s.all {
		if st := r.Stats(); i < 3 && (st.RejectedMalformed != 0 || st.RejectedKey != 0) {
			t.Errorf("manager %d rejected %d malformed, %d with a wrong key", i, st.RejectedMalformed, st.RejectedKey)
		}
	}
}
