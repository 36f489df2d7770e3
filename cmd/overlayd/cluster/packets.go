package cluster

import (
	"slices"

	"github.com/overlayd/overlayd/vtep"
)

// sizePackets tells the control plane how large its own packets may be.
func (f *Follower) sizePackets() {
	if f.vtep == nil {
		f.cp.SetPathMTU(0)
		return
	}
	f.cp.SetPathMTU(f.reached.carries(f.vtep.Paths()))
}

// carries returns what has been proven to reach every node that is stated, in bytes; 0 if that is not known of all.
// Which of a node's addresses the packet goes to does not matter: the size is that of the worst one that answers.
func (r *reached) carries(paths []vtep.PathStatus) int {
	least := 0
	for _, n := range r.stated {
		at := slices.IndexFunc(paths, func(p vtep.PathStatus) bool { return p.Peer == n.Address })
		if at < 0 || paths[at].Learned != vtep.LearnedProbe || !paths[at].Settled || !reachable(&paths[at]) {
			return 0
		}
		sizes := []int{int(paths[at].PathMTU)}
		for _, c := range paths[at].Candidates {
			if c.State == "reachable" {
				sizes = append(sizes, int(c.PathMTU))
			}
		}
		if size := slices.Min(sizes); least == 0 || size < least {
			least = size
		}
	}
	return least
}
