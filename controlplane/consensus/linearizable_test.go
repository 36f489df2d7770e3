package consensus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
)

// swap is an operation on a register: a write that returns what was there before, or a read if it writes nothing.
type swap struct {
	key   string
	write string
}

// model is what registers have to look like from outside. An output of nil is not known: the client heard nothing.
var model = porcupine.Model{
	Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
		by := map[string][]porcupine.Operation{}
		for _, o := range history {
			k := o.Input.(swap).key
			by[k] = append(by[k], o)
		}
		var out [][]porcupine.Operation
		for _, h := range by {
			out = append(out, h)
		}
		return out
	},
	Init: func() any { return "" },
	Step: func(state, input, output any) (bool, any) {
		in := input.(swap)
		next := state
		if in.write != "" {
			next = in.write
		}
		return output == nil || output.(string) == state.(string), next
	},
}

// clients load a cluster and write down what they see.
type clients struct {
	c     *cluster
	clock atomic.Int64
	epoch atomic.Int64 // keys change with it, so that few outcomes a key are not known
	stop  chan struct{}
	wg    sync.WaitGroup

	mu      sync.Mutex
	history []porcupine.Operation
	acked   int
}

func (c *cluster) load(count int, pause time.Duration) *clients {
	c.net.slow.Store(int64(8 * time.Millisecond)) // so that things happen in the middle of others
	l := &clients{c: c, stop: make(chan struct{})}
	for id := range count {
		l.wg.Go(func() { l.client(id, pause) })
	}
	return l
}

func (l *clients) client(id int, pause time.Duration) {
	rnd := rand.New(rand.NewPCG(uint64(id), 7))
	for i := 0; ; i++ {
		select {
		case <-l.stop:
			return
		case <-time.After(time.Duration(rnd.Int64N(int64(2 * pause)))):
		}
		// Mostly whoever says that it leads, now and then anyone: two may say so at once.
		var to *node
		for _, k := range rnd.Perm(len(l.c.nodes)) {
			n := l.c.nodes[k]
			if r, _ := n.live(); r != nil && (r.IsLeader() || rnd.IntN(8) == 0) {
				to = n
				break
			}
		}
		if to == nil {
			continue
		}
		in := swap{key: fmt.Sprintf("%d.%d", max(0, l.epoch.Load()-rnd.Int64N(2)), rnd.IntN(3))}
		if rnd.IntN(2) == 0 {
			in.write = fmt.Sprintf("%d-%d", id, i)
		}
		l.operate(to, id, in)
	}
}

func (l *clients) operate(n *node, id int, in swap) {
	r, fsm := n.live()
	if r == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	op := porcupine.Operation{ClientId: id, Input: in, Call: l.clock.Add(1)}
	var err error
	if in.write == "" {
		var v string
		if err = r.Read(ctx, func() { v = fsm.get(in.key) }); err != nil {
			return // a read without an answer changes nothing
		}
		op.Output = v
	} else {
		var out any
		b, _ := json.Marshal(command{in.key, in.write})
		out, _, err = r.Propose(ctx, b)
		var elsewhere *NotLeaderError
		switch {
		case err == nil:
			op.Output = out.(string)
		case errors.As(err, &elsewhere):
			return // it says that nothing was changed: if that is wrong, a later read shows it
		}
	}
	op.Return = l.clock.Add(1)
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil {
		op.Return = math.MaxInt64
	} else {
		l.acked++
	}
	l.history = append(l.history, op)
}

// check ends the clients and judges the history.
func (l *clients) check(t *testing.T) {
	t.Helper()
	enough := 50
	if !virtualTime {
		// A busy machine may have left the shorter test nearly none.
		enough = 10
		l.c.await("operations enough", func() bool {
			l.mu.Lock()
			defer l.mu.Unlock()
			return l.acked >= enough
		})
	}
	close(l.stop)
	l.wg.Wait()
	result := porcupine.CheckOperationsTimeout(model, l.history, 0)
	if result != porcupine.Ok {
		t.Errorf("the history of %d operations is not linearizable: %v", len(l.history), result)
	}
	unknown := 0
	for _, o := range l.history {
		if o.Return == math.MaxInt64 {
			unknown++
		}
	}
	t.Logf("%d operations, %d acknowledged, %d with unknown outcome", len(l.history), l.acked, unknown)
	if l.acked < enough {
		t.Errorf("only %d operations succeeded: the test shows nothing", l.acked)
	}
}

