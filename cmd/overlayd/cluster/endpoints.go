package cluster

import (
	"context"
	"crypto/sha256"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/overlayd/overlayd/controlplane"
	"github.com/overlayd/overlayd/controlplane/api"
	"github.com/overlayd/overlayd/controlplane/api/overlayd/state/v1"
	"github.com/overlayd/overlayd/controlplane/api/overlayd/v1"
	"github.com/overlayd/overlayd/dataplane/addr"
	"github.com/overlayd/overlayd/vtep"
)

// leaseTime is how long an endpoint has its addresses without being attached.
const leaseTime = time.Minute

// AddEndpoint leases addresses, makes the interface, and confirms the lease: in this order, so that nothing that
// fails on the way leaves an address that is used twice, or one that nobody frees.
func (s *Service) AddEndpoint(ctx context.Context, req *overlaydv1.AddEndpointRequest) (*overlaydv1.AddEndpointResponse, error) {
	if err := s.agreed(ctx); err != nil {
		return nil, err
	}
	n, err := s.networkNamed("network", req.Network)
	if err != nil {
		return nil, err
	}
	if namespaceGone(req.Netns) {
		return nil, api.Errorf(api.NotFound, "netns", "there is no network namespace %q on this host: make it, such as by `ip netns add`, or state its path", req.Netns)
	}
	self, _ := s.cp.Self()
	add := &statev1.AddEndpoint{
		Network: n.Id, Node: self, Name: req.Name, Ips: req.Ips, LeaseEnd: timestamppb.New(time.Now().Add(leaseTime)),
	}
	switch {
	case req.Mac != "":
		mac, err := addr.ParseMAC(req.Mac)
		if err != nil {
			return nil, api.Errorf(api.Invalid, "mac", "%q is no MAC address", req.Mac)
		}
		add.Mac = mac[:]
	case len(req.Ips) > 0:
		mac := macFor(n.Id, req.Ips[0])
		add.Mac = mac[:]
	}
	res, err := s.cp.Propose(ctx, &statev1.Command{Kind: &statev1.Command_AddEndpoint{AddEndpoint: add}})
	if err != nil {
		return nil, known(err)
	}
	e := res.Endpoint
	got, err := s.follow.Attach(ctx, e, req.Netns, req.Interface)
	if err != nil {
		return nil, errors.Join(api.Errorf(api.Refused, "netns", "attach %s to %s: %w", req.Netns, n.Name, err), s.release(e.Id))
	}
	err = s.follow.Confirm(ctx, e.Id)
	if r, refused := errors.AsType[controlplane.Refusal](err); refused {
		return nil, errors.Join(known(r), s.follow.Detach(e.Id))
	}
	if err != nil {
		// The interface works. Whether the managers have heard of it decides itself: the follower asks again, and
		// takes it away if they collected the lease.
		s.log.Warn("an endpoint is attached, but not confirmed yet", "endpoint", e.Id, "error", err)
	}
	if now := s.cp.Tables().Endpoint(e.Id); now != nil {
		e = now
	}
	return &overlaydv1.AddEndpointResponse{Endpoint: s.showEndpoint(e, map[string]vtep.Attached{e.Id: got})}, nil
}

// macFor returns the MAC address of the endpoints that are added with a stated IP address: always the same, locally
// administered and of one station (IEEE 802, 8.4). An endpoint that moves keeps its address, and its neighbours keep what they
// know of it for half a minute and more; with another MAC it would not be reached for as long.
func macFor(network, ip string) addr.MAC {
	if a, err := netip.ParseAddr(ip); err == nil {
		ip = a.String() // one address may be written in several ways
	}
	sum := sha256.Sum256([]byte(network + " " + ip))
	mac := addr.MAC(sum[:6])
	mac[0] = mac[0]&^1 | 2
	return mac
}

