package lab

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
)

// maxManagers is how many managers a cluster takes.
const maxManagers = 7

// clusterHosts are the hosts of the cluster, the one that makes it first.
func (sc *Scenario) clusterHosts() []*HostSpec {
	var out []*HostSpec
	for i := range sc.Hosts {
		if sc.Hosts[i].Cluster != "" {
			out = append(out, &sc.Hosts[i])
		}
	}
	return out
}

// hasCluster reports whether any host is in one.
func (sc *Scenario) hasCluster() bool { return len(sc.clusterHosts()) > 0 }

// managers counts those of the cluster.
func (sc *Scenario) managers() int {
	n := 0
	for _, h := range sc.clusterHosts() {
		if h.Cluster == Manager {
			n++
		}
	}
	return n
}

// clusterFamily is the family of the address that the hosts of the cluster prefer.
func (sc *Scenario) clusterFamily() Family {
	if all := sc.clusterHosts(); len(all) > 0 && all[0].Underlay[0].Addr().Is6() {
		return IPv6
	}
	return IPv4
}

// containerHost finds the host that a container is on, or nil.
func (sc *Scenario) containerHost(container string) *HostSpec {
	for i := range sc.Hosts {
		if slices.Contains(sc.Hosts[i].Containers, container) {
			return &sc.Hosts[i]
		}
	}
	return nil
}

// ofCluster reports whether the network is one of the cluster's.
func (n *NetworkSpec) ofCluster() bool { return len(n.Endpoints) > 0 }

// reaches reports whether a host has a part in the network, by itself or by its containers.
func (n *NetworkSpec) reaches(h *HostSpec) bool {
	_, member := n.Members[h.Name]
	return member || slices.ContainsFunc(n.Endpoints, func(e EndpointSpec) bool { return slices.Contains(h.Containers, e.Container) })
}

// checkCluster checks what the hosts say about the cluster and their containers. Their own settings are complete.
func (sc *Scenario) checkCluster() error {
	if all := sc.clusterHosts(); len(all) > 0 && all[0].Cluster == Worker {
		return fmt.Errorf("hosts: %s is the first of the cluster, makes it, and has to be a %s", all[0].Name, Manager)
	}
	if n := sc.managers(); n > maxManagers {
		return fmt.Errorf("hosts: %d managers: a cluster has at most %d", n, maxManagers)
	}
	taken := map[string]bool{routerName: true}
	for _, h := range sc.Hosts {
		taken[h.Name] = true
	}
	for i := range sc.Hosts {
		h := &sc.Hosts[i]
		if err := sc.checkMember(h); err != nil {
			return fmt.Errorf("hosts[%d] (%s): %w", i, h.Name, err)
		}
		for _, name := range h.Containers {
			switch {
			case !hostNames.MatchString(name):
				return fmt.Errorf("hosts[%d] (%s): containers: %q: use small letters, digits and hyphens, at most 14, a letter first", i, h.Name, name)
			case taken[name]:
				return fmt.Errorf("hosts[%d] (%s): containers: %s is the name of the router, a host or another container, too", i, h.Name, name)
			}
			taken[name] = true
		}
	}
	return nil
}

// checkMember checks what one host says.
func (sc *Scenario) checkMember(h *HostSpec) error {
	switch {
	case h.Cluster == "" && len(h.Containers) > 0:
		return fmt.Errorf("containers: they need a cluster, and the host is in none: add cluster: %s", Worker)
	case h.Cluster == "":
		return nil
	case h.Cluster != Manager && h.Cluster != Worker:
		return fmt.Errorf("cluster: %q is neither %s nor %s", h.Cluster, Manager, Worker)
	case h.Overlayd.Queues != 0 || h.Overlayd.BusyPoll != 0 || h.Overlayd.Checksum != "":
		return errors.New("overlayd: queues, busy_poll and checksum stand in a configuration file, which a host of the cluster has not: leave them out")
	case !h.underlay(sc.clusterFamily()).IsValid():
		return fmt.Errorf("underlay: the cluster prefers %s, and the host has no such address", sc.clusterFamily())
	}
	return nil
}

// checkEndpoints checks a network that has any.
func (sc *Scenario) checkEndpoints(n *NetworkSpec) error {
	switch {
	case len(n.Members) > 0:
		return errors.New("members: a network with endpoints is one of the cluster's, where hosts have no addresses: take either out")
	case n.AllowNested:
		return errors.New("allow_nested: networks of the cluster have no such setting")
	case n.Underlay != "":
		return errors.New("underlay: the cluster uses the addresses of its hosts in their order: leave it out")
	}
	for i, e := range n.Endpoints {
		fail := func(format string, args ...any) error {
			return fmt.Errorf("endpoints[%d] (%s): %s", i, e.Container, fmt.Sprintf(format, args...))
		}
		if sc.containerHost(e.Container) == nil {
			return fail("container: no host has it: add it to the containers of one")
		}
		if slices.ContainsFunc(n.Endpoints[:i], func(o EndpointSpec) bool { return o.Container == e.Container }) {
			return fail("container: it has an interface on this network already")
		}
		for j, ip := range e.IP {
			within := func(p netip.Prefix) bool { return p.Contains(ip) }
			k := slices.IndexFunc(n.Subnets, within)
			switch {
			case k < 0:
				return fail("ip: %s is in none of the subnets", ip)
			case slices.ContainsFunc(e.IP[:j], n.Subnets[k].Contains):
				return fail("ip: two addresses of %s", n.Subnets[k])
			}
		}
	}
	return nil
}
