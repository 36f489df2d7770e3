package vtep

import (
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/dataplane/forward"
	"github.com/overlayd/overlayd/vtep/guard"
	"github.com/overlayd/overlayd/vtep/link"
)

// guarded is what the rules at the ports of a sandbox have dropped, as far as it has been counted.
type guarded struct {
	mu      sync.Mutex
	counted map[forward.DropReason]guard.Count // guarded by mu
}

// guard brings the rules at the containers' ports to what is attached, and reports whether they were others. Containers
// that are attached but were not before are not heard until then, because their port is not one of the bridge yet.
// Where the kernel has no such rules at all, only what leaves the host is held against what its sender may say. Any other
// error is to be tried again.
func (v *VTEP) guard(n *network) (changed bool, err error) {
	if n.sandbox == nil || !n.cfg.Isolate || !v.features.on(FeaturePortGuard) {
		return false, nil
	}
	var ports []guard.Port
	for id, a := range n.attached {
		ports = append(ports, guard.Port{Device: link.HostEnd(id), MAC: a.MAC, Addresses: addressesOf(a.Addresses)})
	}
	err = n.in(func() (err error) {
		changed, err = guard.Apply(ports)
		return err
	})
	if noNftables(err) {
		v.features.missing(FeaturePortGuard, err)
		v.log.Warn("containers of one host cannot be kept from posing as each other; those of other hosts can", "network", n.cfg.Name, "error", err)
		return false, nil
	}
	if err != nil {
		err = fmt.Errorf("keeping the containers of this host from posing as each other, which --disable port-guard does without: %w", err)
	}
	return changed, err
}

// unguard takes the rules of an earlier VTEP away where this one is not to have any, and else takes what they have
// counted so far for counted.
func (v *VTEP) unguard(n *network) {
	if n.sandbox == nil {
		return
	}
	if !n.cfg.Isolate || !v.features.on(FeaturePortGuard) {
		if err := n.in(guard.Remove); err != nil { // a kernel without nftables has no rules either
			v.log.Debug("removing the rules at the containers' ports", "network", n.cfg.Name, "error", err)
		}
		return
	}
	if _, err := v.newlyGuarded(n); noNftables(err) || errors.Is(err, unix.EINVAL) { // which is how nfnetlink says it
		v.features.missing(FeaturePortGuard, err)
	} else if err != nil {
		v.log.Warn("what the rules at the containers' ports have dropped before will count as dropped now", "network", n.cfg.Name, "error", err)
	}
}

// noNftables reports whether err means that the kernel has no nftables, or not of the family netdev.
func noNftables(err error) bool {
	return errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EPROTONOSUPPORT)
}

// countGuarded adds what the rules have dropped since it was last called to the network's counters: as frames that came
// from the containers and were dropped.
func (v *VTEP) countGuarded(n *network) {
	if n.sandbox == nil || !n.cfg.Isolate || !v.features.on(FeaturePortGuard) {
		return
	}
	fresh, err := v.newlyGuarded(n)
	if err != nil {
		v.log.Debug("reading what the rules at the containers' ports have dropped", "network", n.cfg.Name, "error", err)
	}
	for reason, c := range fresh {
		n.fwd.Counters.TAPIn.Add(int(c.Frames), int(c.Bytes))
		n.fwd.Counters.Drops.Add(reason, int(c.Frames), v.now())
	}
}

func (v *VTEP) newlyGuarded(n *network) (map[forward.DropReason]guard.Count, error) {
	n.guarded.mu.Lock()
	defer n.guarded.mu.Unlock()
	var now map[forward.DropReason]guard.Count
	err := n.in(func() (err error) {
		now, err = guard.Counts()
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("network %s: %w", n.cfg.Name, err)
	}
	fresh := map[forward.DropReason]guard.Count{}
	for reason, c := range now {
		old := n.guarded.counted[reason]
		if c.Frames < old.Frames {
			old = guard.Count{} // somebody has removed the table
		}
		if c.Frames > old.Frames {
			fresh[reason] = guard.Count{Frames: c.Frames - old.Frames, Bytes: c.Bytes - old.Bytes}
		}
	}
	n.guarded.counted = now
	return fresh, nil
}
