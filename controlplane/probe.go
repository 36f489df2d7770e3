package controlplane

import (
	"crypto/hkdf"
	"crypto/sha256"
	"fmt"
)

// probeInfo separates the keys of path probes from all else that may be derived from the same secrets.
const probeInfo = "overlayd path probe 1"

// ProbeKeys returns the keys, 32 bytes each, that seal the path probes between the members: one for each key of the gossip,
// in the same order, so that what is sealed with the first one is opened by all while keys are rotated. Who has them cannot
// read the gossip. It returns none if this node is in no cluster.
func (n *Node) ProbeKeys() ([][]byte, error) {
	m := n.member.Load()
	if m == nil {
		return nil, nil
	}
	m.localMu.Lock()
	secrets := m.local.GossipKeys
	m.localMu.Unlock()
	out := make([][]byte, 0, len(secrets))
	for _, secret := range secrets {
		key, err := hkdf.Key(sha256.New, secret, nil, probeInfo, sha256.Size)
		if err != nil {
			return nil, fmt.Errorf("derive a key for path probes: %w", err)
		}
		out = append(out, key)
	}
	return out, nil
}
