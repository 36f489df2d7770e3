package controlplane

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/overlayd/overlayd/controlplane/api/overlayd/peer/v1"
	"github.com/overlayd/overlayd/controlplane/api/overlayd/peer/v1/peerv1connect"
	"github.com/overlayd/overlayd/controlplane/api/overlayd/state/v1"
	"github.com/overlayd/overlayd/controlplane/gossip"
	"github.com/overlayd/overlayd/controlplane/identity"
	"github.com/overlayd/overlayd/controlplane/state"
)

const (
	// syncEvery is how often a worker asks a manager whether it missed something, beside what gossip tells it.
	syncEvery = 30 * time.Second
	// syncPause is the least time between two such questions.
	syncPause = 100 * time.Millisecond
	// syncTime bounds one such question: the answer may be the whole state. Pings find out earlier if nobody is there.
	syncTime = 2 * time.Minute
	// wholeEvery is the least time between two fetches of the whole state because copies differ.
	wholeEvery = time.Minute
	// maxStrangers is how many nodes are asked or called of which little is known.
	maxStrangers = 3
	// saveEvery is the least time between two writes of the copy to disk.
	saveEvery = 2 * time.Second
)

// errSigner means that a gossip message was signed by a node that is no manager as far as this one knows.
var errSigner = errors.New("its signer is no manager that this node knows")

// spread applies a batch that this manager has from Raft to its copy and, on the leader, tells the other nodes.
func (m *member) spread(b *statev1.Batch, s *seat) {
	replayed := m.node.replica.Index() >= b.Index // what Raft reads again after a start is no news
	if err := m.apply(b); err != nil {
		// The copy is older than the log that Raft replays, or of another line.
		if err = m.reload(s.store); err != nil {
			m.log.Error("cannot bring the copy of the state in line with Raft", "error", err)
		}
	}
	g := m.gossip.Load()
	if g == nil || replayed || m.seat.Load() != s || !s.raft.IsLeader() {
		return
	}
	if slices.ContainsFunc(b.Deltas, func(d *statev1.Delta) bool { return d.Node != nil || d.RemovedNode != "" }) {
		poke(s.nodes)
	}
	if err := s.announce(g, b); err != nil {
		// Too big, or too many at once: the others are told that there is something, and ask.
		if err := g.Announce(); err != nil {
			m.log.Debug("a change goes without an announcement; the others notice later", "index", b.Index, "error", err)
		}
	}
}

func (s *seat) announce(g *gossip.Gossip, b *statev1.Batch) error {
	s.batchMu.Lock()
	defer s.batchMu.Unlock()
	data, err := proto.Marshal(b)
	if err != nil {
		return err
	}
	creds := s.member.creds.Load()
	signature, err := creds.Sign(data)
	if err != nil {
		return err
	}
	message, err := proto.Marshal(&statev1.SignedBatch{Batch: data, Signer: creds.NodeID(), Signature: signature})
	if err != nil {
		return err
	}
	return g.Broadcast(message)
}

// deliver takes a message of the gossip: transport, and not authority. What no manager signed is dropped. It reports
// whether others should get it too.
func (m *member) deliver(message []byte) (spread bool) {
	b, err := m.verify(message)
	if errors.Is(err, errSigner) {
		poke(m.behind) // this copy may be older than that manager
		m.log.Debug("dropped a gossip message", "error", err)
		return false
	}
	if err != nil {
		m.log.Warn("dropped a gossip message", "error", err)
		return false
	}
	known := m.node.replica.Index() >= b.Index
	switch err := m.apply(b); {
	case errors.Is(err, state.ErrDiverged):
		m.differs.Store(true)
		poke(m.behind)
	case errors.Is(err, state.ErrGap):
		m.early.add(b)
		m.lacks(b.Index)
	case err != nil:
		m.log.Warn("dropped a gossip message", "error", err)
		return false
	}
	return !known
}

// onBehind takes the word of another node that it knows more, or at the same index something else.
func (m *member) onBehind(_ string, theirs gossip.Digest) {
	index, sum := m.node.replica.Position()
	switch {
	case theirs.Index > index:
		m.lacks(theirs.Index)
	case theirs.Index == index && theirs.Sum != sum:
		m.differs.Store(true)
		poke(m.behind)
	}
}

func (m *member) verify(message []byte) (*statev1.Batch, error) {
	signed := new(statev1.SignedBatch)
	if err := proto.Unmarshal(message, signed); err != nil {
		return nil, fmt.Errorf("it cannot be decoded: %w", err)
	}
	signer := m.node.replica.Node(signed.Signer)
	if signer == nil || signer.Role != statev1.Role_ROLE_MANAGER {
		return nil, fmt.Errorf("%w: %q", errSigner, signed.Signer)
	}
	if err := identity.VerifySignature(signer.PublicKey, signed.Batch, signed.Signature); err != nil {
		return nil, fmt.Errorf("the signature in the name of %s: %w", signer.Name, err)
	}
	b := new(statev1.Batch)
	if err := proto.Unmarshal(signed.Batch, b); err != nil {
		return nil, fmt.Errorf("the batch cannot be decoded: %w", err)
	}
	if b.ClusterId != m.local.ClusterID {
		return nil, fmt.Errorf("it is of cluster %s", b.ClusterId)
	}
	return b, nil
}

