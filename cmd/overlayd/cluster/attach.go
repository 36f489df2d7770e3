package cluster

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/overlayd/overlayd/controlplane"
	"github.com/overlayd/overlayd/controlplane/api/overlayd/state/v1"
	"github.com/overlayd/overlayd/dataplane/addr"
	"github.com/overlayd/overlayd/vtep"
	"github.com/overlayd/overlayd/vtep/link"
)

// tidyTime bounds what tidy asks of the managers at a time.
const tidyTime = 5 * time.Second

// attachment is an interface that this host gave to a network namespace. It outlasts the daemon in the file.
type attachment struct {
	ID        string `json:"id"`      // of the endpoint
	Network   string `json:"network"` // ID
	Name      string `json:"name,omitempty"`
	NetNS     string `json:"netns"`
	Interface string `json:"interface,omitempty"`
	VNI       uint32 `json:"vni"`       // of the network
	Index     uint64 `json:"index"`     // of the state as of which there is the endpoint
	Confirmed bool   `json:"confirmed"` // the managers know that it is attached
	there     bool   // the VTEP has it
}

func loadAttachments(file string) (map[string]*attachment, error) {
	if err := tidyFiles(file); err != nil {
		return nil, fmt.Errorf("remove what a crash has left beside %s: %w", file, err)
	}
	out := map[string]*attachment{}
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return out, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read what is attached on this host: %w", err)
	}
	var list []*attachment
	if err := json.Unmarshal(b, &list); err != nil {
		return nil, fmt.Errorf("%s, which says what is attached on this host, is damaged: %w: remove it, and add the endpoints of this host again", file, err)
	}
	for _, a := range list {
		out[a.ID] = a
	}
	return out, nil
}

// tidyFiles removes what a crash has left of files that save was writing.
func tidyFiles(file string) error {
	entries, err := os.ReadDir(filepath.Dir(file))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), filepath.Base(file)+".") {
			err = errors.Join(err, os.Remove(filepath.Join(filepath.Dir(file), e.Name())))
		}
	}
	return err
}

// save writes the file anew, as a whole or not at all. f.mu is held.
func (f *Follower) save() error {
	list := make([]*attachment, 0, len(f.attached))
	for _, a := range f.attached {
		list = append(list, a)
	}
	b, err := json.MarshalIndent(list, "", "  ")
	if err != nil {
		return err
	}
	t, err := os.CreateTemp(filepath.Dir(f.file), filepath.Base(f.file)+".*")
	if err != nil {
		return fmt.Errorf("note down what is attached on this host: %w", err)
	}
	_, err = t.Write(b)
	if err = errors.Join(err, t.Sync(), t.Close()); err == nil {
		err = os.Rename(t.Name(), f.file)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("note down what is attached on this host: %w", err), os.Remove(t.Name()))
	}
	return nil
}

