package controlplane

import "testing"

func TestGossipPayload(t *testing.T) {
	var n Node
	for _, c := range []struct{ path, want int }{
		{0, 1232}, {-1, 1232}, {576, 1232}, {1280, 1232}, {1400, 1352}, {1500, 1452}, {9000, 8952}, {0, 1232},
	} {
		n.SetPathMTU(c.path)
		if got := n.gossipPayload(); got != c.want {
			t.Errorf("paths of %d: %d, want %d", c.path, got, c.want)
		}
	}
}
