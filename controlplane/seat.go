package controlplane

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/proto"

	"github.com/overlayd/overlayd/controlplane/api/overlayd/state/v1"
	"github.com/overlayd/overlayd/controlplane/consensus"
	"github.com/overlayd/overlayd/controlplane/identity"
	"github.com/overlayd/overlayd/controlplane/state"
	"github.com/overlayd/overlayd/controlplane/wire"
)

const (
	// stabilizeTime is how long a new manager has to keep up before it gets a vote, unless Raft is made less patient.
	stabilizeTime = 3 * time.Second
	// dutyAgain is when the leader tries again what failed.
	dutyAgain = time.Second
	// dutyEvery is how often the leader looks for what time alone brings: leases that end, keys that are old.
	dutyEvery = 10 * time.Second
	// dismissTime bounds the wait of a former manager for the others to go on without it.
	dismissTime = 15 * time.Second
	// dismissAsk is how often it asks them whether they do.
	dismissAsk = 250 * time.Millisecond
	// dismissHear is how long it waits for an answer, before it looks by itself again.
	dismissHear = time.Second
)

// seat is a manager's place in Raft.
type seat struct {
	member *member
	store  *state.Store
	raft   *consensus.Raft
	stream *streamLayer
	end    context.CancelFunc // of its goroutines
	done   sync.WaitGroup

	batchMu sync.Mutex    // one batch is signed and sent at a time, in order
	nodes   chan struct{} // capacity 1: look at the managers again

	rotation rotation // of lead alone, as what follows
	lastKeys [][]byte // the keys of the gossip before this leader's last step
}

// takeSeat opens Raft on this node, with what is on its disk.
func (m *member) takeSeat(ctx context.Context) error {
	if m.seat.Load() != nil {
		return nil
	}
	s := &seat{member: m, store: state.NewStore(), stream: newStreamLayer(m), nodes: make(chan struct{}, 1)}
	m.raftTo.Store(s.stream)
	r, err := consensus.Open(consensus.Config{
		ID: m.local.NodeID, Dir: m.node.cfg.raftDir(), Address: m.local.control(),
		Stream: s.stream, FSM: fsm{s}, Timing: m.node.cfg.Timing, Log: m.log,
		ResolveAddress: m.controlAddress,
		WantVoter:      s.wantsVoter,
		StabilizeTime:  cmp.Or(min(stabilizeTime, 2*m.node.cfg.Timing.Heartbeat), stabilizeTime),
		Check:          s.checkBackup,
	})
	if err != nil {
		m.raftTo.Store(nil)
		return fmt.Errorf("open the Raft store of this manager: %w", err)
	}
	s.raft = r
	ctx, s.end = context.WithCancel(ctx)
	m.seat.Store(s)
	s.done.Go(func() { s.lead(ctx) })
	s.done.Go(func() {
		select {
		case err := <-r.Failed():
			m.log.Error("this manager no longer takes part in Raft", "error", err)
		case <-ctx.Done():
		}
	})
	return nil
}

// dismissed waits until Raft no longer counts on this manager, which the state says is none any more: without its vote, and
// still counted, the others may lack a majority to take it out.
func (m *member) dismissed(ctx context.Context) {
	s := m.seat.Load()
	if s == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, dismissTime)
	defer cancel()
	// The leader tells it once at best, and not at all where an earlier message is under way. Then the others know.
	ask := time.NewTicker(dismissAsk)
	defer ask.Stop()
	for s.counts(m.local.NodeID) {
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ask.C:
			soon, cancel := context.WithTimeout(ctx, dismissHear)
			a, ok := m.hearMembership(soon)
			cancel()
			if ok && a.Dismissed {
				return
			}
		case <-ctx.Done():
			return
		}
	}
}

// counts reports whether Raft counts on a node, as far as this one knows: a change that is not committed holds already, as Raft
// itself goes by it.
func (s *seat) counts(id string) bool {
	return slices.ContainsFunc(s.raft.Servers(), func(x consensus.Server) bool { return x.ID == id })
}

