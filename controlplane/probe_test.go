package controlplane

import (
	"bytes"
	"encoding/hex"
	"testing"
)

// The keys are those of HKDF (RFC 5869), in the order of the secrets, and not the secrets.
func TestProbeKeys(t *testing.T) {
	n := &Node{}
	if keys, err := n.ProbeKeys(); len(keys) != 0 || err != nil {
		t.Errorf("outside of a cluster: %d keys, %v", len(keys), err)
	}
	one, two := bytes.Repeat([]byte{1}, secretLen), bytes.Repeat([]byte{2}, secretLen)
	m := &member{local: &local{GossipKeys: [][]byte{one, two}}}
	n.member.Store(m)
	keys, err := n.ProbeKeys()
	if err != nil || len(keys) != 2 {
		t.Fatalf("%d keys, %v", len(keys), err)
	}
	// From an implementation of its own, of HMAC alone.
	if got := hex.EncodeToString(keys[0]); got != "b3b3f67d3c06f4c38075e86bf92c445ec57fff5cad42bae22b04f7e144187918" {
		t.Errorf("the first is %s", got)
	}
	m.local.GossipKeys = [][]byte{two, one}
	turned, err := n.ProbeKeys()
	if err != nil || !bytes.Equal(turned[0], keys[1]) || !bytes.Equal(turned[1], keys[0]) {
		t.Errorf("the order is not that of the secrets: %v", err)
	}
	if bytes.Equal(keys[0], one) || bytes.Equal(keys[0], keys[1]) {
		t.Error("a key is its secret, or that of another")
	}
}
