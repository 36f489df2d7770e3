package state

import (
	"errors"
	"fmt"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/overlayd/overlayd/controlplane/api/overlayd/state/v1"
)

const seedLen = 16 // bytes

// Store is the managers' copy of the state: what the Raft log builds. Make one with NewStore. Its methods may be called
// from many goroutines; the calls of Apply are the caller's to put in the order of the log.
type Store struct {
	Tables
	applied  uint64           // index of the last entry that was applied
	secrets  *statev1.Secrets // replaced and never changed; nil before there is a cluster
	requests *requests
	ring     ring
}

// NewStore returns a Store of no cluster. Its first command is Bootstrap.
func NewStore() *Store {
	return &Store{Tables: Tables{c: newContent(newAllocator())}, requests: newRequests()}
}

// command is one that is being applied. Its methods look first and change last: once anything has changed, they do not
// refuse any more.
type command struct {
	*content
	store  *Store
	index  uint64
	time   *timestamppb.Timestamp
	seed   []byte
	result *statev1.Result
	deltas []*statev1.Delta
}

// Apply applies the entry of the Raft log at index: a statev1.Command in wire form. The result says whether the command
// was refused, and why. The batch is what it changed for everyone to know, nil if nothing; it is shared with Since and
// must not be changed.
//
// An error means that this code cannot tell what the command does: it is a *VersionError, or the entry is no command,
// or comes out of turn. The state is then untouched, and the node must apply nothing more and say so.
func (s *Store) Apply(index uint64, entry []byte) (*statev1.Result, *statev1.Batch, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if index <= s.applied {
		return nil, nil, fmt.Errorf("apply the command at index %d: the one at index %d was applied before it; the Raft store and the state of this node do not belong together: remove this node's data and join again",
			index, s.applied)
	}
	cmd := new(statev1.Command)
	if err := proto.Unmarshal(entry, cmd); err != nil {
		return nil, nil, fmt.Errorf("apply the command at index %d: it cannot be decoded: %w: the Raft log of this node is damaged, or of a newer version: upgrade overlayd, or remove this node's data and join again",
			index, err)
	}
	if err := Understood(cmd); err != nil {
		return nil, nil, fmt.Errorf("apply the command at index %d: %w", index, err)
	}
	apply := kindOf(cmd)
	if first := s.requests.byID[cmd.RequestId]; first != nil {
		s.applied = index
		return proto.CloneOf(first), nil, nil
	}

	c := &command{content: s.c, store: s, index: index, seed: cmd.Seed, result: &statev1.Result{Index: index}}
	bad := c.begin(cmd)
	if bad == nil {
		bad = apply(c)
	}
	s.applied = index
	if bad != nil {
		c.result = &statev1.Result{Index: index, Error: bad.toWire()}
	}
	if cmd.RequestId != "" && len(cmd.RequestId) <= maxRequestID {
		s.requests.add(cmd.RequestId, proto.CloneOf(c.result))
	}
	if len(c.deltas) == 0 {
		return c.result, nil, nil
	}
	batch := &statev1.Batch{ClusterId: s.c.clusterID, Previous: s.c.index, Index: index, Deltas: c.deltas}
	s.c.index = index
	s.ring.add(batch)
	return c.result, batch, nil
}

// Understood returns an error, such as a *VersionError, for a command that Apply would stop at. A leader has to ask before
// it puts a command of somebody else into the log, from where nothing takes it out again: each manager of the same
// version would stop there.
func Understood(cmd *statev1.Command) error {
	if v := cmd.GetVersion(); v > RulesVersion {
		return &VersionError{What: "the command", Needs: v}
	}
	if kindOf(cmd) == nil {
		return errors.New("the command is of a kind that this node does not know: upgrade overlayd on this node")
	}
	return nil
}

// begin checks what all commands have.
func (c *command) begin(cmd *statev1.Command) (bad *refusal) {
	if cmd.Version == 0 {
		return invalid("version", "it is missing: give the version of the rules that the command needs, at most %d", RulesVersion)
	}
	if len(cmd.RequestId) > maxRequestID {
		return invalid("request_id", "%d bytes are too many: give at most %d", len(cmd.RequestId), maxRequestID)
	}
	if len(cmd.Seed) != seedLen {
		return invalid("seed", "it has %d bytes: give %d random ones", len(cmd.Seed), seedLen)
	}
	if c.time, bad = checkTime("time", cmd.Time); bad != nil {
		return bad
	}
	if _, first := cmd.Kind.(*statev1.Command_Bootstrap); !first && c.clusterID == "" {
		return refuse(statev1.Error_KIND_REFUSED, "", "there is no cluster yet: make one with `overlayctl init`, or join one")
	}
	return nil
}

// kindOf returns what applies a command, nil if this code does not know its kind.
func kindOf(cmd *statev1.Command) func(*command) *refusal {
	switch k := cmd.GetKind().(type) {
	case *statev1.Command_Bootstrap:
		return func(c *command) *refusal { return c.bootstrap(k.Bootstrap).under("bootstrap") }
	case *statev1.Command_AddNode:
		return func(c *command) *refusal { return c.addNode(k.AddNode).under("add_node") }
	case *statev1.Command_UpdateNode:
		return func(c *command) *refusal { return c.updateNode(k.UpdateNode).under("update_node") }
	case *statev1.Command_RemoveNode:
		return func(c *command) *refusal { return c.removeNode(k.RemoveNode).under("remove_node") }
	case *statev1.Command_CreateNetwork:
		return func(c *command) *refusal { return c.createNetwork(k.CreateNetwork).under("create_network") }
	case *statev1.Command_RemoveNetwork:
		return func(c *command) *refusal { return c.removeNetwork(k.RemoveNetwork).under("remove_network") }
	case *statev1.Command_AddEndpoint:
		return func(c *command) *refusal { return c.addEndpoint(k.AddEndpoint).under("add_endpoint") }
	case *statev1.Command_ConfirmEndpoint:
		return func(c *command) *refusal { return c.confirmEndpoint(k.ConfirmEndpoint).under("confirm_endpoint") }
	case *statev1.Command_MoveEndpoint:
		return func(c *command) *refusal { return c.moveEndpoint(k.MoveEndpoint).under("move_endpoint") }
	case *statev1.Command_RemoveEndpoint:
		return func(c *command) *refusal { return c.removeEndpoint(k.RemoveEndpoint).under("remove_endpoint") }
	case *statev1.Command_CollectLeases:
		return func(c *command) *refusal { return c.collectLeases().under("collect_leases") }
	case *statev1.Command_SetSecrets:
		return func(c *command) *refusal { return c.setSecrets(k.SetSecrets).under("set_secrets") }
	}
	return nil
}

// derive makes a number of the seed for a purpose.
func (c *command) derive(purpose string, attempt int) uint64 {
	return derive(c.seed, c.index, purpose, attempt)
}

// newID makes an ID that taken does not know.
func (c *command) newID(purpose string, taken func(uint64) bool) uint64 {
	for attempt := 0; ; attempt++ {
		if id := c.derive(purpose, attempt); id != 0 && !taken(id) {
			return id
		}
	}
}