// Attach gives a network namespace of this host the interface of an endpoint that the managers know. On an error
// nothing of it is left here.
func (f *Follower) Attach(ctx context.Context, e *statev1.Endpoint, netns, iface string) (vtep.Attached, error) {
	if err := f.CatchUp(ctx); err != nil {
		return vtep.Attached{}, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.vtep == nil {
		return vtep.Attached{}, errors.New("this host does not forward for the cluster yet: see the log of overlayd for the reason")
	}
	n := f.networks[e.Network]
	if n == nil || n.state == nil || n.endpoints[e.Id] == nil {
		return vtep.Attached{}, errors.New("the endpoint was removed meanwhile: add it again")
	}
	a := &attachment{ID: e.Id, Network: e.Network, Name: e.Name, NetNS: netns, Interface: iface, VNI: n.state.Vni, Index: e.Index}
	f.attached[e.Id] = a
	undo := func(err error) (vtep.Attached, error) {
		delete(f.attached, e.Id)
		if n.up {
			err = errors.Join(err, f.vtep.Detach(n.vtepName, e.Id))
		}
		f.settle(e.Network)
		return vtep.Attached{}, err
	}
	f.settle(e.Network)
	if !n.up {
		return undo(errors.New(n.problem))
	}
	if !a.there {
		// Among several that fail, settle tells of the first one only; this one's own error is wanted.
		if err := f.attach(n, a); err != nil {
			return undo(err)
		}
	}
	got, err := f.find(n, e.Id)
	if err != nil {
		return undo(err)
	}
	a.Interface = got.Interface
	if err := f.save(); err != nil {
		return undo(err)
	}
	return got, nil
}

// attach has the VTEP make the interface of an attachment. It does not matter if it is there.
func (f *Follower) attach(n *network, a *attachment) error {
	e := n.endpoints[a.ID]
	spec := vtep.Attachment{
		ID: a.ID, Name: a.Name, NetNS: a.NetNS, Interface: a.Interface, MAC: addr.MAC(e.Mac), Gateways: nil,
	}
	for i, s := range n.state.Subnets {
		subnet, err := netip.ParsePrefix(s)
		if err != nil {
			return fmt.Errorf("the subnet %q of network %s: %w", s, n.state.Name, err)
		}
		for _, t := range e.Ips {
			ip, err := netip.ParseAddr(t)
			if err != nil || !subnet.Contains(ip) {
				continue
			}
			spec.Addresses = append(spec.Addresses, netip.PrefixFrom(ip, subnet.Bits()))
			if i < len(n.state.Gateways) {
				if g, err := netip.ParseAddr(n.state.Gateways[i]); err == nil {
					spec.Gateways = append(spec.Gateways, g)
				}
			}
		}
	}
	got, err := f.vtep.Attach(n.vtepName, spec)
	if err != nil {
		return err
	}
	a.Interface, a.there = got.Interface, true
	return nil
}

// attachAll attaches what is to be attached on a network and is not.
func (f *Follower) attachAll(id string, n *network) error {
	var errs []error
	for _, a := range f.attached {
		if a.Network == id && !a.there && n.endpoints[a.ID] != nil {
			if err := f.attach(n, a); err != nil {
				errs = append(errs, fmt.Errorf("attach %s: %w", cmp.Or(a.Name, a.ID), err))
			}
		}
	}
	return errors.Join(errs...)
}

// hasAttached reports whether this host has interfaces on a network.
func (f *Follower) hasAttached(network string) bool {
	for _, a := range f.attached {
		if a.Network == network {
			return true
		}
	}
	return false
}

// dropStale takes away the interfaces of endpoints that the managers removed, or moved to another host. After a crash the
// copy on disk may be older than what was attached last: what it does not know yet is not stale.
func (f *Follower) dropStale(id string, n *network) {
	if f.index == 0 {
		return // nothing is known yet
	}
	self, _ := f.cp.Self()
	changed := false
	for _, a := range f.attached {
		if a.Network != id {
			continue
		}
		e := n.endpoints[a.ID]
		if n.state != nil && e != nil && e.Node == self || f.index < a.Index {
			continue
		}
		if n.up && f.vtep != nil { // also if it is not there as far as is known
			if err := f.vtep.Detach(n.vtepName, a.ID); err != nil {
				f.log.Warn("cannot take away an interface", "endpoint", cmp.Or(a.Name, a.ID), "netns", a.NetNS, "error", err)
				continue
			}
		}
		f.log.Info("an endpoint is no longer on this host", "endpoint", cmp.Or(a.Name, a.ID), "netns", a.NetNS)
		delete(f.attached, a.ID)
		changed = true
	}
	if changed {
		if err := f.save(); err != nil {
			f.log.Warn("cannot note down what is attached", "error", err)
		}
	}
}

func (f *Follower) find(n *network, id string) (vtep.Attached, error) {
	for _, a := range f.vtep.Attachments(n.vtepName) {
		if a.ID == id {
			return a, nil
		}
	}
	return vtep.Attached{}, errors.New("its interface vanished while it was being attached: is the namespace still there?")
}

// forgetAttached removes what is left of what was attached, and the notes of it, when this host has left its cluster. f.mu is
// held, and there is a VTEP.
func (f *Follower) forgetAttached() {
	if _, err := f.vtep.RemoveOrphans(nil); err != nil {
		f.log.Warn("cannot remove what is left of the networks of the cluster", "error", err)
	}
	if len(f.attached) == 0 {
		return
	}
	clear(f.attached)
	if err := f.save(); err != nil {
		f.log.Warn("cannot note down that nothing is attached any more", "error", err)
	}
}

// Detach takes the interface of an endpoint away, if it is on this host.
func (f *Follower) Detach(id string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	a := f.attached[id]
	if a == nil {
		return nil
	}
	n := f.networks[a.Network]
	if n != nil && n.up && f.vtep != nil {
		if err := f.vtep.Detach(n.vtepName, id); err != nil {
			return err
		}
	}
	delete(f.attached, id)
	if n != nil {
		f.settle(a.Network)
	}
	return f.save()
}

// DetachAll takes away all interfaces of this host, before it leaves its cluster, and returns their endpoints' IDs.
func (f *Follower) DetachAll() error {
	f.mu.Lock()
	ids := make([]string, 0, len(f.attached))
	for id := range f.attached {
		ids = append(ids, id)
	}
	f.mu.Unlock()
	var errs []error
	for _, id := range ids {
		errs = append(errs, f.Detach(id))
	}
	return errors.Join(errs...)
}

// Attached returns the interfaces of this host by the IDs of their endpoints.
func (f *Follower) Attached() map[string]vtep.Attached {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := map[string]vtep.Attached{}
	if f.vtep == nil {
		return out
	}
	for _, n := range f.networks {
		if !n.up {
			continue
		}
		for _, a := range f.vtep.Attachments(n.vtepName) {
			out[a.ID] = a
		}
	}
	return out
}

// dropUnclaimed takes away interfaces that an earlier daemon made, and that no endpoint of this host has.
func (f *Follower) dropUnclaimed(n *network) error {
	if n.claimed {
		return nil
	}
	ids, err := f.vtep.Unclaimed(n.vtepName)
	for _, id := range ids {
		if f.attached[id] == nil {
			err = errors.Join(err, f.vtep.Detach(n.vtepName, id))
		}
	}
	n.claimed = err == nil
	return err
}

// namespaceGone reports whether there is certainly no such network namespace.
func namespaceGone(nameOrPath string) bool {
	ns, err := link.OpenNamespace(nameOrPath)
	if err != nil {
		return errors.Is(err, link.ErrNoNamespace)
	}
	_ = ns.Close() // it was only looked at
	return false
}

// Problems returns what is not as it should be on this host, for people.
func (f *Follower) Problems() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []string
	if f.noVTEP != "" {
		out = append(out, "this host does not forward for the cluster: "+f.noVTEP)
	}
	if f.reached.problem != "" {
		out = append(out, f.reached.problem)
	}
	for id, n := range f.networks {
		if n.problem != "" {
			out = append(out, "network "+n.name(id)+": "+n.problem)
		}
	}
	slices.Sort(out)
	return out
}

