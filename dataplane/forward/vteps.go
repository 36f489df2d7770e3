package forward

import (
	"net/netip"
	"slices"
	"sync/atomic"

	"github.com/overlayd/overlayd/dataplane/fdb"
	"github.com/overlayd/overlayd/dataplane/mtu"
)

// VTEP is a remote tunnel end point. It is named by one address and may be reached at another.
type VTEP struct {
	Name netip.Addr // by which tables, peers and mappings call it
	VTEPAddress
	// MaxFrame is the largest inner frame, in bytes with its Ethernet header and tags, that fits one datagram
	// to it.
	MaxFrame int

	heard *atomic.Int64
	sent  *atomic.Uint64
}

// VTEPAddress says where a VTEP is reached, and from where its datagrams come.
type VTEPAddress struct {
	Addr netip.Addr  // to which datagrams go at present
	Path mtu.PathMTU // what is known to reach it there
	// Accept are the outer sources that belong to the VTEP, besides its name and Addr. Nobody writes to it any more.
	Accept []netip.Addr
}

// Heard returns when the last datagram came from v, on the clock that is handed to Ingress.Process, or 0.
func (v VTEP) Heard() int64 {
	if v.heard == nil {
		return 0
	}
	return v.heard.Load()
}

// Sent returns how many datagrams have been handed to the kernel for v. Those that it refused are among them: they are
// traffic to v as much as the others, and the more reason to look after the path.
func (v VTEP) Sent() uint64 {
	if v.sent == nil {
		return 0
	}
	return v.sent.Load()
}

// AddVTEP returns the number of the VTEP named a, which it is given when it is named for the first time and keeps from
// then on. A new VTEP is reached at a, by the given path.
func (t *Tables) AddVTEP(a netip.Addr, path mtu.PathMTU) fdb.VTEPID {
	t.mu.Lock()
	defer t.mu.Unlock()
	old := t.view.Load()
	if id, ok := old.byAddr[a]; ok && old.vteps[id].Name == a {
		return id
	}
	v := VTEP{Name: a, heard: new(atomic.Int64), sent: new(atomic.Uint64)}
	v.move(VTEPAddress{Addr: a, Path: path})
	t.publishVTEPs(append(slices.Clone(old.vteps), v))
	return fdb.VTEPID(len(old.vteps))
}

// SetVTEP changes where a VTEP is reached and what is accepted as coming from it; frames already decided on are not
// affected. An address that several VTEPs claim belongs to the one that is named by it, else to the one that is reached at
// it, and else to the one with the lowest number. fdb.Local is nowhere.
func (t *Tables) SetVTEP(id fdb.VTEPID, a VTEPAddress) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.setVTEP(id, a)
}

// SetPath changes the path MTU of a VTEP and leaves its addresses; frames already decided on are not affected. There is
// no path to fdb.Local.
func (t *Tables) SetPath(id fdb.VTEPID, path mtu.PathMTU) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if id == fdb.Local {
		return
	}
	a := t.view.Load().vteps[id].VTEPAddress
	a.Path = path
	t.setVTEP(id, a)
}

// setVTEP does what SetVTEP says, under the lock.
func (t *Tables) setVTEP(id fdb.VTEPID, a VTEPAddress) {
	if id == fdb.Local {
		return
	}
	old := t.view.Load()
	if was := &old.vteps[id].VTEPAddress; was.Addr == a.Addr && was.Path == a.Path && slices.Equal(was.Accept, a.Accept) {
		return
	}
	vteps := slices.Clone(old.vteps)
	a.Accept = slices.Clone(a.Accept)
	vteps[id].move(a)
	t.publishVTEPs(vteps)
}

// move sets where v is reached.
func (v *VTEP) move(a VTEPAddress) {
	v.VTEPAddress = a
	v.MaxFrame = mtu.MaxFrame(a.Path, mtu.FamilyOf(a.Addr))
}

// publishVTEPs publishes a view with these VTEPs.
func (t *Tables) publishVTEPs(vteps []VTEP) {
	next := *t.view.Load()
	next.vteps = vteps
	next.byAddr = make(map[netip.Addr]fdb.VTEPID, 2*len(vteps))
	for i := range vteps {
		next.byAddr[vteps[i].Name] = fdb.VTEPID(i)
	}
	claim := func(a netip.Addr, id int) {
		if _, taken := next.byAddr[a]; !taken && a.IsValid() {
			next.byAddr[a] = fdb.VTEPID(id)
		}
	}
	for i := range vteps {
		claim(vteps[i].Addr, i)
	}
	for i := range vteps {
		for _, a := range vteps[i].Accept {
			claim(a, i)
		}
	}
	t.publish(&next)
}

// VTEP returns the VTEP with this number, which must have come from AddVTEP. That of fdb.Local is the zero VTEP,
// which has no address.
func (t *Tables) VTEP(id fdb.VTEPID) VTEP {
	if id == fdb.Local {
		return VTEP{}
	}
	return t.view.Load().vteps[id]
}

// Lookup returns the number of the VTEP named a or, if there is none, of the one whose datagrams come from a.
func (t *Tables) Lookup(a netip.Addr) (fdb.VTEPID, bool) {
	id, ok := t.view.Load().byAddr[a]
	return id, ok
}

// VTEPs returns how many VTEPs there are; they are numbered from 0.
func (t *Tables) VTEPs() int { return len(t.view.Load().vteps) }
