package lab

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// Options say how a lab is brought up.
type Options struct {
	// Overlayd is the path of the daemon's binary; needed if any host runs it.
	Overlayd string
	// Overlayctl is the path of the operator's command line; needed if there is a cluster, which is made with it.
	Overlayctl string
	// Tell, if set, is given each command that starts a daemon or makes the cluster, before it runs on that host. Paths and
	// tokens are in it by a word such as SOCK. There is one call at a time.
	Tell func(host, command string)
	// Detach lets the lab stay when this process ends, for Open and Down to find by the name of the
	// scenario. Otherwise it ends with Close, or is swept away after this process was killed.
	Detach bool
	// Slack multiplies the times within which a demo expects something: 0 = 1. More is for machines that do other things.
	Slack int
	// Transfer is how many bytes a demo sends each way where it sends much: 0 = 2^30.
	Transfer int64
}

// Lab is a set of hosts that is up.
type Lab struct {
	scenario   Scenario
	claim      *claim
	router     *Namespace // nil in the direct topology
	hosts      []*Host
	containers []*Container
	daemons    sync.WaitGroup // the waiters

	telling sync.Mutex // held while tell runs
	tell    func(host, command string)

	mu    sync.Mutex // guards state and what is in the daemon of each host
	state *state
}

// Host is a host of a lab.
type Host struct {
	Namespace
	spec    *HostSpec
	members map[string]Kind           // by network
	overlay map[string][]netip.Prefix // by network
	dir     string                    // of its configuration, socket and log
	lab     *Lab
	daemon  process // zero when it runs none
}

// Up builds a lab and returns when every host is reachable on the underlay, every overlayd has said that it is
// ready, and the cluster, if there is one, has its networks and endpoints. When ctx ends before that, or anything fails, everything is removed again. The error is
// ErrNotPermitted without root, and ErrExists when a detached lab of this name is there.
func Up(ctx context.Context, sc Scenario, o Options) (*Lab, error) {
	if err := sc.complete(); err != nil {
		return nil, fmt.Errorf("scenario %s: %w", sc.Name, err)
	}
	var err error
	if sc.needsOverlayd() {
		if o.Overlayd, err = findBinary("overlayd", o.Overlayd); err != nil {
			return nil, fmt.Errorf("scenario %s: %w", sc.Name, err)
		}
	}
	if sc.hasCluster() {
		if o.Overlayctl, err = findBinary("overlayctl", o.Overlayctl); err != nil {
			return nil, fmt.Errorf("scenario %s: %w", sc.Name, err)
		}
	}
	if os.Geteuid() != 0 {
		return nil, ErrNotPermitted
	}
	sweep()
	id := newID()
	dir := filepath.Join(Root, sc.Name)
	if !o.Detach {
		dir += privateMark + id
	}
	c, err := claimNew(dir)
	if err != nil {
		return nil, err
	}
	l := &Lab{scenario: sc, claim: c, tell: o.Tell, state: &state{
		ID: id, Scenario: sc, Created: time.Now(), Overlayd: o.Overlayd, Overlayctl: o.Overlayctl,
	}}
	for _, ns := range l.namespaces() {
		ns.NetNS = fmt.Sprintf("ovl-%s-%s", id, cmp.Or(ns.Container, ns.Host))
		l.state.Namespaces = append(l.state.Namespaces, ns)
	}
	if err := l.build(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("bring up %s: %w", sc.Name, err), l.Close())
	}
	if o.Detach {
		c.release()
	}
	return l, nil
}

// findBinary makes the path of a program absolute: it is run with another working directory.
func findBinary(name, path string) (string, error) {
	full, err := filepath.Abs(path)
	if err == nil {
		_, err = os.Stat(full)
	}
	if path == "" || err != nil {
		return "", fmt.Errorf("it needs %s, and there is no binary at %q: build it with make build", name, path)
	}
	return full, nil
}

// namespaces are those of the hosts, in their order, of the router if there is one, and of the containers.
func (l *Lab) namespaces() []stateNamespace {
	var all []stateNamespace
	for _, h := range l.scenario.Hosts {
		all = append(all, stateNamespace{Host: h.Name})
	}
	if l.scenario.Topology != Direct {
		all = append(all, stateNamespace{Host: routerName})
	}
	for _, h := range l.scenario.Hosts {
		for _, name := range h.Containers {
			all = append(all, stateNamespace{Host: h.Name, Container: name})
		}
	}
	return all
}

