package consensus

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"
)

func encode(k, v string) []byte {
	b, _ := json.Marshal(command{k, v})
	return b
}

// skipInRealTime leaves out, under the race detector, what takes long and shows it nothing new.
func skipInRealTime(t *testing.T) {
	t.Helper()
	if !virtualTime {
		t.Skip("takes too long in real time; it runs without the race detector")
	}
}

// single starts a cluster of one.
func single(t *testing.T, tune func(*Config)) (*cluster, *node) {
	t.Helper()
	c := newCluster(t, 1, tune)
	c.start()
	return c, c.nodes[0]
}

func TestConfigIsChecked(t *testing.T) {
	good := func() Config {
		return Config{ID: "1", Dir: t.TempDir(), Address: "192.0.2.1:7789", Stream: newNetwork().stream("192.0.2.1:7789"), FSM: &registers{}}
	}
	for name, x := range map[string]struct {
		change func(*Config)
		want   string
	}{
		"no ID":            {func(c *Config) { c.ID = "" }, "ID"},
		"no directory":     {func(c *Config) { c.Dir = "" }, "directory"},
		"no stream":        {func(c *Config) { c.Stream = nil }, "stream"},
		"no FSM":           {func(c *Config) { c.FSM = nil }, "FSM"},
		"no port":          {func(c *Config) { c.Address = "192.0.2.1" }, "host:port"},
		"port 0":           {func(c *Config) { c.Address = "192.0.2.1:0" }, "lacks"},
		"hasty":            {func(c *Config) { c.Timing.Heartbeat = time.Millisecond }, "Timing.Heartbeat"},
		"lease too long":   {func(c *Config) { c.Timing.Lease = time.Hour }, "Timing.Lease"},
		"election short":   {func(c *Config) { c.Timing.Election = time.Second }, "Timing.Election"},
		"negative commit":  {func(c *Config) { c.Timing.Commit = -1 }, "Timing.Commit"},
		"window too short": {func(c *Config) { c.Disk = Disk{Limit: time.Minute, Window: time.Second} }, "Disk.Window"},
		"stabilize":        {func(c *Config) { c.StabilizeTime = -1 }, "StabilizeTime"},
	} {
		cfg := good()
		x.change(&cfg)
		if _, err := Open(cfg); err == nil || !strings.Contains(err.Error(), x.want) {
			t.Errorf("%s: error %v does not name %q", name, err, x.want)
		}
	}
}

func TestSecondProcessIsRefused(t *testing.T) {
	skipInRealTime(t)
	inTime(t, func(t *testing.T) {
		c, n := single(t, nil)
		_, err := Open(c.config(&node{id: n.id, address: "192.0.2.9:7789", dir: n.dir}, &registers{}))
		if !errors.Is(err, ErrLocked) {
			t.Errorf("error %v, want ErrLocked", err)
		}
		if err := Recover(n.dir, Server{ID: n.id, Address: n.address, Voter: true}, &registers{}); !errors.Is(err, ErrLocked) {
			t.Errorf("Recover beside a daemon: %v", err)
		}
	})
}

func TestBootstrapOnce(t *testing.T) {
	inTime(t, func(t *testing.T) {
		c := newCluster(t, 1, nil)
		n := c.nodes[0]
		if err := c.open(n); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(c.stop)
		if has, err := n.raft.HasState(); has || err != nil {
			t.Fatalf("a new directory: state %v, %v", has, err)
		}
		if err := n.raft.Bootstrap(); err != nil {
			t.Fatal(err)
		}
		if err := n.raft.Bootstrap(); !errors.Is(err, ErrHasState) {
			t.Errorf("a second Bootstrap: %v", err)
		}
		c.set("k", "v")
		c.kill(n)
		if err := c.open(n); err != nil {
			t.Fatal(err)
		}
		if has, err := n.raft.HasState(); !has || err != nil {
			t.Errorf("a used directory: state %v, %v", has, err)
		}
		c.await("the state of before", func() bool { return n.fsm.get("k") == "v" })
	})
}