// tidy tries again what failed, tells the managers of what is attached and they do not know, and takes endpoints
// out of the cluster whose namespace is gone.
func (f *Follower) tidy(ctx context.Context) {
	f.mu.Lock()
	if f.vtep == nil {
		f.openUnderlay()
	}
	f.stateNodes()
	f.sizePackets()
	f.forgetNodes()
	var confirm, gone []*attachment
	for id, n := range f.networks {
		if n.problem != "" {
			f.settle(id)
		}
	}
	for _, a := range f.attached {
		n := f.networks[a.Network]
		if n == nil || n.endpoints[a.ID] == nil {
			if f.index >= a.Index { // it went while the copy was too old to know of it
				f.network(a.Network)
				f.settle(a.Network)
			}
			continue
		}
		if namespaceGone(a.NetNS) {
			gone = append(gone, a)
		} else if a.there && !a.Confirmed {
			confirm = append(confirm, a)
		}
	}
	f.mu.Unlock()
	if len(confirm)+len(gone) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, tidyTime)
	defer cancel()
	for _, a := range confirm {
		if err := f.Confirm(ctx, a.ID); err != nil {
			f.log.Warn("cannot confirm an endpoint yet", "endpoint", cmp.Or(a.Name, a.ID), "error", err)
		}
	}
	for _, a := range gone {
		f.log.Info("the namespace of an endpoint is gone, and the endpoint goes with it", "endpoint", cmp.Or(a.Name, a.ID), "netns", a.NetNS)
		_, err := f.cp.Propose(ctx, &statev1.Command{Kind: &statev1.Command_RemoveEndpoint{RemoveEndpoint: &statev1.RemoveEndpoint{Id: a.ID}}})
		if err == nil {
			err = f.Detach(a.ID)
		}
		if err != nil {
			f.log.Warn("cannot remove the endpoint yet", "endpoint", cmp.Or(a.Name, a.ID), "error", err)
		}
	}
}

// Confirm tells the managers that an endpoint is attached, so that its addresses are not collected.
func (f *Follower) Confirm(ctx context.Context, id string) error {
	self, _ := f.cp.Self()
	_, err := f.cp.Propose(ctx, &statev1.Command{Kind: &statev1.Command_ConfirmEndpoint{
		ConfirmEndpoint: &statev1.ConfirmEndpoint{Id: id, Node: self},
	}})
	if _, refused := errors.AsType[controlplane.Refusal](err); refused {
		return err // the managers collected it; the follower learns of that and takes it away
	}
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if a := f.attached[id]; a != nil {
		a.Confirmed = true
		return f.save()
	}
	return nil
}
