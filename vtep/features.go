package vtep

import (
	"fmt"
	"slices"
	"strings"
	"sync"
)

// The names of the features that can be turned off, one by one.
const (
	FeatureTAPVNet       = "tap-vnet"            // virtio-net header; without it, the water backend
	FeatureTAPTSO        = "tap-tso"             // TCP superframes at the TAP
	FeatureTAPUSO        = "tap-uso"             // UDP superframes at the TAP
	FeatureTAPMultiqueue = "tap-multiqueue"      // several queues a TAP
	FeatureFairQueues    = "fair-queues"         // several queues a worker, over which flows are spread
	FeatureUDPGSO        = "udp-gso"             // UDP_SEGMENT
	FeatureUDPGRO        = "udp-gro"             // UDP_GRO
	FeatureUDPBatch      = "udp-batch"           // recvmmsg and sendmmsg with more than one message
	FeatureSourcePorts   = "source-port-entropy" // a pool of source ports
	FeatureGSOMaxSize    = "gso-max-size"        // TCP superframes sized to fit one send
	FeatureTunnelGSO     = "tunnel-gso"          // TCP superframes handed to the underlay device uncut
	FeatureBulkPoll      = "bulk-poll"           // a worker does not sleep between superframes that come fast
	FeaturePrecedence    = "precedence"          // workers run before other programs
	FeatureFastPath      = "fast-path"           // known pairs of stations are forwarded in the kernel, by BPF
	FeaturePathProbes    = "path-probes"         // proof of what each path carries, and of which address is best
	FeaturePortGuard     = "port-guard"          // nftables rules that keep containers of one host from posing as each other
)

// FeatureNames returns the names of all features, in the order in which they are listed.
func FeatureNames() []string {
	return []string{
		FeatureTAPVNet, FeatureTAPTSO, FeatureTAPUSO, FeatureTAPMultiqueue, FeatureFairQueues,
		FeatureUDPGSO, FeatureUDPGRO, FeatureUDPBatch, FeatureSourcePorts, FeatureGSOMaxSize,
		FeatureTunnelGSO, FeatureBulkPoll, FeaturePrecedence, FeatureFastPath, FeaturePathProbes, FeaturePortGuard,
	}
}

// features keeps what is on and why the rest is off. Any goroutine may use it: what is missing may turn out
// while the VTEP runs and its status is read.
type features struct {
	mu  sync.Mutex
	off map[string]string // guarded by mu
}

func newFeatures(disable []string) (*features, error) {
	f := &features{off: map[string]string{}}
	for i, name := range disable {
		if !slices.Contains(FeatureNames(), name) {
			return nil, &ConfigError{
				Field: fmt.Sprintf("disable[%d]", i),
				Err:   fmt.Errorf("%q is not a feature: use one of %s", name, strings.Join(FeatureNames(), ", ")),
			}
		}
		f.off[name] = "turned off by the operator"
	}
	return f, nil
}

func (f *features) on(name string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.off[name] == ""
}

// missing notes why a feature that was asked for is not there. The first reason stands.
func (f *features) missing(name string, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err != nil && f.off[name] == "" {
		f.off[name] = err.Error()
	}
}

func (f *features) list() []Feature {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []Feature
	for _, name := range FeatureNames() {
		why := f.off[name]
		out = append(out, Feature{Name: name, On: why == "", Reason: why})
	}
	return out
}