// standUp gives the seat up, if there is one.
func (m *member) standUp() {
	s := m.seat.Swap(nil)
	if s == nil {
		return
	}
	s.end()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := s.raft.Stop(ctx); err != nil {
		m.log.Warn("Raft did not end in order", "error", err)
	}
	m.raftTo.Store(nil)
	s.stream.shut()
	s.done.Wait()
}

func (s *seat) wantsVoter(id string) bool {
	n := s.store.Node(id)
	return n != nil && n.Role == statev1.Role_ROLE_MANAGER
}

// controlAddress is where the control port of a node is.
func (m *member) controlAddress(id string) (string, bool) {
	var n *statev1.Node
	if s := m.seat.Load(); s != nil {
		n = s.store.Node(id)
	}
	if n == nil {
		n = m.node.replica.Node(id)
	}
	if n == nil {
		return "", false
	}
	return hostPort(n, n.ControlPort), true
}

// fsm is the state as Raft sees it.
type fsm struct{ *seat }

func (f fsm) Apply(index uint64, command []byte) any {
	result, batch, err := f.store.Apply(index, command)
	if err != nil {
		return err // consensus stops this manager
	}
	if batch != nil {
		f.member.spread(batch, f.seat)
	}
	return result
}

func (f fsm) Snapshot() (consensus.Snapshot, error) { return f.store.Snapshot(), nil }

func (f fsm) Restore(r io.Reader) error {
	if err := f.store.Restore(r); err != nil {
		return err
	}
	poke(f.nodes)
	return f.member.reload(f.store)
}

// lead does what falls to the leader, while this manager is it: when it becomes the leader, when nodes change, and now and
// then.
func (s *seat) lead(ctx context.Context) {
	leaders := s.raft.Watch(ctx)
	caughtUp := false // the state is no older than the leadership
	var again <-chan time.Time
	for {
		select {
		case _, more := <-leaders:
			if !more {
				return
			}
			caughtUp = false
		case <-s.nodes:
		case <-again:
		case <-ctx.Done():
			return
		}
		again = nil
		if !s.raft.IsLeader() {
			continue
		}
		// By the state of a while ago, one might take the vote from a manager that has come since.
		if caughtUp = caughtUp || s.catchUp(ctx); caughtUp && s.duties(ctx) {
			again = time.After(dutyEvery)
		} else {
			again = time.After(dutyAgain)
		}
	}
}

// catchUp waits until the state of this leader holds what was agreed on before, and reports whether it does.
func (s *seat) catchUp(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return s.raft.Read(ctx, func() {}) == nil && s.store.ClusterID() != ""
}

// duties does what is due, and reports whether all of it could be done.
func (s *seat) duties(ctx context.Context) bool {
	well := true
	for what, do := range map[string]func(context.Context) error{
		"bring the Raft servers in line with the managers": s.seatManagers,
		"collect the leases that ended":                    s.collectLeases,
		"rotate the keys of the gossip":                    s.rotateKeys,
	} {
		if err := do(ctx); err != nil && ctx.Err() == nil {
			well = false
			s.member.log.Warn("cannot "+what+" yet", "error", err)
		}
	}
	return well
}

// seatManagers makes the servers of Raft those nodes that are managers. New ones enter without a vote.
func (s *seat) seatManagers(ctx context.Context) error {
	seated := map[string]bool{}
	for _, x := range s.raft.Servers() {
		if s.wantsVoter(x.ID) {
			seated[x.ID] = true
			continue
		}
		if x.ID == s.member.local.NodeID {
			// It was demoted. Another one has to take it out.
			if err := s.raft.TransferLeadership(ctx); err != nil {
				return err
			}
			return nil
		}
		if err := s.raft.Remove(ctx, x.ID); err != nil {
			return fmt.Errorf("remove %s: %w", x.ID, err)
		}
	}
	for _, n := range s.store.Nodes() {
		if n.Role != statev1.Role_ROLE_MANAGER || seated[n.Id] {
			continue
		}
		if err := s.raft.AddNonvoter(ctx, n.Id, hostPort(n, n.ControlPort)); err != nil {
			return fmt.Errorf("add %s: %w", n.Name, err)
		}
	}
	return nil
}

