package controlplane

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"

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
	if err := s.raft.Restore(ctx, in); err != nil {
		return 0, err
	}
	return s.store.Index(), s.member.mirror(s.store)
}

// refound makes the cluster of a backup anew, with this node as its first manager.
func (n *Node) refound(ctx context.Context, in io.Reader, o Options) (index uint64, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	l, err := n.newLocal(o)
	if err != nil {
		return 0, err
	}
	f, err := os.CreateTemp(n.cfg.Dir, "restore.*") // mode 0600
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
	for i := 2; store.NodeByName(l.Name) != nil; i++ {
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
			result, err := s.propose(ctx, &statev1.Command{Kind: &statev1.Command_AddNode{AddNode: &statev1.AddNode{
				Node: l.wire(n.cfg.VXLANPort, m.creds.Load(), statev1.Role_ROLE_MANAGER),
			}}})
			if err != nil {
				return err
			}
			index = s.store.Index()
			return m.setJoined(result.Index)
		})
	}
	if err := n.start(ctx, m); err != nil {
		return 0, fmt.Errorf("make the cluster of the backup anew: %w", err)
	}
	return index, nil
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
