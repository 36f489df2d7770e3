package lab

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	"github.com/overlayd/overlayd/controlplane/api"
)

// Container is a network namespace on a host of the cluster, with an interface for each endpoint that it has.
type Container struct {
	Namespace
	host *Host
}

// endpoint is an interface of a container, as the cluster knows it.
type endpoint struct {
	Network   string       `json:"network"`
	Container string       `json:"container"`
	MAC       string       `json:"mac"`
	IPs       []netip.Addr `json:"ips"`
}

// Host is where the container runs.
func (c *Container) Host() *Host { return c.host }

// Overlays are the container's addresses on a network, one of each family at most; none if it is not on it.
func (c *Container) Overlays(network string) []netip.Addr {
	for _, e := range c.host.lab.endpoints(network) {
		if e.Container == c.name {
			return e.IPs
		}
	}
	return nil
}

// Containers are ordered by their hosts.
func (l *Lab) Containers() []*Container { return l.containers }

// Container returns the container of this name, or nil when there is none.
func (l *Lab) Container(name string) *Container {
	for _, c := range l.containers {
		if c.name == name {
			return c
		}
	}
	return nil
}

// endpoints lists those of a network.
func (l *Lab) endpoints(network string) []endpoint {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(l.state.Endpoints), func(e endpoint) bool { return e.Network != network })
}

// attach puts the container on a network of the cluster.
func (c *Container) attach(ctx context.Context, network string, ips []netip.Addr) error {
	args := []string{"endpoint", "add", network, "--netns", c.full, "--name", c.name}
	for _, ip := range ips {
		args = append(args, "--ip", ip.String())
	}
	if _, err := c.host.Overlayctl(ctx, args...); err != nil {
		return err
	}
	e, err := c.ask(ctx, network)
	if err != nil {
		return err
	}
	l := c.host.lab
	l.mu.Lock()
	defer l.mu.Unlock()
	l.state.Endpoints = append(l.state.Endpoints, e)
	return writeState(l.claim.dir, l.state)
}

// ask has the overlayd of the host say what the container's interface on a network is.
func (c *Container) ask(ctx context.Context, network string) (endpoint, error) {
	out := endpoint{Network: network, Container: c.name}
	client := api.NewClient(c.host.Socket())
	defer client.Close()
	for e, err := range client.Endpoints(ctx, network, c.host.name) {
		if err != nil {
			return out, fmt.Errorf("ask the overlayd of %s for the endpoints of %s: %s", c.host.name, network, api.Message(err))
		}
		if e.GetName() != c.name {
			continue
		}
		out.MAC = e.GetMac()
		for _, text := range e.GetIps() {
			ip, err := netip.ParseAddr(text)
			if err != nil {
				return out, fmt.Errorf("read the address of %s on %s: %w", c.name, network, err)
			}
			out.IPs = append(out.IPs, ip)
		}
		return out, nil
	}
	return out, fmt.Errorf("the overlayd of %s does not list the endpoint %s of %s that was just added", c.host.name, c.name, network)
}

// awaitKnown waits until every host with an endpoint on a network forwards to all endpoints there are.
func (l *Lab) awaitKnown(ctx context.Context, network string) error {
	all := l.endpoints(network)
	for _, e := range all {
		h := l.Container(e.Container).host
		what := fmt.Sprintf("%s to know the %d endpoints of %s", h.name, len(all), network)
		if err := await(ctx, what, func(ctx context.Context) (bool, error) {
			known, err := h.macs(ctx, network)
			return !slices.ContainsFunc(all, func(e endpoint) bool { return !known[e.MAC] }), err
		}); err != nil {
			return err
		}
	}
	return nil
}

// macs are the addresses in the forwarding database of the host.
func (h *Host) macs(ctx context.Context, network string) (map[string]bool, error) {
	c := api.NewClient(h.Socket())
	defer c.Close()
	known := make(map[string]bool)
	for e, err := range c.FDB(ctx, network) {
		if err != nil {
			return nil, fmt.Errorf("ask the overlayd of %s for the FDB of %s: %s", h.name, network, api.Message(err))
		}
		known[e.GetMac()] = true
	}
	return known, nil
}