// kills is how many leaders die in a test; OVERLAYD_SOAK asks for more.
func kills(t *testing.T, normal int) int {
	v := os.Getenv("OVERLAYD_SOAK")
	if v == "" {
		return normal
	}
	n, err := strconv.Atoi(v)
	if err != nil || n < 1 {
		t.Fatalf("OVERLAYD_SOAK is %q: it has to be a number of leader kills", v)
	}
	return n
}

func TestLinearizableUnderLeaderKills(t *testing.T) {
	count := kills(t, 30)
	if !virtualTime && os.Getenv("OVERLAYD_SOAK") == "" {
		count = 3
	}
	inTime(t, func(t *testing.T) {
		c := newCluster(t, 3, func(cfg *Config) {
			// Small enough that snapshots are made, sent and restored all the time.
			cfg.Retention = Retention{Threshold: 30, Trailing: 10, Interval: 300 * time.Millisecond}
		})
		c.start()
		l := c.load(5, 40*time.Millisecond)
		rnd := rand.New(rand.NewPCG(1, 2))
		for range count {
			dead := c.awaitLeader()
			time.Sleep(time.Duration(rnd.IntN(200)) * time.Millisecond)
			c.kill(dead)
			l.epoch.Add(1)
			time.Sleep(time.Duration(rnd.IntN(1500)) * time.Millisecond)
			if err := c.open(dead); err != nil {
				t.Fatalf("open the killed leader again: %v", err)
			}
		}
		c.awaitLeader()
		l.check(t)
	})
}

func TestLinearizableUnderPartitions(t *testing.T) {
	rounds := 12
	if !virtualTime {
		rounds = 3
	}
	inTime(t, func(t *testing.T) {
		c := newCluster(t, 5, nil)
		c.start()
		l := c.load(5, 40*time.Millisecond)
		rnd := rand.New(rand.NewPCG(3, 4))
		for i := range rounds {
			lead := c.awaitLeader()
			var with, without []string
			for _, n := range c.nodes {
				if n != lead {
					without = append(without, n.address)
				}
			}
			with = []string{lead.address}
			switch i % 3 {
			case 0: // the leader is with the minority
				with = append(with, without[0])
				c.net.split(with, without[1:], true)
			case 1: // the leader is with the majority
				with = append(with, without[:2]...)
				c.net.split(with, without[2:], true)
			case 2: // the leader is heard but hears nothing, or the other way round
				for _, o := range without {
					if i%2 == 0 {
						c.net.block(o, lead.address, true)
					} else {
						c.net.block(lead.address, o, true)
					}
				}
			}
			l.epoch.Add(1)
			time.Sleep(time.Duration(500+rnd.IntN(1500)) * time.Millisecond)
			var all []string
			for _, n := range c.nodes {
				all = append(all, n.address)
			}
			c.net.split(all, all, false)
			time.Sleep(time.Duration(rnd.IntN(500)) * time.Millisecond)
		}
		l.check(t)
	})
}

func TestLinearizableUnderRestartOfAll(t *testing.T) {
	rounds := 6
	if !virtualTime {
		rounds = 2
	}
	inTime(t, func(t *testing.T) {
		c := newCluster(t, 3, nil)
		c.start()
		l := c.load(4, 40*time.Millisecond)
		for i := range rounds {
			c.awaitLeader()
			time.Sleep(time.Second)
			for _, n := range c.nodes {
				c.kill(n)
			}
			l.epoch.Add(1)
			for _, k := range rand.New(rand.NewPCG(uint64(i), 9)).Perm(3) {
				if err := c.open(c.nodes[k]); err != nil {
					t.Fatal(err)
				}
			}
		}
		c.awaitLeader()
		time.Sleep(time.Second)
		l.check(t)
	})
}

