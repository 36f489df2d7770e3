package cluster

import (
	"bytes"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/overlayd/overlayd/controlplane/api/overlayd/state/v1"
)

func places(f *fake) []string {
	var out []string
	for _, a := range slices.SortedFunc(maps.Keys(f.nodes), netip.Addr.Compare) {
		var list []string
		for _, c := range f.nodes[a].Candidates {
			list = append(list, c.String())
		}
		out = append(out, a.String()+"="+strings.Join(list, ","))
	}
	return out
}

// Every other node is stated with all of its addresses, whether or not it has endpoints, and this one is not.
func TestNodesAreStated(t *testing.T) {
	w := newWorld(t)
	w.tell(true, node(w.self, "192.0.2.1", "203.0.113.1"), node("h1", "192.0.2.2", "203.0.113.2", "2001:db8::2"), node("h2", "2001:db8::3", "192.0.2.3"), node("h3", "2001:db8::4"))
	want := []string{"192.0.2.2=192.0.2.2,203.0.113.2,2001:db8::2", "2001:db8::3=2001:db8::3,192.0.2.3"}
	if got := places(w.v); !slices.Equal(got, want) {
		t.Errorf("stated %q, want %q: h3 shares no family with this host", got, want)
	}
	if w.v.self != netip.MustParseAddr("192.0.2.1") || len(w.v.keys) != 1 || len(w.v.keys[0]) != 32 {
		t.Errorf("probes are sealed in the name of %v with %d keys", w.v.self, len(w.v.keys))
	}
	// What stays the same is not said again.
	w.v.traced = true
	w.tell(false, node("h1", "192.0.2.2", "203.0.113.2", "2001:db8::2"))
	w.tidy(t.Context())
	if got := w.v.took(); len(got) > 1 { // open
		t.Errorf("calls %q", got)
	}
	w.tell(false, &statev1.Delta{RemovedNode: "h1"})
	w.calls("forget 192.0.2.2")
	// A reset without a node is its end, too.
	w.tell(true, node(w.self, "192.0.2.1", "203.0.113.1"))
	w.calls("forget 2001:db8::3")
}

// A node that gets another first address gets another name: it is stated before a network uses it, and forgotten when none
// does any more.
func TestNameOfANodeChanges(t *testing.T) {
	w := started(t)
	w.v.traced = true
	w.tell(false, node("h1", "203.0.113.2", "192.0.2.2"))
	w.calls("node 203.0.113.2 [203.0.113.2 192.0.2.2]",
		"peers blue [192.0.2.2 203.0.113.2 2001:db8::3]", "map blue 02:00:00:00:00:0b [10.42.0.11] 203.0.113.2", "peers blue [203.0.113.2 2001:db8::3]",
		"forget 192.0.2.2")
	// Only a candidate more: the name stays.
	w.tell(false, node("h1", "203.0.113.2", "192.0.2.2", "192.0.2.20"))
	w.calls("node 203.0.113.2 [203.0.113.2 192.0.2.2 192.0.2.20]")
	// Another node on the same host, set up anew, has the name from now on.
	w.tell(false, &statev1.Delta{RemovedNode: "h1"}, node("h9", "203.0.113.2"), goneEnd("e1"), end("e9", "n1", "h9", 19))
	w.calls("node 203.0.113.2 [203.0.113.2]", "unmap blue 02:00:00:00:00:0b", "map blue 02:00:00:00:00:13 [10.42.0.19] 203.0.113.2")
	if got, want := places(w.v), []string{"203.0.113.2=203.0.113.2", "2001:db8::3=2001:db8::3,192.0.2.3"}; !slices.Equal(got, want) {
		t.Errorf("stated %q, want %q", got, want)
	}
	// This node's own name.
	w.tell(false, node(w.self, "192.0.2.9", "192.0.2.1"))
	w.calls("keys 1 192.0.2.9")
}

// What the VTEP does not take is tried again, and can be seen.
func TestStatingFails(t *testing.T) {
	w := newWorld(t)
	w.v.traced = true
	w.v.fail["node"] = errFake
	w.tell(true, node(w.self, "192.0.2.1"), node("h1", "192.0.2.2"))
	if p := w.Problems(); len(p) != 1 || !strings.Contains(p[0], errFake.Error()) || len(w.v.nodes) != 0 {
		t.Errorf("problems %q, stated %q", p, places(w.v))
	}
	w.v.fail["node"] = nil
	w.tidy(t.Context())
	if p := w.Problems(); len(p) != 0 || len(w.v.nodes) != 1 {
		t.Errorf("problems %q, stated %q", p, places(w.v))
	}
}

// New keys of the gossip are new keys of the probes, at the latest with the next look at what failed.
func TestKeysFollow(t *testing.T) {
	w := newWorld(t)
	w.tell(true, node(w.self, "192.0.2.1"))
	first := w.v.keys
	w.v.keys = nil
	w.tidy(t.Context())
	if w.v.keys != nil {
		t.Error("the same keys are set again")
	}
	w.reached.keys = [][]byte{bytes.Repeat([]byte{1}, 32)} // as if those were rotated away
	w.tidy(t.Context())
	if len(w.v.keys) != 1 || !bytes.Equal(w.v.keys[0], first[0]) {
		t.Errorf("%d keys", len(w.v.keys))
	}
}

// A VTEP that stays when the node leaves its cluster knows nothing of the cluster any more.
func TestLeavingForgetsNodes(t *testing.T) {
	w := newWorld(t)
	w.tell(true, node(w.self, "192.0.2.1"), node("h1", "192.0.2.2"))
	if err := w.cp.Leave(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	w.tell(true)
	if len(w.v.nodes) != 0 || w.v.keys != nil || w.v.self.IsValid() {
		t.Errorf("left: %q, %d keys in the name of %v", places(w.v), len(w.v.keys), w.v.self)
	}
}
