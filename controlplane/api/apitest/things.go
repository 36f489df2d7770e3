package apitest

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/overlayd/overlayd/controlplane/api"
	"github.com/overlayd/overlayd/controlplane/api/overlayd/v1"
)

func (c *Cluster) node(ref string) (*overlaydv1.Node, error) {
	for _, n := range c.c.Nodes {
		if n.Name == ref || n.Id == ref {
			return n, nil
		}
	}
	return nil, api.Errorf(api.NotFound, "node", "there is no node %q; see `overlayctl node ls`", ref)
}

func (c *Cluster) network(ref string) (*overlaydv1.ClusterNetwork, error) {
	for _, n := range c.c.Networks {
		if n.Name == ref || n.Id == ref {
			return n, nil
		}
	}
	return nil, api.Errorf(api.NotFound, "network", "there is no network %q; see `overlayctl network ls`", ref)
}

// ListNodes implements api.Members.
func (c *Cluster) ListNodes(context.Context, *overlaydv1.ListNodesRequest) (*overlaydv1.ListNodesResponse, error) {
	leave, err := c.enter(true, false)
	if err != nil {
		return nil, err
	}
	defer leave()
	return &overlaydv1.ListNodesResponse{Nodes: clones(c.c.Nodes)}, nil
}

// GetNode implements api.Members.
func (c *Cluster) GetNode(_ context.Context, req *overlaydv1.GetNodeRequest) (*overlaydv1.GetNodeResponse, error) {
	leave, err := c.enter(true, false)
	if err != nil {
		return nil, err
	}
	defer leave()
	n, err := c.node(req.Node)
	if err != nil {
		return nil, err
	}
	return &overlaydv1.GetNodeResponse{Node: proto.CloneOf(n)}, nil
}

// UpdateNode implements api.Members.
func (c *Cluster) UpdateNode(_ context.Context, req *overlaydv1.UpdateNodeRequest) (*overlaydv1.UpdateNodeResponse, error) {
	leave, err := c.enter(true, true)
	if err != nil {
		return nil, err
	}
	defer leave()
	n, err := c.node(req.Node)
	if err != nil {
		return nil, err
	}
	if req.Role == api.RoleWorker && n.Role == api.RoleManager && c.managers() == 1 {
		return nil, api.Errorf(api.Refused, "role", "%s is the last manager; promote another node first", n.Name)
	}
	if req.Role != "" {
		n.Role = req.Role
	}
	if req.Availability != "" {
		n.Availability = req.Availability
	}
	return &overlaydv1.UpdateNodeResponse{Node: proto.CloneOf(n)}, nil
}

// RemoveNode implements api.Members.
func (c *Cluster) RemoveNode(_ context.Context, req *overlaydv1.RemoveNodeRequest) (*overlaydv1.RemoveNodeResponse, error) {
	leave, err := c.enter(true, true)
	if err != nil {
		return nil, err
	}
	defer leave()
	n, err := c.node(req.Node)
	if err != nil {
		return nil, err
	}
	if n.Status == api.NodeReady && !req.Force {
		return nil, api.Errorf(api.Refused, "node", "%s is up; run `overlayctl leave` there, or use --force", n.Name)
	}
	c.c.Nodes = slices.DeleteFunc(c.c.Nodes, func(x *overlaydv1.Node) bool { return x == n })
	return &overlaydv1.RemoveNodeResponse{}, nil
}

// CreateNetwork implements api.Networks.
func (c *Cluster) CreateNetwork(_ context.Context, req *overlaydv1.CreateNetworkRequest) (*overlaydv1.CreateNetworkResponse, error) {
	leave, err := c.enter(true, true)
	if err != nil {
		return nil, err
	}
	defer leave()
	if other, err := c.network(req.Name); err == nil {
		return nil, api.Errorf(api.Exists, "name", "the network %s has that name; choose another one", other.Id)
	}
	n := &overlaydv1.ClusterNetwork{
		Id: c.id(), Name: req.Name, Vni: req.Vni, Subnets: req.Subnets, Gateways: req.Gateways, Mtu: req.Mtu, Mss: req.Mss, Created: timestamppb.New(c.now),
	}
	if n.Vni == 0 {
		n.Vni = 4096 + uint32(len(c.c.Networks))
	}
	if len(n.Subnets) == 0 {
		n.Subnets = []string{fmt.Sprintf("10.0.%d.0/24", len(c.c.Networks))}
	}
	if len(n.Gateways) == 0 {
		n.Gateways = make([]string, len(n.Subnets))
	}
	c.c.Networks = append(c.c.Networks, n)
	slices.SortFunc(c.c.Networks, func(a, b *overlaydv1.ClusterNetwork) int { return strings.Compare(a.Name, b.Name) })
	return &overlaydv1.CreateNetworkResponse{Network: proto.CloneOf(n), Warnings: c.c.Warnings}, nil
}