// apply brings the copy forward by one batch, and by those that waited for it.
func (m *member) apply(b *statev1.Batch) error {
	var err error
	m.node.hub.change(func() (uint64, []*statev1.Delta) {
		var deltas []*statev1.Delta
		var applied bool
		if applied, err = m.node.replica.Apply(b); applied {
			deltas = b.Deltas
		}
		for applied {
			next := m.early.next(m.node.replica.Index())
			if next == nil {
				break
			}
			var bad error
			if applied, bad = m.node.replica.Apply(next); bad != nil {
				m.log.Warn("dropped a gossip message", "error", bad)
			} else if applied {
				deltas = slices.Concat(deltas, next.Deltas)
			}
		}
		return m.node.replica.Index(), deltas
	})
	if err == nil {
		m.changed()
	}
	return err
}

// changed tells the loops that the copy is another one.
func (m *member) changed() {
	poke(m.role)
	poke(m.nodesAt)
	poke(m.unsaved)
}

// reload makes the copy what the Raft store of this manager is, unless that is the older of the two: while Raft
// replays its log after a start, nothing may vanish that is forwarded already.
func (m *member) reload(s *state.Store) error {
	if s.ClusterID() == "" || s.Index() < m.node.replica.Index() {
		return nil
	}
	return m.mirror(s)
}

// mirror makes the copy what a store is.
func (m *member) mirror(s *state.Store) error {
	return m.replace(func() ([]*statev1.Delta, error) { return m.node.replica.Adopt(s) })
}

// load makes the copy what a snapshot is.
func (m *member) load(r io.Reader) error {
	return m.replace(func() ([]*statev1.Delta, error) { return m.node.replica.Load(bufio.NewReader(r)) })
}

// replace has f make the copy another one and say how it differs. Nobody can watch or change it meanwhile.
func (m *member) replace(f func() ([]*statev1.Delta, error)) error {
	var err error
	m.node.hub.change(func() (uint64, []*statev1.Delta) {
		var deltas []*statev1.Delta
		if deltas, err = f(); err == nil {
			m.early.forget() // it may be of another line
		}
		return m.node.replica.Index(), deltas
	})
	if err == nil {
		m.changed()
	}
	return err
}

// syncLoop keeps a worker's copy in line with the managers. Managers have Raft for that, while they know of a leader.
func (m *member) syncLoop(ctx context.Context) error {
	for {
		select {
		case <-m.behind:
		case <-time.After(jitter(syncEvery)):
		case <-ctx.Done():
			return nil
		}
		if s := m.seat.Load(); s != nil {
			if leader, _ := s.raft.Leader(); leader != "" {
				continue
			}
		}
		if err := m.sync(ctx); err != nil && ctx.Err() == nil {
			m.log.Debug("cannot ask the managers what is new", "error", err)
			if m.removed(ctx) {
				m.log.Warn("this node was removed from the cluster while it was away: it forgets its keys and stops forwarding for it")
				m.leave()
				return nil
			}
		}
		select {
		case <-time.After(syncPause):
		case <-ctx.Done():
			return nil
		}
	}
}

// jitter spreads what many nodes do at the same interval.
func jitter(d time.Duration) time.Duration { return d/2 + rand.N(d) }

// sync asks one manager for everything that this node's copy lacks.
func (m *member) sync(ctx context.Context) error {
	// Copies of the same index that differ are a fault of one of them. To fetch the whole is dear, and any node can claim
	// that its copy differs, so it is not done often.
	whole := m.differs.Swap(false) && time.Since(m.wholeAt) > wholeEvery
	if whole {
		m.wholeAt = time.Now()
		m.log.Warn("another node has a different copy of the same state: fetching all of it anew")
	}
	ask := func(ctx context.Context, p peerv1connect.PeerServiceClient) error {
		stream, err := p.Sync(ctx, &peerv1.SyncRequest{Since: m.node.replica.Index(), Whole: whole})
		if err != nil {
			return err
		}
		defer stream.Close()
		var snapshot bytes.Buffer // nobody is to wait for the network while it is loaded
		for stream.Receive() {
			switch msg := stream.Msg(); {
			case msg.Batch != nil:
				if msg.Batch.ClusterId != m.local.ClusterID {
					return fmt.Errorf("the batch is of cluster %s", msg.Batch.ClusterId)
				}
				if err := m.apply(msg.Batch); err != nil {
					return err
				}
			default:
				snapshot.Write(msg.Snapshot)
			}
		}
		if err := stream.Err(); err != nil || snapshot.Len() == 0 {
			return err
		}
		return m.load(&snapshot)
	}
	err := m.askManagers(ctx, syncTime, ask)
	if err == nil || !isTransient(err) {
		return err
	}
	for _, x := range m.strangers() {
		if serr := m.askOne(ctx, x, syncTime, ask); serr == nil {
			m.log.Info("the managers that this node knew do not answer, and another one did", "manager", x.Address)
			return nil
		}
	}
	return err
}

