package cluster

import (
	"net/netip"
	"testing"

	"github.com/overlayd/overlayd/dataplane/mtu"
	"github.com/overlayd/overlayd/vtep"
)

// What is told to the control plane is what reaches every node by every address that answers.
func TestCarries(t *testing.T) {
	a, b := netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("192.0.2.3")
	path := func(p netip.Addr, size mtu.PathMTU, candidates ...vtep.CandidateStatus) vtep.PathStatus {
		return vtep.PathStatus{Peer: p, Remote: p, PathMTU: size, Learned: vtep.LearnedProbe, Settled: true, Candidates: candidates}
	}
	searching, routed := path(b, 1400), path(b, 1400)
	searching.Settled, routed.Learned = false, vtep.LearnedRoute
	r := reached{stated: map[string]vtep.Node{"a": {Address: a}, "b": {Address: b}}}
	for name, c := range map[string]struct {
		paths []vtep.PathStatus
		want  int
	}{
		"all proven":            {[]vtep.PathStatus{path(a, 1500), path(b, 1400)}, 1400},
		"one not probed":        {[]vtep.PathStatus{path(a, 1500)}, 0},
		"one still searched":    {[]vtep.PathStatus{path(a, 1500), searching}, 0},
		"one that answers none": {[]vtep.PathStatus{path(a, 1500), routed}, 0},
		"one lost":              {[]vtep.PathStatus{path(a, 1500), path(b, 1400, vtep.CandidateStatus{State: "lost", Chosen: true})}, 0},
		"a narrower address": {[]vtep.PathStatus{path(a, 1500), path(b, 1400,
			vtep.CandidateStatus{State: "reachable", PathMTU: 1300}, vtep.CandidateStatus{State: "unanswered", PathMTU: 1280})}, 1300},
		"a stranger's path": {[]vtep.PathStatus{path(a, 1500), path(b, 1400), path(netip.MustParseAddr("192.0.2.9"), 1290)}, 1400},
	} {
		if got := r.carries(c.paths); got != c.want {
			t.Errorf("%s: %d, want %d", name, got, c.want)
		}
	}
	if got := (&reached{}).carries(nil); got != 0 {
		t.Errorf("without nodes: %d", got)
	}
}
