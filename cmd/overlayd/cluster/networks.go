package cluster

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"

	"github.com/overlayd/overlayd/controlplane/api"
	"github.com/overlayd/overlayd/controlplane/api/overlayd/state/v1"
	"github.com/overlayd/overlayd/controlplane/api/overlayd/v1"
)

// networkNamed finds a network by its name or ID.
func (s *Service) networkNamed(field, name string) (*statev1.Network, error) {
	t := s.cp.Tables()
	if n := t.Network(name); n != nil {
		return n, nil
	}
	if n := t.NetworkByName(name); n != nil {
		return n, nil
	}
	return nil, api.Errorf(api.NotFound, field, "there is no network %q: see `overlayctl network ls`", name)
}

func (s *Service) showNetwork(n *statev1.Network) *overlaydv1.ClusterNetwork {
	return &overlaydv1.ClusterNetwork{
		Id: n.Id, Name: n.Name, Vni: n.Vni, Subnets: n.Subnets, Gateways: n.Gateways, Mtu: n.Mtu, Mss: n.Mss,
		Endpoints: uint64(len(s.cp.Tables().Endpoints(n.Id, ""))), Created: n.Created,
	}
}

// CreateNetwork makes a network. Subnets that this host has routes into are refused: containers on it could not
// tell the two apart.
func (s *Service) CreateNetwork(ctx context.Context, req *overlaydv1.CreateNetworkRequest) (*overlaydv1.CreateNetworkResponse, error) {
	if self, _ := s.cp.Self(); self == "" {
		return nil, api.ErrNotMember()
	}
	for i, t := range req.Subnets {
		p, err := netip.ParsePrefix(t)
		if err != nil {
			return nil, api.Errorf(api.Invalid, fmt.Sprintf("subnets[%d]", i), "%q is no prefix such as 10.42.0.0/24", t)
		}
		if r := s.host.RouteWithin(p); r != "" {
			return nil, api.Errorf(api.Exists, fmt.Sprintf("subnets[%d]", i), "%v overlaps with a route of this host, %s: choose another subnet", p, r)
		}
	}
	if err := s.fits(req.Mtu); err != nil {
		return nil, err
	}
	res, err := s.cp.Propose(ctx, &statev1.Command{Kind: &statev1.Command_CreateNetwork{CreateNetwork: &statev1.CreateNetwork{
		Name: req.Name, Vni: req.Vni, Subnets: req.Subnets, Gateways: req.Gateways, Mtu: req.Mtu, Mss: req.Mss,
	}}})
	if err != nil {
		return nil, known(err)
	}
	return &overlaydv1.CreateNetworkResponse{Network: s.showNetwork(res.Network), Warnings: s.tight()}, nil
}

// ListClusterNetworks returns the networks of the cluster.
func (s *Service) ListClusterNetworks(ctx context.Context, _ *overlaydv1.ListClusterNetworksRequest) (*overlaydv1.ListClusterNetworksResponse, error) {
	if err := s.fresh(ctx); err != nil {
		return nil, err
	}
	res := &overlaydv1.ListClusterNetworksResponse{}
	for _, n := range s.cp.Tables().Networks() {
		res.Networks = append(res.Networks, s.showNetwork(n))
	}
	slices.SortFunc(res.Networks, func(a, b *overlaydv1.ClusterNetwork) int { return cmp.Compare(a.Name, b.Name) })
	return res, nil
}

// GetNetwork returns one network.
func (s *Service) GetNetwork(ctx context.Context, req *overlaydv1.GetNetworkRequest) (*overlaydv1.GetNetworkResponse, error) {
	if err := s.fresh(ctx); err != nil {
		return nil, err
	}
	n, err := s.networkNamed("network", req.Network)
	if err != nil {
		return nil, err
	}
	return &overlaydv1.GetNetworkResponse{Network: s.showNetwork(n)}, nil
}

// RemoveNetwork removes a network without endpoints.
func (s *Service) RemoveNetwork(ctx context.Context, req *overlaydv1.RemoveNetworkRequest) (*overlaydv1.RemoveNetworkResponse, error) {
	if err := s.agreed(ctx); err != nil {
		return nil, err
	}
	n, err := s.networkNamed("network", req.Network)
	if err != nil {
		return nil, err
	}
	if _, err := s.cp.Propose(ctx, &statev1.Command{Kind: &statev1.Command_RemoveNetwork{RemoveNetwork: &statev1.RemoveNetwork{Id: n.Id}}}); err != nil {
		return nil, known(err)
	}
	return &overlaydv1.RemoveNetworkResponse{}, nil
}