// ListClusterNetworks implements api.Networks.
func (c *Cluster) ListClusterNetworks(context.Context, *overlaydv1.ListClusterNetworksRequest) (*overlaydv1.ListClusterNetworksResponse, error) {
	leave, err := c.enter(true, false)
	if err != nil {
		return nil, err
	}
	defer leave()
	return &overlaydv1.ListClusterNetworksResponse{Networks: clones(c.c.Networks)}, nil
}

// GetNetwork implements api.Networks.
func (c *Cluster) GetNetwork(_ context.Context, req *overlaydv1.GetNetworkRequest) (*overlaydv1.GetNetworkResponse, error) {
	leave, err := c.enter(true, false)
	if err != nil {
		return nil, err
	}
	defer leave()
	n, err := c.network(req.Network)
	if err != nil {
		return nil, err
	}
	return &overlaydv1.GetNetworkResponse{Network: proto.CloneOf(n)}, nil
}

// RemoveNetwork implements api.Networks.
func (c *Cluster) RemoveNetwork(_ context.Context, req *overlaydv1.RemoveNetworkRequest) (*overlaydv1.RemoveNetworkResponse, error) {
	leave, err := c.enter(true, true)
	if err != nil {
		return nil, err
	}
	defer leave()
	n, err := c.network(req.Network)
	if err != nil {
		return nil, err
	}
	if n.Endpoints > 0 {
		return nil, api.Errorf(api.InUse, "network", "%s still has endpoints, %d of them; remove them first", n.Name, n.Endpoints)
	}
	c.c.Networks = slices.DeleteFunc(c.c.Networks, func(x *overlaydv1.ClusterNetwork) bool { return x == n })
	return &overlaydv1.RemoveNetworkResponse{}, nil
}

// AddEndpoint implements api.Endpoints.
func (c *Cluster) AddEndpoint(_ context.Context, req *overlaydv1.AddEndpointRequest) (*overlaydv1.AddEndpointResponse, error) {
	leave, err := c.enter(true, true)
	if err != nil {
		return nil, err
	}
	defer leave()
	n, err := c.network(req.Network)
	if err != nil {
		return nil, err
	}
	self := c.self()
	e := &overlaydv1.Endpoint{
		Id: c.id(), Network: n.Name, NetworkId: n.Id, Name: req.Name, Ips: req.Ips, Mac: req.Mac, Node: self.GetName(), NodeId: self.GetId(),
		Generation: 1, Status: api.EndpointAttached, Netns: req.Netns, Interface: req.Interface, Mtu: 1450,
	}
	if len(e.Ips) == 0 {
		p, err := netip.ParsePrefix(n.Subnets[0])
		if err != nil {
			return nil, err
		}
		a := p.Addr()
		for range n.Endpoints + 2 {
			a = a.Next()
		}
		e.Ips = []string{a.String()}
	}
	if e.Mac == "" {
		e.Mac = "02:42:00:00:00:" + e.Id[14:]
	}
	if e.Interface == "" {
		e.Interface = "eth0"
	}
	n.Endpoints++
	c.c.Endpoints = append(c.c.Endpoints, e)
	return &overlaydv1.AddEndpointResponse{Endpoint: proto.CloneOf(e)}, nil
}

// ListEndpoints implements api.Endpoints.
func (c *Cluster) ListEndpoints(_ context.Context, req *overlaydv1.ListEndpointsRequest) (*overlaydv1.ListEndpointsResponse, error) {
	leave, err := c.enter(true, false)
	if err != nil {
		return nil, err
	}
	defer leave()
	if req.Network != "" {
		if _, err := c.network(req.Network); err != nil {
			return nil, err
		}
	}
	res := &overlaydv1.ListEndpointsResponse{}
	for _, e := range c.c.Endpoints {
		if e.Id <= req.PageToken || req.Network != "" && req.Network != e.Network && req.Network != e.NetworkId ||
			req.Node != "" && req.Node != e.Node && req.Node != e.NodeId {
			continue
		}
		if len(res.Endpoints) == int(req.PageSize) {
			res.NextPageToken = res.Endpoints[len(res.Endpoints)-1].Id
			break
		}
		res.Endpoints = append(res.Endpoints, proto.CloneOf(e))
	}
	return res, nil
}

// RemoveEndpoint implements api.Endpoints.
func (c *Cluster) RemoveEndpoint(_ context.Context, req *overlaydv1.RemoveEndpointRequest) (*overlaydv1.RemoveEndpointResponse, error) {
	leave, err := c.enter(true, true)
	if err != nil {
		return nil, err
	}
	defer leave()
	n, err := c.network(req.Network)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(c.c.Endpoints, func(e *overlaydv1.Endpoint) bool {
		return e.NetworkId == n.Id && (e.Name == req.Endpoint || e.Id == req.Endpoint)
	})
	if i < 0 {
		return nil, api.Errorf(api.NotFound, "endpoint", "%s has no endpoint %q; see `overlayctl endpoint ls %s`", n.Name, req.Endpoint, n.Name)
	}
	n.Endpoints--
	c.c.Endpoints = slices.Delete(c.c.Endpoints, i, i+1)
	return &overlaydv1.RemoveEndpointResponse{}, nil
}
