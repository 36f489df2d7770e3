package controlplane

import (
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/overlayd/overlayd/controlplane/api/overlayd/state/v1"
)

// move is one change of place of an endpoint.
type move struct {
	endpoint   string
	generation uint64
}

// arrivals is when each move was seen in the copy of each of a number of nodes.
type arrivals struct {
	mu    sync.Mutex
	begun map[move]time.Time
	seen  map[move][]time.Duration
}

func (a *arrivals) begin(m move) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.begun[m] = time.Now()
}

func (a *arrivals) follow(ctx context.Context, w *Watcher) {
	defer w.Close()
	for {
		u, err := w.Next(ctx)
		if err != nil {
			return
		}
		a.note(u, time.Now())
	}
}

// note takes down which moves one node has seen.
func (a *arrivals) note(u Update, now time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, d := range u.Deltas {
		if e := d.Endpoint; e != nil {
			m := move{e.Id, e.Generation}
			if t, ok := a.begun[m]; ok {
				a.seen[m] = append(a.seen[m], now.Sub(t))
			}
		}
	}
}

// all returns how long each move took to each node, sorted.
func (a *arrivals) all() []time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := slices.Concat(slices.Collect(maps.Values(a.seen))...)
	slices.Sort(out)
	return out
}

// inForce returns how long each move that all nodes have seen took until the last of them had, sorted.
func (a *arrivals) inForce(nodes int) []time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	var out []time.Duration
	for _, ds := range a.seen {
		if len(ds) >= nodes {
			out = append(out, slices.Max(ds))
		}
	}
	slices.Sort(out)
	return out
}

// TestConvergence moves endpoints between five nodes at 20 a second, over real sockets and disks, and looks at when each
// move is in force on all of them. With OVERLAYD_SOAK set it has the full size, 1,000 endpoints for a minute, and a bound.
func TestConvergence(t *testing.T) {
	endpoints, moves, full := 50, 60, os.Getenv("OVERLAYD_SOAK") != ""
	if full {
		endpoints, moves = 1000, 1200
	}
	s := newSite(t)
	h := s.host()
	tokens := h.init("n0")
	hosts := []*host{h}
	for i := 1; i < 5; i++ {
		x := s.host()
		token := tokens.Worker
		if i < 3 {
			token = tokens.Manager
		}
		x.join(fmt.Sprintf("n%d", i), token, h)
		hosts = append(hosts, x)
	}
	ids := make([]string, len(hosts))
	for i, x := range hosts {
		ids[i] = x.id()
	}
	n := h.propose(&statev1.Command{Kind: &statev1.Command_CreateNetwork{CreateNetwork: &statev1.CreateNetwork{
		Name: "blue", Subnets: []string{"10.42.0.0/16"},
	}}}).Network
	var all []*statev1.Endpoint
	for i := range endpoints {
		all = append(all, h.propose(&statev1.Command{Kind: &statev1.Command_AddEndpoint{AddEndpoint: &statev1.AddEndpoint{
			Network: n.Id, Node: ids[i%len(ids)],
		}}}).Endpoint)
	}

	a := &arrivals{begun: map[move]time.Time{}, seen: map[move][]time.Duration{}}
	ctx, cancel := context.WithCancel(context.Background())
	var following sync.WaitGroup
	for _, x := range hosts {
		w := x.Watch()
		following.Go(func() { a.follow(ctx, w) })
	}
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	want := map[string]string{}
	for i := range moves {
		<-tick.C
		e := all[i%len(all)]
		from := slices.Index(ids, e.Node)
		to := ids[(from+1+i%(len(ids)-1))%len(ids)]
		a.begin(move{e.Id, e.Generation + 1})
		// Any node can be asked.
		all[i%len(all)] = hosts[i%3].propose(&statev1.Command{Kind: &statev1.Command_MoveEndpoint{MoveEndpoint: &statev1.MoveEndpoint{
			Id: e.Id, Node: to, Generation: e.Generation,
		}}}).Endpoint
		want[e.Id] = to
	}
	for _, x := range hosts {
		x.until("the last move to arrive everywhere", func() error {
			for id, node := range want {
				if e := x.Tables().Endpoint(id); e.GetNode() != node {
					return fmt.Errorf("%s has %s behind %s, want %s", x.id(), id, e.GetNode(), node)
				}
			}
			if a, b := x.Tables().Digest(), h.Tables().Digest(); !maps.Equal(a, b) {
				return fmt.Errorf("%s and %s have different copies: %v, %v", x.id(), h.id(), a, b)
			}
			return nil
		})
	}
	cancel()
	following.Wait()
	took := a.inForce(len(hosts))
	if len(took) < moves*9/10 {
		t.Errorf("%d of %d moves were seen by all nodes one by one", len(took), moves)
	}
	if len(took) == 0 {
		return
	}
	p50, p99 := took[len(took)/2], took[len(took)*99/100]
	t.Logf("%d endpoints, %d moves, in force on all %d nodes: p50 %v, p99 %v, longest %v",
		endpoints, moves, len(hosts), p50, p99, took[len(took)-1])
	if full && (p50 > 400*time.Millisecond || p99 > 5*time.Second) {
		t.Errorf("a move was in force on all nodes after %v in the median and %v at the 99th percentile, want 400 ms and 5 s at most", p50, p99)
	}
}
