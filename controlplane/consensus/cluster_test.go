package consensus

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"
)

// registers is an FSM: named values. A command is a JSON object {"k":..., "v":...}; its result is the old value.
type registers struct {
	mu    sync.Mutex
	data  map[string]string
	order []string // every value ever set, in order
}

type command struct {
	K string `json:"k"`
	V string `json:"v"`
}

func (r *registers) Apply(_ uint64, b []byte) any {
	var c command
	if err := json.Unmarshal(b, &c); err != nil {
		return fmt.Errorf("this version does not know the command: %w", err)
	}
	if c.K == "panic" {
		panic("a bug")
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.data == nil {
		r.data = map[string]string{}
	}
	old := r.data[c.K]
	r.data[c.K] = c.V
	r.order = append(r.order, c.V)
	return old
}

func (r *registers) get(k string) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.data[k]
}

func (r *registers) history() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]string(nil), r.order...)
}

type frozenRegisters struct {
	Data  map[string]string
	Order []string
}

func (r *registers) Snapshot() (Snapshot, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return &frozenRegisters{Data: maps.Clone(r.data), Order: append([]string(nil), r.order...)}, nil
}

func (f *frozenRegisters) WriteTo(w io.Writer) (int64, error) {
	b, err := json.Marshal(f)
	if err != nil {
		return 0, err
	}
	n, err := w.Write(b)
	return int64(n), err
}

func readRegisters(in io.Reader) (*frozenRegisters, error) {
	var f frozenRegisters
	if err := json.NewDecoder(bufio.NewReader(in)).Decode(&f); err != nil {
		return nil, err
	}
	if _, bad := f.Data["refuse"]; bad {
		return nil, errors.New("this version does not know the state")
	}
	return &f, nil
}

func (r *registers) Restore(in io.Reader) error {
	f, err := readRegisters(in)
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.data, r.order = f.Data, f.Order
	return nil
}

// disk is a database whose disk may fail.
type disk struct {
	database
	node *node
	net  *network
}

func (d disk) before() error {
	time.Sleep(d.net.delay())
	if f := d.node.fault.Load(); f != nil {
		return (*f)()
	}
	return nil
}

func (d disk) StoreLogs(l []*raft.Log) error {
	if err := d.before(); err != nil {
		return err
	}
	return d.database.StoreLogs(l)
}

func (d disk) DeleteRange(a, b uint64) error {
	if err := d.before(); err != nil {
		return err
	}
	return d.database.DeleteRange(a, b)
}

func (d disk) Set(k, v []byte) error {
	if err := d.before(); err != nil {
		return err
	}
	return d.database.Set(k, v)
}

// openQuick opens raft.db without waiting for the disk: in these tests no power fails.
func openQuick(path string, readOnly bool) (database, error) {
	db, err := raftboltdb.New(raftboltdb.Options{Path: path, NoSync: true, BoltOptions: &bbolt.Options{
		Timeout: lockTimeout, NoFreelistSync: true, FreelistType: bbolt.FreelistMapType, ReadOnly: readOnly}})
	if err != nil {
		return nil, err
	}
	return db, nil
}

// node is a manager in a test.
type node struct {
	id      string
	address string
	dir     string
	fault   atomic.Pointer[func() error] // what a write gives

	// Of the current life; nil raft = it is down.
	mu   sync.Mutex
	fsm  *registers
	raft *Raft
}

func (n *node) fail(f func() error) {
	if f == nil {
		n.fault.Store(nil)
		return
	}
	n.fault.Store(&f)
}

func (n *node) live() (*Raft, *registers) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.raft, n.fsm
}

// cluster is a set of managers in memory, with their files on disk.
type cluster struct {
	t     *testing.T
	net   *network
	nodes []*node
	tune  func(*Config)
}