// A leader that is stopped (SIGSTOP) finds, when it goes on, the answers to its last heartbeats in its socket buffers,
// from a time when it was still the leader. They must not make it answer a read.
func TestReadAfterFreezeTrustsNoOldAnswer(t *testing.T) {
	inTime(t, func(t *testing.T) {
		c := newCluster(t, 3, nil)
		c.start()
		c.set("k", "old")
		lead := c.awaitLeader()
		var others []string
		for _, n := range c.nodes {
			if n != lead {
				others = append(others, n.address)
			}
		}
		// The leader hears nothing from now on, but its heartbeats go out: so answers pile up.
		for _, o := range others {
			c.net.block(o, lead.address, true)
		}
		time.Sleep(tempo.Heartbeat / 8)
		for _, o := range others {
			c.net.block(lead.address, o, true)
		}
		r, fsm := lead.live()
		term := r.current().raft.CurrentTerm()
		ready := r.current()
		ready.verifier.mu.Lock()
		ready.verifier.ready = term
		ready.verifier.mu.Unlock()
		var value string
		got := make(chan error, 1)
		go func() {
			// The reader has read, and then it all stands still; the question goes out afterwards.
			got <- r.Read(c.ctx(), func() {
				value = fsm.get("k")
				for _, o := range others {
					c.net.block(o, lead.address, false) // old answers come in
				}
			})
		}()
		if err := <-got; err == nil {
			t.Errorf("a leader without contact answered a read with %q", value)
		}
		c.net.split([]string{lead.address}, others, false)
	})
}

func TestReadNeedsVoters(t *testing.T) {
	inTime(t, func(t *testing.T) {
		promote := atomic.Bool{}
		promote.Store(true)
		c := newCluster(t, 5, func(cfg *Config) { cfg.WantVoter = func(string) bool { return promote.Load() } })
		for _, n := range c.nodes {
			if err := c.open(n); err != nil {
				t.Fatal(err)
			}
		}
		t.Cleanup(c.stop)
		lead := c.nodes[0]
		if err := lead.raft.Bootstrap(); err != nil {
			t.Fatal(err)
		}
		c.await("leader", lead.raft.IsLeader)
		for _, n := range c.nodes[1:3] {
			if err := lead.raft.AddNonvoter(c.ctx(), n.id, n.address); err != nil {
				t.Fatal(err)
			}
		}
		c.awaitVoters(3)
		promote.Store(false)
		for _, n := range c.nodes[3:] {
			if err := lead.raft.AddNonvoter(c.ctx(), n.id, n.address); err != nil {
				t.Fatal(err)
			}
		}
		c.set("k", "v")
		if err := lead.raft.Read(c.ctx(), func() {}); err != nil {
			t.Fatal(err)
		}
		voters := []string{c.nodes[1].address, c.nodes[2].address}
		c.net.split([]string{lead.address}, voters, true)
		// hashicorp/raft believes the two non-voters; another leader may be elected at any moment.
		if err := lead.raft.Read(c.ctx(), func() {}); err == nil {
			t.Error("non-voters were enough for a read")
		}
		c.net.split([]string{lead.address}, voters, false)
	})
}

func TestReadByNewLeaderSeesWhatTheOldOneCommitted(t *testing.T) {
	skipInRealTime(t)
	inTime(t, func(t *testing.T) {
		c := newCluster(t, 3, nil)
		c.start()
		for i := range 10 {
			want := strconv.Itoa(i)
			c.set("k", want)
			old := c.awaitLeader()
			c.kill(old)
			var got string
			c.await("read", func() bool {
				for _, n := range c.nodes {
					r, fsm := n.live()
					if r != nil && r.Read(c.ctx(), func() { got = fsm.get("k") }) == nil {
						return true
					}
				}
				return false
			})
			if got != want {
				t.Fatalf("the new leader read %q after %q was acknowledged", got, want)
			}
			if err := c.open(old); err != nil {
				t.Fatal(err)
			}
		}
	})
}