// collectLeases removes the endpoints that nobody confirmed in time.
func (s *seat) collectLeases(ctx context.Context) error {
	now := time.Now()
	due := false
	for _, e := range s.store.Leases() {
		if e.LeaseEnd.AsTime().Before(now) {
			due = true
			break
		}
	}
	if !due {
		return nil
	}
	result, err := s.propose(ctx, &statev1.Command{Kind: &statev1.Command_CollectLeases{CollectLeases: &statev1.CollectLeases{}}})
	if err != nil {
		return err
	}
	s.member.log.Info("collected endpoints that were never confirmed", "endpoints", result.Collected)
	return nil
}

// propose has a command applied by this manager, which has to be the leader.
func (s *seat) propose(ctx context.Context, c *statev1.Command) (*statev1.Result, error) {
	if err := complete(c); err != nil {
		return nil, err
	}
	b, err := proto.Marshal(c)
	if err != nil {
		return nil, err
	}
	out, _, err := s.raft.Propose(ctx, b)
	if err != nil {
		return nil, err
	}
	switch r := out.(type) {
	case *statev1.Result:
		return r, refusal(r)
	case error:
		return nil, r
	}
	return nil, fmt.Errorf("a command was applied with a %T as the result", out)
}

// streamLayer carries Raft over the control port.
type streamLayer struct {
	member *member
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newStreamLayer(m *member) *streamLayer {
	return &streamLayer{member: m, conns: make(chan net.Conn), closed: make(chan struct{})}
}

// Accept waits for a connection of another manager.
func (l *streamLayer) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

// Dial connects to another manager: what answers has to prove that it is one.
func (l *streamLayer) Dial(to raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	return wire.DialAny(ctx, l.member.reachedAt(string(to)), l.member.creds.ClientTLS(identity.Expect{Role: statev1.Role_ROLE_MANAGER}), protocolRaft)
}

// Close ends Accept. Connections stay.
func (l *streamLayer) Close() error {
	l.shut()
	return nil
}

func (l *streamLayer) shut() { l.once.Do(func() { close(l.closed) }) }

// Addr is where the other managers reach this one.
func (l *streamLayer) Addr() net.Addr { return address(l.member.local.control()) }

// address is a host:port that need not be resolved here.
type address string

func (a address) Network() string { return "tcp" }
func (a address) String() string  { return string(a) }

// acceptRaft hands the Raft connections of managers to the seat, if this node has one.
func (m *member) acceptRaft(ctx context.Context, l net.Listener) error {
	for {
		c, err := l.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("accept Raft connections: %w", err)
		}
		if err := m.handRaft(ctx, c); err != nil {
			m.log.Warn("refused a Raft connection", "from", c.RemoteAddr(), "error", err)
			_ = c.Close()
		}
	}
}

func (m *member) handRaft(ctx context.Context, c net.Conn) error {
	peer, err := peerOf(c)
	if err != nil {
		return err
	}
	if peer.Role != statev1.Role_ROLE_MANAGER {
		return fmt.Errorf("node %s is a %s: only managers take part in Raft", peer.NodeID, roleName(peer.Role))
	}
	to := m.raftTo.Load()
	if to == nil {
		return errors.New("this node is no manager")
	}
	select {
	case to.conns <- c:
		return nil
	case <-to.closed:
		return errors.New("this node is no manager any more")
	case <-ctx.Done():
		return ctx.Err()
	}
}

func peerOf(c net.Conn) (identity.Identity, error) {
	t, ok := c.(tlsConn)
	if !ok {
		return identity.Identity{}, errors.New("the connection has no TLS")
	}
	return identity.Peer(t.ConnectionState())
}
