package interop

import (
	"slices"
	"testing"

	"github.com/overlayd/overlayd/bench/lab"
	"github.com/overlayd/overlayd/controlplane/api/overlayd/v1"
	"github.com/overlayd/overlayd/vtep"
)

// TestFeaturesOff turns every feature off, one after the other and then all of them, and talks to an overlayd
// that has them all and to the kernel.
func TestFeaturesOff(t *testing.T) {
	type run struct {
		name     string
		outer    lab.Family
		disable  []string
		checksum string
		offloads map[string]bool
	}
	var runs []run
	for _, f := range vtep.FeatureNames() {
		runs = append(runs, run{name: f, outer: lab.IPv4, disable: []string{f}})
	}
	bare := map[string]bool{"tunnel": false, "checksum": false, "tso": false, "uso": false}
	runs = append(runs,
		run{name: "outer checksum", outer: lab.IPv4, checksum: "off"},
		run{name: "everything", outer: lab.IPv4, disable: vtep.FeatureNames()},
		run{name: "everything over IPv6 on bare links", outer: lab.IPv6, disable: vtep.FeatureNames(), offloads: bare})
	for _, r := range runs {
		t.Run(r.name, func(t *testing.T) {
			sc := scenario(r.outer, lab.Overlayd, lab.Overlayd, lab.Kernel)
			sc.Hosts[0].Overlayd = lab.OverlaydSettings{Disable: r.disable, Checksum: r.checksum, Queues: 2}
			for i := range sc.Hosts {
				sc.Hosts[i].Offloads = r.offloads
			}
			l := up(t, sc)
			h1 := l.Host("h1")
			isOff(t, h1, r.disable)

			w := watch(t, l, r.offloads != nil)
			for _, other := range []string{"h2", "h3"} {
				t.Run("with "+string(l.Host(other).Kind(network)), func(t *testing.T) {
					pair(t, w, h1, l.Host(other), 20*megabyte)
				})
			}
			t.Run("all at once", func(t *testing.T) { groups(t, w, l) })
			seen := w.end(t)
			trains := seen.trains[underlay(h1)]
			// The water backend reads one frame at a time, so that there is nothing to put together.
			cut := slices.Contains(r.disable, vtep.FeatureUDPGSO) || slices.Contains(r.disable, vtep.FeatureTAPVNet) || r.checksum == "off" || r.offloads != nil
			if cut && trains > 0 {
				t.Errorf("%d trains on the wire", trains)
			}
			if !cut && trains == 0 {
				t.Error("no trains on the wire: nothing was batched")
			}
			for _, h := range []*lab.Host{h1, l.Host("h2")} {
				n := conserved(t, h.Socket())[network]
				for reason, count := range n.GetCounters().GetDropsByReason() {
					if reason != "send_no_buffer" {
						t.Errorf("%s dropped %d frames: %s", h.Name(), count, reason)
					}
				}
			}
		})
	}
}

// isOff looks that the daemon says so of just these features, and of those that need them.
func isOff(t *testing.T, h *lab.Host, disable []string) {
	t.Helper()
	want := slices.Clone(disable)
	needs := map[string][]string{
		vtep.FeatureTAPVNet: {vtep.FeatureTAPTSO, vtep.FeatureTAPUSO, vtep.FeatureTAPMultiqueue, vtep.FeatureFairQueues, vtep.FeatureGSOMaxSize, vtep.FeatureTunnelGSO, vtep.FeatureFastPath},

		vtep.FeatureTAPMultiqueue: {vtep.FeatureFairQueues},

		vtep.FeatureTAPTSO: {vtep.FeatureTAPUSO, vtep.FeatureGSOMaxSize, vtep.FeatureTunnelGSO, vtep.FeatureFastPath},

		vtep.FeatureTAPUSO: {vtep.FeatureFastPath},
	}
	for _, f := range disable {
		want = append(want, needs[f]...)
	}
	if h.Spec().Overlayd.Checksum == "off" {
		want = append(want, vtep.FeatureUDPGSO)
	}
	slices.Sort(want)
	want = slices.Compact(want)
	var off []string
	for _, f := range statusOf(t, h.Socket()).GetFeatures() {
		if !f.On {
			off = append(off, f.Name)
			if f.Reason == "" {
				t.Errorf("%s is off without a reason", f.Name)
			}
		}
	}
	slices.Sort(off)
	if !slices.Equal(off, want) {
		t.Errorf("off are %v, want %v", off, want)
	}
	backend := "vnet"
	if slices.Contains(disable, vtep.FeatureTAPVNet) {
		backend = "water"
	}
	if n := networksOf(t, h.Socket()); !slices.ContainsFunc(n, func(n *overlaydv1.Network) bool { return n.Backend == backend }) {
		t.Errorf("the backend is not %s: %v", backend, n)
	}
}
