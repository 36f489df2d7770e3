package cluster

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"github.com/overlayd/overlayd/controlplane"
	"github.com/overlayd/overlayd/controlplane/api/overlayd/state/v1"
	"github.com/overlayd/overlayd/vtep/link"
)

const (
	// lookEvery is the least time between two looks at the addresses of the host, and the time after which it is looked again
	// while they are not what the managers know. What is found twice in a row is believed: while an interface changes, there
	// may be none for a moment.
	lookEvery = 2 * time.Second
	// lookAnyway is after how long it is looked although nothing was told: routes can change without a message.
	lookAnyway = 30 * time.Second
	// proposeTime bounds how long the managers are asked at a time to take other addresses.
	proposeTime = 5 * time.Second
)

// Membership is what an Addresses asks of the control plane. *controlplane.Node is one.
type Membership interface {
	Choice() controlplane.Choice
	Propose(context.Context, *statev1.Command) (*statev1.Result, error)
}

// Addresses keeps it true under which addresses the others know this node. If its own were derived, it puts the VTEP at the
// new ones when they change, and tells the managers. If they were stated, it says so once when one is gone.
type Addresses struct {
	cp     Membership
	follow *Follower
	host   Host
	log    *slog.Logger

	found  []netip.Addr        // at the last look, if that was something new
	had    map[netip.Addr]bool // this host has it, or had it and its loss has been told of (false)
	failed string              // what the log has been told last; "" = nothing since all was well
}

// NewAddresses returns what keeps the addresses of a follower's node. Run has to be called.
func NewAddresses(cp Membership, f *Follower, h Host, log *slog.Logger) *Addresses {
	return &Addresses{cp: cp, follow: f, host: h, log: log, had: map[netip.Addr]bool{}}
}

// Run looks at the addresses of the host when they, or what the managers know of them, may have changed, and now and then,
// until ctx ends.
func (a *Addresses) Run(ctx context.Context) error {
	changes, err := link.Watch(ctx, a.log)
	if err != nil {
		return fmt.Errorf("follow the addresses of this host: %w", err)
	}
	a.run(ctx, changes)
	return nil
}

// run is Run with what tells that something of the host changed. It ends when ctx does, or changes is closed.
func (a *Addresses) run(ctx context.Context, changes <-chan struct{}) {
	var last time.Time // it was looked
	due, soon := time.After(0), true
	for {
		select {
		case _, more := <-changes:
			if !more {
				return
			}
		case <-a.follow.known:
		case <-due:
			last, due = time.Now(), time.After(lookAnyway)
			if soon = a.look(ctx); soon {
				due = time.After(lookEvery)
			}
			continue
		case <-ctx.Done():
			return
		}
		if !soon {
			due, soon = time.After(time.Until(last.Add(lookEvery))), true
		}
	}
}

// look compares once. It reports whether it has to be looked again although nothing changes.
func (a *Addresses) look(ctx context.Context) (again bool) {
	id, now := a.follow.own()
	if id == "" {
		a.found, a.failed = nil, ""
		clear(a.had)
		return false
	}
	choice := a.cp.Choice()
	a.tellLost(choice, now)
	if !choice.Derived {
		return false
	}
	next, err := renewed(a.host, choice, now)
	if err != nil {
		a.log.Debug("this host has no address to be known by at the moment", "error", err)
		a.found = nil
		return true
	}
	twice := slices.Equal(next, a.found)
	if a.found = next; slices.Equal(next, now) {
		a.follow.settled()
		a.failed = ""
		return false
	}
	if !twice {
		return true
	}
	a.tell(a.follow.move(next), "cannot put the end of the VTEP at the new addresses of this host", next)
	ctx, cancel := context.WithTimeout(ctx, proposeTime)
	defer cancel()
	u := &statev1.UpdateNode{Id: id}
	for _, x := range next {
		u.Addresses = append(u.Addresses, x.String())
	}
	_, err = a.cp.Propose(ctx, &statev1.Command{Kind: &statev1.Command_UpdateNode{UpdateNode: u}})
	if err == nil {
		a.log.Info("the addresses of this host changed, and the cluster knows it", "before", now, "addresses", next)
		return true
	}
	if ctx.Err() == nil || a.failed == "" {
		a.tell(err, "the addresses of this host changed, and no manager could be told yet", next)
	}
	return true
}

// tell logs why something fails, once as long as it stays the same.
func (a *Addresses) tell(err error, what string, addresses []netip.Addr) {
	if err == nil || a.failed == what+err.Error() {
		return
	}
	a.failed = what + err.Error()
	a.log.Warn(what, "addresses", addresses, "error", err, "retry", lookEvery)
}

// tellLost says once that an address which was stated, or may have been, is gone.
func (a *Addresses) tellLost(c controlplane.Choice, now []netip.Addr) {
	for _, x := range now {
		if c.Derived && !slices.Contains(c.Stated, x) {
			continue // it will be replaced
		}
		_, has := a.host.HasAddress(x)
		switch had := a.had[x]; {
		case has:
			a.had[x] = true
		case had:
			a.had[x] = false
			a.log.Warn("an address under which the cluster knows this node was stated by --advertise, and no interface of this host has it any more: give it back, or run `overlayctl leave` and join again with another --advertise, or with none to have it follow the host",
				"address", x)
		}
	}
}

// tellReaddressed has Addresses look again, if an update may have changed what the managers know of this node.
func (f *Follower) tellReaddressed(u controlplane.Update) {
	self, _ := f.cp.Self()
	if !u.Reset && !slices.ContainsFunc(u.Deltas, func(d *statev1.Delta) bool { return d.Node.GetId() == self || d.RemovedNode == self }) {
		return
	}
	f.lookAgain()
}

// lookAgain has Addresses look again.
func (f *Follower) lookAgain() {
	select {
	case f.known <- struct{}{}:
	default:
	}
}

// own returns this node's ID and its addresses as the managers know them; "" if it is in no cluster, or has not learned of
// itself.
func (f *Follower) own() (id string, now []netip.Addr) {
	f.mu.Lock()
	defer f.mu.Unlock()
	self, _ := f.cp.Self()
	if n := f.nodes[self]; n != nil {
		return self, addresses(n)
	}
	return "", nil
}

// move makes this host use other addresses than the managers know yet.
func (f *Follower) move(to []netip.Addr) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.here = to
	if f.vtep == nil {
		return nil // it is opened there, by and by
	}
	if err := f.underlay.Move(to); err != nil {
		return err
	}
	f.local = to
	return nil
}

// settled says that the managers know the addresses of this host.
func (f *Follower) settled() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.here = nil
}