func quiet() *slog.Logger {
	if os.Getenv("CONSENSUS_LOG") != "" {
		return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	return slog.New(slog.DiscardHandler)
}

func newCluster(t *testing.T, size int, tune func(*Config)) *cluster {
	t.Helper()
	c := &cluster{t: t, net: newNetwork(), tune: tune}
	for i := range size {
		c.nodes = append(c.nodes, &node{id: fmt.Sprintf("%016x", i+1), address: fmt.Sprintf("192.0.2.%d:7789", i+1), dir: filepath.Join(t.TempDir(), "raft")})
	}
	return c
}

func (c *cluster) config(n *node, fsm FSM) Config {
	cfg := Config{
		ID: n.id, Dir: n.dir, Address: n.address, Stream: c.net.stream(n.address), FSM: fsm,
		Timing: tempo, StabilizeTime: 500 * time.Millisecond, Log: quiet().With("node", n.id[15:]),
	}
	if c.tune != nil {
		c.tune(&cfg)
	}
	return cfg
}

// open starts a node on what is on its disk.
func (c *cluster) open(n *node) error {
	fsm := &registers{}
	r, err := open(c.config(n, fsm), func(path string, readOnly bool) (database, error) {
		db, err := openQuick(path, readOnly)
		return disk{db, n, c.net}, err
	})
	if err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.fsm, n.raft = fsm, r
	return nil
}

// start opens all nodes and makes them a cluster of voters.
func (c *cluster) start() {
	c.t.Helper()
	for _, n := range c.nodes {
		if err := c.open(n); err != nil {
			c.t.Fatal(err)
		}
	}
	c.t.Cleanup(c.stop)
	if err := c.nodes[0].raft.Bootstrap(); err != nil {
		c.t.Fatal(err)
	}
	c.await("a leader", func() bool { return c.nodes[0].raft.IsLeader() })
	for _, n := range c.nodes[1:] {
		if err := c.nodes[0].raft.AddNonvoter(c.ctx(), n.id, n.address); err != nil {
			c.t.Fatal(err)
		}
	}
	c.awaitVoters(len(c.nodes))
}

// awaitVoters waits until all nodes of the cluster know of that many voters. A leader that dies before leaves voters
// behind that do not know of each other, and then hashicorp/raft has no leader until it is back.
func (c *cluster) awaitVoters(want int) {
	c.t.Helper()
	c.await(fmt.Sprintf("%d voters", want), func() bool {
		l := c.leader()
		if l == nil {
			return false
		}
		for _, of := range l.raft.Servers() {
			for _, n := range c.nodes {
				have := 0
				for _, s := range n.raft.Servers() {
					if s.Voter {
						have++
					}
				}
				if n.id == of.ID && have != want {
					return false
				}
			}
		}
		return true
	})
}

// ctx ends when nothing should take that long.
func (c *cluster) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	c.t.Cleanup(cancel)
	return ctx
}

func (c *cluster) await(what string, f func() bool) {
	c.t.Helper()
	deadline := time.Now().Add(time.Minute)
	for !f() {
		if time.Now().After(deadline) {
			c.t.Fatalf("no %s after a minute", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// leader returns a node that leads, nil if there is none.
func (c *cluster) leader() *node {
	for _, n := range c.nodes {
		if r, _ := n.live(); r != nil && r.IsLeader() {
			return n
		}
	}
	return nil
}

func (c *cluster) awaitLeader() *node {
	c.t.Helper()
	var l *node
	c.await("leader", func() bool { l = c.leader(); return l != nil })
	return l
}

// set proposes a value on whichever node leads, until it is accepted.
func (c *cluster) set(k, v string) {
	c.t.Helper()
	b, _ := json.Marshal(command{k, v})
	c.await("agreement on "+k, func() bool {
		l := c.leader()
		if l == nil {
			return false
		}
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		_, _, err := l.raft.Propose(ctx, b)
		return err == nil
	})
}

// kill ends a node as kill -9 does: from one moment to the next nothing goes out and nothing is written. What was
// written stays, as it does in the kernel's cache.
func (c *cluster) kill(n *node) {
	n.mu.Lock()
	r := n.raft
	n.raft = nil
	n.mu.Unlock()
	if r == nil {
		return
	}
	n.fail(func() error { return errors.New("the process was killed") })
	c.net.mu.Lock()
	delete(c.net.listeners, n.address)
	c.net.mu.Unlock()
	c.net.reset(n.address)
	r.stopOnce.Do(func() { // Stop without handing leadership over
		close(r.stopping)
		_ = r.cfg.Stream.Close()
	})
	<-r.done
	n.fail(nil)
}

func (c *cluster) stop() {
	for _, n := range c.nodes {
		c.kill(n)
	}
}
