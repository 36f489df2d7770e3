package controlplane

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math"
	"net/netip"
	"os"
	"slices"

	"github.com/overlayd/overlayd/controlplane/api/overlayd/state/v1"
	"github.com/overlayd/overlayd/controlplane/consensus"
	"github.com/overlayd/overlayd/controlplane/identity"
	"github.com/overlayd/overlayd/controlplane/state"
)

// Backup writes the whole state, with the secrets, and a checksum. Only a manager has it.
func (n *Node) Backup(ctx context.Context, w io.Writer) error {
	s, err := n.managing()
	if err != nil {
		return err
	}
	return s.raft.Backup(ctx, w)
}

// Restore takes what Backup wrote. In a cluster it replaces the whole state, and only the manager that leads can do it. On
// a node that is in none, o says how this node appears in the restored cluster, as its first manager. It returns the
// index of the state.
func (n *Node) Restore(ctx context.Context, in io.Reader, o Options) (uint64, error) {
	if n.member.Load() == nil {
		return n.refound(ctx, in, o)
	}
	s, err := n.managing()
	if err != nil {
		return 0, err
	}
	present := s.store.Nodes()
	if err := s.raft.Restore(ctx, in); err != nil {
		return 0, err
	}
	if err := s.member.mirror(s.store); err != nil {
		return 0, err
	}
	if err := s.reunite(ctx, present); err != nil {
		return 0, fmt.Errorf("the backup is restored, but not all nodes may know of it yet: %w; see `overlayctl node ls`", err)
	}
	return s.store.Index(), nil
}

// checkBackup says whether this cluster can go on with the state of a backup.
func (s *seat) checkBackup(r io.Reader) error {
	store := state.NewStore()
	if err := store.Restore(r); err != nil {
		return err
	}
	if here := s.store.ClusterID(); here != "" && store.ClusterID() != here {
		return Refusal{Kind: statev1.Error_KIND_REFUSED, Message: fmt.Sprintf("the backup is of cluster %s, and this is %s: restore it on a host that is in no cluster", store.ClusterID(), here)}
	}
	return nil
}

// reunite makes the nodes that are here members of a state from before they were. Without that the managers which came
// later, this one perhaps, would leave. And it makes a change that everybody hears of: the copies of the others are of a
// later index than the backup, and nothing else would tell them that they are no longer what the managers have.
func (s *seat) reunite(ctx context.Context, present []*statev1.Node) error {
	var errs []error
	for _, n := range present {
		if now := s.store.Node(n.Id); now != nil && now.Role == n.Role {
			continue
		}
		if _, err := s.propose(ctx, &statev1.Command{Kind: &statev1.Command_AddNode{AddNode: &statev1.AddNode{Node: n}}}); err != nil {
			errs = append(errs, fmt.Errorf("keep node %s: %w", n.Name, err))
		}
	}
	self := s.store.Node(s.member.local.NodeID)
	for _, a := range []statev1.Availability{statev1.Availability_AVAILABILITY_DRAIN, statev1.Availability_AVAILABILITY_ACTIVE, self.GetAvailability()} {
		if _, err := s.propose(ctx, &statev1.Command{Kind: &statev1.Command_UpdateNode{UpdateNode: &statev1.UpdateNode{Id: s.member.local.NodeID, Availability: a}}}); err != nil {
			errs = append(errs, fmt.Errorf("tell the other nodes: %w", err))
		}
	}
	return errors.Join(errs...)
}

// refound makes the cluster of a backup anew, with this node as its first manager.
func (n *Node) refound(ctx context.Context, in io.Reader, o Options) (index uint64, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	l, err := n.newLocal(o)
	if err != nil {
		return 0, err
	}
	f, err := os.CreateTemp(n.cfg.Dir, restorePattern) // mode 0600
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, f.Close(), os.Remove(f.Name())) }()
	store, err := readState(io.TeeReader(in, f))
	if err != nil {
		return 0, err
	}
	secrets := store.Secrets()
	authority, err := identity.ParseAuthority(secrets.GetCaCertificate(), secrets.GetCaKey())
	if err != nil {
		return 0, fmt.Errorf("the authority of the backup: %w", err)
	}
	l.ClusterID = store.ClusterID()
	l.Joined = math.MaxUint64 // the state of the backup does not know this node; that is no removal
	for store.NodeByName(l.Name) != nil {
		if o.Name != "" {
			return 0, Refusal{Kind: statev1.Error_KIND_EXISTS, Field: "restore.name", Message: fmt.Sprintf("the backup has a node %q: choose another name for this one", l.Name)}
		}
		l.Name = fmt.Sprintf("%.56s-%.6s", l.Name, l.NodeID)
	}
	m, err := n.firstManager(l, authority, secrets)
	if err != nil {
		return 0, err
	}
	m.found = func(ctx context.Context, s *seat) error {
		return s.begin(ctx, func(ctx context.Context) error {
			if _, err := f.Seek(0, io.SeekStart); err != nil {
				return err
			}
			if err := s.raft.Restore(ctx, f); err != nil {
				return err
			}
			result, err := s.inherit(ctx, l.wire(n.cfg.VXLANPort, m.creds.Load(), statev1.Role_ROLE_MANAGER))
			if err != nil {
				return err
			}
			index = s.store.Index()
			m.setJoined(result.Index)
			return nil
		})
	}
	if err := n.start(ctx, m); err != nil {
		return 0, fmt.Errorf("make the cluster of the backup anew: %w", err)
	}
	return index, nil
}