func TestStopHandsLeadershipOver(t *testing.T) {
	inTime(t, func(t *testing.T) {
		c := newCluster(t, 3, nil)
		c.start()
		old := c.awaitLeader()
		r := old.raft
		if err := r.Stop(c.ctx()); err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		c.await("other leader", func() bool { l := c.leader(); return l != nil && l != old })
		if took := time.Since(begin); virtualTime && took >= tempo.Heartbeat/2 {
			t.Errorf("the others had to miss the leader first: that took %v", took)
		}
		if _, _, err := r.Propose(c.ctx(), encode("k", "v")); !errors.Is(err, ErrStopped) {
			t.Errorf("Propose after Stop: %v", err)
		}
		if err := r.Read(c.ctx(), func() {}); !errors.Is(err, ErrStopped) {
			t.Errorf("Read after Stop: %v", err)
		}
		if err := r.Stop(c.ctx()); err != nil {
			t.Errorf("a second Stop: %v", err)
		}
		if s := r.State(); s != Stopped {
			t.Errorf("state %v after Stop", s)
		}
	})
}

func TestFollowerNamesLeader(t *testing.T) {
	inTime(t, func(t *testing.T) {
		c := newCluster(t, 3, nil)
		c.start()
		lead := c.awaitLeader()
		for _, n := range c.nodes {
			if n == lead {
				continue
			}
			c.await("word of the leader", func() bool { id, _ := n.raft.Leader(); return id == lead.id })
			var elsewhere *NotLeaderError
			_, _, err := n.raft.Propose(c.ctx(), encode("k", "v"))
			if !errors.As(err, &elsewhere) || elsewhere.LeaderID != lead.id || elsewhere.LeaderAddress != lead.address {
				t.Errorf("Propose on a follower: %v", err)
			}
			if err := n.raft.Read(c.ctx(), func() {}); !errors.As(err, &elsewhere) {
				t.Errorf("Read on a follower: %v", err)
			}
			if err := n.raft.CanLose(lead.id); !errors.As(err, &elsewhere) {
				t.Errorf("CanLose on a follower: %v", err)
			}
			if err := n.raft.AddNonvoter(c.ctx(), "x", "192.0.2.99:1"); !errors.As(err, &elsewhere) {
				t.Errorf("AddNonvoter on a follower: %v", err)
			}
		}
	})
}

func TestProposalWithoutQuorumIsUnknown(t *testing.T) {
	inTime(t, func(t *testing.T) {
		c := newCluster(t, 3, nil)
		c.start()
		lead := c.awaitLeader()
		for _, n := range c.nodes {
			if n != lead {
				c.net.split([]string{lead.address}, []string{n.address}, true)
			}
		}
		_, _, err := lead.raft.Propose(c.ctx(), encode("k", "v"))
		if !errors.Is(err, ErrUnknownOutcome) {
			t.Errorf("a proposal that no other manager saw: %v", err)
		}
		ended, cancel := context.WithCancel(context.Background())
		cancel()
		if _, _, err := lead.raft.Propose(ended, encode("k", "v")); !errors.Is(err, context.Canceled) || errors.Is(err, ErrUnknownOutcome) {
			t.Errorf("a proposal that was called off before: %v", err)
		}
		if _, _, err := lead.raft.Propose(c.ctx(), make([]byte, maxCommand+1)); err == nil || errors.Is(err, ErrUnknownOutcome) {
			t.Errorf("a command that is too large: %v", err)
		}
	})
}

func TestWatch(t *testing.T) {
	skipInRealTime(t)
	inTime(t, func(t *testing.T) {
		c := newCluster(t, 3, nil)
		c.start()
		lead := c.awaitLeader()
		var other *node
		for _, n := range c.nodes {
			if n != lead {
				other = n
			}
		}
		ctx, cancel := context.WithCancel(context.Background())
		seen := other.raft.Watch(ctx)
		untilStop := other.raft.Watch(context.Background())
		if first := <-seen; first.State != Follower {
			t.Errorf("first news: %+v", first)
		}
		c.kill(lead)
		limit := time.After(time.Minute)
		for done := false; !done; {
			select {
			case l := <-seen:
				done = l.LeaderID != "" && l.LeaderID != lead.id
			case <-limit:
				t.Fatal("no news of the new leader")
			}
		}
		cancel()
		for range seen { //nolint:revive // until it is closed
		}
		go c.kill(other)
		for range untilStop { //nolint:revive // until it is closed
		}
	})
}