// strangers returns where managers may be of whom this node's copy knows nothing: after the cluster was made anew from a
// backup at another address, its manager is in the gossip, and in no copy. As everybody who is asked, they have to prove
// that they are managers. Their control port is taken to be the one that this node has.
func (m *member) strangers() []manager {
	g := m.gossip.Load()
	if g == nil {
		return nil
	}
	var out []manager
	for _, x := range g.Members() {
		if x.State == gossip.Alive && x.NodeID != m.local.NodeID && m.node.replica.Node(x.NodeID) == nil {
			out = append(out, manager{ID: x.NodeID, Address: netip.AddrPortFrom(x.Addr.Addr().Unmap(), m.local.ControlPort).String()})
		}
	}
	rand.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	return out[:min(len(out), maxStrangers)]
}

// copyLoop writes the copy to disk after changes, so that the next start can forward before it has asked anyone.
func (m *member) copyLoop(ctx context.Context) error {
	for {
		select {
		case <-m.unsaved:
		case <-ctx.Done():
			return nil
		}
		if err := m.node.saveCopy(); err != nil {
			m.log.Warn("cannot save the local copy of the state; a restart will have to wait for a manager", "error", err)
		}
		select {
		case <-time.After(saveEvery):
		case <-ctx.Done():
			select {
			case <-m.unsaved:
				return m.node.saveCopy()
			default:
				return nil
			}
		}
	}
}

func (n *Node) saveCopy() (err error) {
	if n.replica.Index() == 0 {
		return nil
	}
	file := n.cfg.copyFile()
	f, err := os.CreateTemp(filepath.Dir(file), filepath.Base(file)+".*")
	if err != nil {
		return err
	}
	w := bufio.NewWriter(f)
	_, err = n.replica.WriteTo(w)
	// Without a sync: what a power cut damages is noticed by its checksum and fetched anew.
	if err = errors.Join(err, w.Flush(), f.Close()); err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return os.Rename(f.Name(), file)
}

func (n *Node) loadCopy() error {
	f, err := os.Open(n.cfg.copyFile())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err = n.replica.Load(bufio.NewReader(f)); err != nil {
		return fmt.Errorf("%s: %w", n.cfg.copyFile(), err)
	}
	return nil
}

// openGossip starts the gossip of this membership.
func (m *member) openGossip() (*gossip.Gossip, error) {
	m.localMu.Lock()
	keys := m.local.GossipKeys
	m.localMu.Unlock()
	return gossip.New(gossip.Config{
		NodeID: m.local.NodeID, Cluster: m.local.ClusterID,
		Bind:       m.gossipBind(),
		Advertise:  netip.AddrPortFrom(m.addresses()[0], m.local.GossipPort),
		Addresses:  m.gossipsAt,
		Keys:       keys,
		PacketSize: m.node.gossipPayload,
		Deliver:    m.deliver,
		State:      m.digest,
		Behind:     m.onBehind,
		Events: func(e gossip.Event) {
			m.log.Info("gossip", "peer", e.NodeID, "event", e.Kind)
		},
		Rejoin: m.gossipManagers,
		Log:    m.log,
	})
}

// meet joins the gossip of the managers as soon as this node knows where they are.
func (m *member) meet(ctx context.Context) error {
	for {
		if to := m.gossipManagers(); len(to) > 0 {
			g := m.gossip.Load()
			m.meeting.Go(func() { // which takes 10 s when nobody answers, unless the gossip is closed
				if _, err := g.Join(to); err != nil && ctx.Err() == nil {
					m.log.Debug("cannot reach the gossip of some managers yet", "error", err)
				}
			})
			break
		}
		select {
		case <-m.nodesAt:
		case <-ctx.Done():
			return nil
		}
	}
	<-ctx.Done() // from here on the gossip looks after itself
	return nil
}

// digest says what this node knows.
func (m *member) digest() gossip.Digest {
	index, sum := m.node.replica.Position()
	return gossip.Digest{Index: index, Sum: sum}
}

// gossipManagers returns where the gossip of the managers is. A manager that is alone calls others as well: those who knew
// the managers from before a restore at another address do not know of this one.
func (m *member) gossipManagers() []netip.AddrPort {
	alone := m.seat.Load() != nil
	for id, alive := range m.node.Alive() {
		alone = alone && (id == m.local.NodeID || !alive)
	}
	var managers, others []netip.AddrPort
	for _, n := range m.node.replica.Nodes() {
		if n.Id == m.local.NodeID {
			continue
		}
		a, err := netip.ParseAddrPort(hostPort(n, n.GossipPort))
		switch {
		case err != nil:
		case n.Role == statev1.Role_ROLE_MANAGER:
			managers = append(managers, a)
		case alone:
			others = append(others, a)
		}
	}
	rand.Shuffle(len(others), func(i, j int) { others[i], others[j] = others[j], others[i] })
	return append(managers, others[:min(len(others), maxStrangers)]...)
}