// release gives back what was leased for an endpoint that could not be attached. If that fails, the lease ends by itself.
func (s *Service) release(id string) error {
	ctx, cancel := context.WithTimeout(context.Background(), tidyTime)
	defer cancel()
	_, err := s.cp.Propose(ctx, &statev1.Command{Kind: &statev1.Command_RemoveEndpoint{RemoveEndpoint: &statev1.RemoveEndpoint{Id: id}}})
	return known(err)
}

func (s *Service) showEndpoint(e *statev1.Endpoint, here map[string]vtep.Attached) *overlaydv1.Endpoint {
	t := s.cp.Tables()
	out := &overlaydv1.Endpoint{
		Id: e.Id, NetworkId: e.Network, Name: e.Name, Ips: e.Ips, Mac: macText(e.Mac), NodeId: e.Node,
		Generation: e.Generation, Status: api.EndpointAttached,
	}
	if e.LeaseEnd != nil {
		out.Status = api.EndpointPending
	}
	if n := t.Network(e.Network); n != nil {
		out.Network = n.Name
	}
	if n := t.Node(e.Node); n != nil {
		out.Node = n.Name
	}
	if a, ok := here[e.Id]; ok {
		out.Netns, out.Interface, out.Mtu = a.NetNS, a.Interface, uint32(a.MTU)
	}
	return out
}

// ListEndpoints returns one page of endpoints.
func (s *Service) ListEndpoints(ctx context.Context, req *overlaydv1.ListEndpointsRequest) (*overlaydv1.ListEndpointsResponse, error) {
	if err := s.fresh(ctx); err != nil {
		return nil, err
	}
	network, node := "", ""
	if req.Network != "" {
		n, err := s.networkNamed("network", req.Network)
		if err != nil {
			return nil, err
		}
		network = n.Id
	}
	if req.Node != "" {
		n, err := s.node("node", req.Node)
		if err != nil {
			return nil, err
		}
		node = n.Id
	}
	all := s.cp.Tables().Endpoints(network, node)
	at, found := slices.BinarySearchFunc(all, req.PageToken, func(e *statev1.Endpoint, id string) int { return strings.Compare(e.Id, id) })
	if found {
		at++
	}
	page := all[at:min(at+int(req.PageSize), len(all))]
	here := s.follow.Attached()
	res := &overlaydv1.ListEndpointsResponse{}
	for _, e := range page {
		res.Endpoints = append(res.Endpoints, s.showEndpoint(e, here))
	}
	if at+len(page) < len(all) && len(page) > 0 {
		res.NextPageToken = page[len(page)-1].Id
	}
	return res, nil
}

// RemoveEndpoint removes an endpoint, and its interface if that is here.
func (s *Service) RemoveEndpoint(ctx context.Context, req *overlaydv1.RemoveEndpointRequest) (*overlaydv1.RemoveEndpointResponse, error) {
	if err := s.agreed(ctx); err != nil {
		return nil, err
	}
	n, err := s.networkNamed("network", req.Network)
	if err != nil {
		return nil, err
	}
	t := s.cp.Tables()
	e := t.Endpoint(req.Endpoint)
	if e == nil {
		e = t.EndpointByName(n.Id, req.Endpoint)
	}
	if e == nil || e.Network != n.Id {
		return nil, api.Errorf(api.NotFound, "endpoint", "network %s has no endpoint %q: see `overlayctl endpoint ls %s`", n.Name, req.Endpoint, n.Name)
	}
	if _, err := s.cp.Propose(ctx, &statev1.Command{Kind: &statev1.Command_RemoveEndpoint{RemoveEndpoint: &statev1.RemoveEndpoint{Id: e.Id}}}); err != nil {
		return nil, known(err)
	}
	if err := s.follow.Detach(e.Id); err != nil {
		return nil, api.Errorf(api.Refused, "endpoint", "it is removed from the cluster, but its interface is still there: %w", err)
	}
	return &overlaydv1.RemoveEndpointResponse{}, nil
}
