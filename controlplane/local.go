package controlplane

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"

	"github.com/overlayd/overlayd/controlplane/api/overlayd/peer/v1"
	"github.com/overlayd/overlayd/controlplane/api/overlayd/state/v1"
)

// local is what a node remembers of its membership beside its keys and its copy of the state.
type local struct {
	ClusterID   string       `json:"cluster_id"`
	NodeID      string       `json:"node_id"`
	Name        string       `json:"name"`
	Addresses   []netip.Addr `json:"addresses"` // when it became a member
	Choice      Choice       `json:"choice"`
	ControlPort uint16       `json:"control_port"`
	GossipPort  uint16       `json:"gossip_port"`
	Managers    []manager    `json:"managers"`    // as last heard
	GossipKeys  [][]byte     `json:"gossip_keys"` // as last heard, the first one encrypts
	Joined      uint64       `json:"joined"`      // index of the state as of which this node is a member
}

// manager is where a manager is asked.
type manager struct {
	ID      string `json:"id"`
	Address string `json:"address"` // host:port of its control port
}

// loadLocal returns nil if the node is in no cluster.
func loadLocal(file string) (*local, error) {
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read what this node knows of its cluster: %w", err)
	}
	l := new(local)
	if err := json.Unmarshal(b, l); err != nil {
		return nil, fmt.Errorf("%s is damaged: %w: restore it, or remove the data directory and join again", file, err)
	}
	if l.ClusterID == "" || l.NodeID == "" || checkAddresses(l.Addresses) != nil {
		return nil, fmt.Errorf("%s lacks the cluster, the node or an address: restore it, or remove the data directory and join again", file)
	}
	return l, nil
}

func (l *local) save(file string) error {
	b, err := json.MarshalIndent(l, "", "  ")
	if err != nil {
		return err
	}
	return writeFile(file, append(b, '\n'))
}

// writeFile replaces file as a whole or not at all, also when the machine stops in between. Only the owner may read it.
func writeFile(file string, b []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(file), filepath.Base(file)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	_, err = f.Write(b)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err = os.Rename(f.Name(), file); err != nil {
		return err
	}
	dir, derr := os.Open(filepath.Dir(file))
	if derr != nil {
		return nil // it is in place; only whether that outlasts a power cut is open
	}
	_ = dir.Sync() // likewise
	return dir.Close()
}

// hostPort is the address of a port of a node, at its preferred address.
func hostPort(n *statev1.Node, port uint32) string {
	if all := hostPorts(n, port); len(all) > 0 {
		return all[0]
	}
	return ""
}

// hostPorts are the addresses of a port of a node, the preferred one first.
func hostPorts(n *statev1.Node, port uint32) []string {
	var out []string
	for _, a := range n.GetAddresses() {
		out = append(out, net.JoinHostPort(a, strconv.Itoa(int(port))))
	}
	return out
}

func managersFromWire(in []*peerv1.Manager) []manager {
	var out []manager
	for _, m := range in {
		if m.GetId() != "" && m.GetAddress() != "" {
			out = append(out, manager{ID: m.Id, Address: m.Address})
		}
	}
	return out
}

func managersToWire(in []manager) []*peerv1.Manager {
	var out []*peerv1.Manager
	for _, m := range in {
		out = append(out, &peerv1.Manager{Id: m.ID, Address: m.Address})
	}
	return out
}