// inherit adds the first manager of a cluster that is made anew. It may have the address of a node of the backup, as when the
// same host was installed again: then that one is no more, and what was attached to it neither. It has to give the address
// up before it goes, since it may be the last manager.
func (s *seat) inherit(ctx context.Context, self *statev1.Node) (*statev1.Result, error) {
	var former []string
	for _, old := range s.store.Nodes() {
		if !slices.ContainsFunc(old.Addresses, func(a string) bool { return slices.Contains(self.Addresses, a) }) {
			continue
		}
		former = append(former, old.Id)
		nowhere := netip.MustParseAddr("2001:db8::").As16() // for documentation (RFC 3849): nobody has it
		id, err := hex.DecodeString(old.Id)
		if err != nil {
			return nil, err
		}
		copy(nowhere[8:], id)
		if _, err := s.propose(ctx, &statev1.Command{Kind: &statev1.Command_UpdateNode{UpdateNode: &statev1.UpdateNode{Id: old.Id, Addresses: []string{netip.AddrFrom16(nowhere).String()}}}}); err != nil {
			return nil, err
		}
	}
	result, err := s.propose(ctx, &statev1.Command{Kind: &statev1.Command_AddNode{AddNode: &statev1.AddNode{Node: self}}})
	for _, id := range former {
		if err == nil {
			_, err = s.propose(ctx, &statev1.Command{Kind: &statev1.Command_RemoveNode{RemoveNode: &statev1.RemoveNode{Id: id, Force: true}}})
		}
	}
	return result, err
}

// readState returns the state of a backup.
func readState(in io.Reader) (*state.Store, error) {
	r, w := io.Pipe()
	go func() { // ends with the pipe
		w.CloseWithError(consensus.ReadBackup(in, w))
	}()
	store := state.NewStore()
	err := store.Restore(r)
	if err == nil {
		// What is behind the state, its checksum among it, is looked at too.
		_, err = io.Copy(io.Discard, r)
	}
	r.CloseWithError(err)
	if err != nil {
		return nil, err
	}
	return store, nil
}

func (n *Node) managing() (*seat, error) {
	m, err := n.current()
	if err != nil {
		return nil, err
	}
	if s := m.seat.Load(); s != nil {
		return s, nil
	}
	return nil, Refusal{Kind: statev1.Error_KIND_REFUSED, Message: "only managers have the whole state: run this on a manager"}
}

// Recover makes the manager whose data lies in dir the only one of its cluster, for when so many managers are lost for
// good that no leader can be elected. Networks, endpoints, addresses, VNIs and the CA stay. Its daemon must not
// run. It returns the ID of the node.
func Recover(dir string) (string, error) {
	cfg := Config{Dir: dir}
	if err := cfg.complete(); err != nil {
		return "", err
	}
	l, err := loadLocal(cfg.localFile())
	if err != nil {
		return "", err
	}
	if l == nil {
		return "", ErrNotMember
	}
	return l.NodeID, consensus.Recover(cfg.raftDir(), consensus.Server{ID: l.NodeID, Address: l.control(), Voter: true}, recovering{state.NewStore()})
}

// recovering is the state while Raft is made anew: nobody watches it.
type recovering struct{ store *state.Store }

func (r recovering) Apply(index uint64, command []byte) any {
	result, _, err := r.store.Apply(index, command)
	if err != nil {
		return err
	}
	return result
}

func (r recovering) Snapshot() (consensus.Snapshot, error) { return r.store.Snapshot(), nil }
func (r recovering) Restore(in io.Reader) error            { return r.store.Restore(in) }