// build makes everything, step by step, looking between steps whether ctx has ended.
func (l *Lab) build(ctx context.Context) error {
	if err := writeState(l.claim.dir, l.state); err != nil {
		return err
	}
	if err := l.attach(createNamespace); err != nil {
		return err
	}
	var steps []func() error
	if l.router != nil {
		steps = append(steps, func() error { return l.router.sysctl(routerSettings()) })
	}
	if l.scenario.Topology == Bridged {
		steps = append(steps, l.makeBridge)
	}
	for _, h := range l.hosts {
		steps = append(steps, func() error { return h.sysctl(hostSettings()) })
	}
	for _, c := range l.containers {
		steps = append(steps, func() error { return c.sysctl(hostSettings()) })
	}
	if l.scenario.Topology == Direct {
		steps = append(steps, l.join)
	} else {
		for _, h := range l.hosts {
			steps = append(steps, func() error { return l.connect(h) })
		}
		steps = append(steps, l.makeFilter, l.makeNAT)
		if l.scenario.Router.MTU != 0 {
			steps = append(steps, func() error { return l.narrow(l.scenario.Router.MTU) })
		}
	}
	for _, h := range l.hosts {
		steps = append(steps, func() error { return h.awaitUp(ctx, hostLink) })
		if l.router != nil {
			steps = append(steps, func() error { return l.router.awaitUp(ctx, h.name) })
		}
	}
	for i := range l.scenario.Networks {
		for _, h := range l.hosts {
			if n := &l.scenario.Networks[i]; n.Members[h.name] == Kernel {
				steps = append(steps,
					func() error { return l.makeKernelVXLAN(h, n) },
					func() error { return h.awaitUp(ctx, deviceName(n.Name)) })
			}
		}
	}
	steps = append(steps, func() error { return l.startDaemons(ctx) })
	if l.scenario.hasCluster() {
		steps = append(steps, l.clusterSteps(ctx)...)
	}
	for _, step := range steps {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := step(); err != nil {
			return err
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.state.Built = true
	return writeState(l.claim.dir, l.state)
}

// startDaemons starts all overlayds at once and waits for them.
func (l *Lab) startDaemons(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var starters sync.WaitGroup
	for _, h := range l.hosts {
		if l.scenario.runsOverlayd(h.name) {
			starters.Go(func() {
				if err := l.startDaemon(ctx, h); err != nil {
					cancel(err) // the first error counts; the others give up because of it
				}
			})
		}
	}
	starters.Wait()
	return context.Cause(ctx)
}

// attach opens or creates the namespaces that the state names and makes the hosts of them.
func (l *Lab) attach(get func(name, full string) (*Namespace, error)) error {
	for i, ns := range l.state.Namespaces {
		n, err := get(cmp.Or(ns.Container, ns.Host), ns.NetNS)
		if err != nil {
			return err
		}
		if ns.Container != "" {
			l.containers = append(l.containers, &Container{Namespace: *n, host: l.Host(ns.Host)})
			continue
		}
		if ns.Host == routerName {
			l.router = n
			continue
		}
		h := &Host{
			Namespace: *n,
			spec:      &l.scenario.Hosts[i],
			members:   make(map[string]Kind),
			overlay:   make(map[string][]netip.Prefix),
			dir:       filepath.Join(l.claim.dir, ns.Host),
			lab:       l,
		}
		l.hosts = append(l.hosts, h)
		for j := range l.scenario.Networks {
			net := &l.scenario.Networks[j]
			kind, in := net.Members[ns.Host]
			if !in {
				continue
			}
			h.members[net.Name] = kind
			if h.overlay[net.Name], err = overlayPrefixes(net, i); err != nil {
				return err
			}
		}
		for _, p := range l.state.Processes {
			if p.Host == ns.Host {
				h.daemon = p
			}
		}
	}
	return nil
}

// remember writes down that a daemon runs.
func (l *Lab) remember(h *Host, d *daemon) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	h.daemon = d.process
	l.state.Processes = append(slices.DeleteFunc(l.state.Processes, func(p process) bool { return p.Host == h.name }), d.process)
	return writeState(l.claim.dir, l.state)
}

// Open attaches to a detached lab that was brought up by another process. Let go of it with Release.
// ErrNoLab if there is none of this name.
func Open(name string) (*Lab, error) {
	dir := filepath.Join(Root, name)
	s, err := readState(dir)
	if err != nil {
		return nil, err
	}
	if s == nil || strings.Contains(name, "/") {
		return nil, ErrNoLab
	}
	l := &Lab{scenario: s.Scenario, claim: &claim{dir: dir}, state: s}
	if err := l.attach(openNamespace); err != nil {
		l.Release()
		return nil, fmt.Errorf("the lab %s is not whole, take it down: %w", name, err)
	}
	return l, nil
}

// Down takes a detached lab down, also one that was cut short or damaged. ErrNoLab if there is none.
func Down(name string) error {
	sweep()
	c, err := claimExisting(filepath.Join(Root, name))
	if err != nil {
		return err
	}
	defer c.release()
	return c.dismantle()
}

// Release lets go of a lab without taking it down: what is detached stays up.
func (l *Lab) Release() {
	for _, h := range l.hosts {
		h.close()
	}
	for _, c := range l.containers {
		c.close()
	}
	if l.router != nil {
		l.router.close()
	}
	l.claim.release()
}

// Close takes the lab down: it ends the daemons and everything else that runs in the namespaces, and removes
// namespaces, logs and sockets. When something could not be removed the error says what, and another Close
// may be tried.
func (l *Lab) Close() error {
	l.mu.Lock()
	err := l.state.clear()
	l.mu.Unlock()
	if err != nil {
		return fmt.Errorf("take down %s: %w", l.scenario.Name, err)
	}
	l.daemons.Wait()
	dir := *l.claim
	l.claim.lock = nil
	l.Release()
	return dir.remove()
}

// Scenario is what the lab was made from, with its defaults filled in.
func (l *Lab) Scenario() Scenario { return l.scenario }

// Dir is the directory of the lab's state, with one directory below it for each host.
func (l *Lab) Dir() string { return l.claim.dir }

// Created is when the lab was brought up.
func (l *Lab) Created() time.Time { return l.state.Created }

// Hosts are in the order of the scenario.
func (l *Lab) Hosts() []*Host { return l.hosts }

// Router is the namespace between the hosts, nil in the direct topology. Its links bear the names of the hosts.
func (l *Lab) Router() *Namespace { return l.router }

// Host returns the host of this name, or nil when there is none.
func (l *Lab) Host(name string) *Host {
	for _, h := range l.hosts {
		if h.name == name {
			return h
		}
	}
	return nil
}

// find is Host with an error that lists the names.
func (l *Lab) find(name string) (*Host, error) {
	if h := l.Host(name); h != nil {
		return h, nil
	}
	var names []string
	for _, h := range l.hosts {
		names = append(names, h.name)
	}
	return nil, fmt.Errorf("%s has no host %q: its hosts are %s", l.scenario.Name, name, strings.Join(names, ", "))
}
