package state

import (
	"bytes"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/overlayd/overlayd/controlplane/api/overlayd/state/v1"
)

// Bounds of the secrets, in bytes but for maxGossipKeys.
const (
	maxDER         = 16 << 10
	minTokenSecret = 16 // 128 bits
	maxTokenSecret = 64
	gossipKeyLen   = 32 // AES-256
	maxGossipKeys  = 16
)

// checkSecrets checks those parts that are set. No message has any of them in it.
func checkSecrets(m *statev1.Secrets) *refusal {
	if (len(m.CaCertificate) == 0) != (len(m.CaKey) == 0) {
		return invalid("ca_key", "the certificate and the key of the CA belong together: give both or neither")
	}
	for _, x := range []struct {
		field       string
		value       []byte
		least, most int
	}{
		{"ca_certificate", m.CaCertificate, 1, maxDER},
		{"ca_key", m.CaKey, 1, maxDER},
		{"worker_token", m.WorkerToken, minTokenSecret, maxTokenSecret},
		{"manager_token", m.ManagerToken, minTokenSecret, maxTokenSecret},
	} {
		if n := len(x.value); n > 0 && (n < x.least || n > x.most) {
			return invalid(x.field, "it has %d bytes: give from %d to %d", n, x.least, x.most)
		}
	}
	if len(m.GossipKeys) > maxGossipKeys {
		return invalid("gossip_keys", "%d keys are too many: give at most %d", len(m.GossipKeys), maxGossipKeys)
	}
	for i, k := range m.GossipKeys {
		if len(k) != gossipKeyLen {
			return invalid(element("gossip_keys", i), "it has %d bytes: give %d", len(k), gossipKeyLen)
		}
		if slices.ContainsFunc(m.GossipKeys[:i], func(other []byte) bool { return bytes.Equal(other, k) }) {
			return invalid(element("gossip_keys", i), "it is there twice: give each key once")
		}
	}
	return nil
}

// checkAllSecrets checks that nothing is missing, too.
func checkAllSecrets(m *statev1.Secrets) *refusal {
	for _, x := range []struct {
		field   string
		missing bool
	}{
		{"ca_certificate", len(m.GetCaCertificate()) == 0},
		{"ca_key", len(m.GetCaKey()) == 0},
		{"worker_token", len(m.GetWorkerToken()) == 0},
		{"manager_token", len(m.GetManagerToken()) == 0},
		{"gossip_keys", len(m.GetGossipKeys()) == 0},
	} {
		if x.missing {
			return invalid(x.field, "it is missing: a cluster needs all of its secrets from the start")
		}
	}
	if bad := checkSecrets(m); bad != nil {
		return bad
	}
	if bytes.Equal(m.WorkerToken, m.ManagerToken) {
		return invalid("manager_token", "it is the worker token, and so would make every worker a manager: make another one")
	}
	return nil
}

// mergeSecrets returns the secrets with the parts of changes that are set in place of the old ones. Either may be nil.
func mergeSecrets(old, changes *statev1.Secrets, index uint64) *statev1.Secrets {
	pick := func(before, after []byte) []byte {
		if len(after) > 0 {
			return bytes.Clone(after)
		}
		return before
	}
	keys := old.GetGossipKeys()
	if len(changes.GetGossipKeys()) > 0 {
		keys = make([][]byte, len(changes.GossipKeys))
		for i, k := range changes.GossipKeys {
			keys[i] = bytes.Clone(k)
		}
	}
	return &statev1.Secrets{
		CaCertificate: pick(old.GetCaCertificate(), changes.GetCaCertificate()),
		CaKey:         pick(old.GetCaKey(), changes.GetCaKey()),
		WorkerToken:   pick(old.GetWorkerToken(), changes.GetWorkerToken()),
		ManagerToken:  pick(old.GetManagerToken(), changes.GetManagerToken()),
		GossipKeys:    keys,
		Index:         index,
	}
}

// Secrets returns what only managers have, or nil before there is a cluster.
func (s *Store) Secrets() *statev1.Secrets {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return proto.CloneOf(s.secrets)
}

func (c *command) setSecrets(k *statev1.SetSecrets) *refusal {
	if k.Secrets == nil {
		return invalid("secrets", "it is missing: give the secrets to replace")
	}
	if bad := checkSecrets(k.Secrets); bad != nil {
		return bad.under("secrets")
	}
	next := mergeSecrets(c.store.secrets, k.Secrets, c.index)
	if bad := checkAllSecrets(next); bad != nil {
		return bad.under("secrets")
	}
	c.store.secrets = next
	return nil
}
