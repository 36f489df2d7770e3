package api

import (
	"context"
	"io"

	"github.com/overlayd/overlayd/controlplane/api/overlayd/v1"
)

// The words that fields of overlayd.v1 have for what other software has enumerations for.
const (
	RoleWorker  = "worker"
	RoleManager = "manager"

	AvailabilityActive = "active"
	AvailabilityDrain  = "drain"

	// Of Node.status.
	NodeReady   = "ready"
	NodeDown    = "down"
	NodeUnknown = "unknown"

	// Of Node.manager_status and Manager.status.
	ManagerLeader      = "leader"
	ManagerReachable   = "reachable"
	ManagerUnreachable = "unreachable"

	// Of Endpoint.status.
	EndpointAttached = "attached"
	EndpointPending  = "pending"
)

// Limits of overlayd.v1.ClusterService.
const (
	// MaxEndpoints is how many endpoints one page has at most, and how many it has unless asked for less.
	MaxEndpoints = 16384
	// MaxChunk bounds one chunk of a backup, in bytes.
	MaxChunk = 64 << 10
)

// Membership is how a node comes into a cluster, and out of it.
type Membership interface {
	Init(context.Context, *overlaydv1.InitRequest) (*overlaydv1.InitResponse, error)
	Join(context.Context, *overlaydv1.JoinRequest) (*overlaydv1.JoinResponse, error)
	Leave(context.Context, *overlaydv1.LeaveRequest) (*overlaydv1.LeaveResponse, error)
}

// Tokens let nodes join.
type Tokens interface {
	GetTokens(context.Context, *overlaydv1.GetTokensRequest) (*overlaydv1.GetTokensResponse, error)
	RotateToken(context.Context, *overlaydv1.RotateTokenRequest) (*overlaydv1.RotateTokenResponse, error)
}

// Members are the nodes of a cluster.
type Members interface {
	GetClusterStatus(context.Context, *overlaydv1.GetClusterStatusRequest) (*overlaydv1.GetClusterStatusResponse, error)
	ListNodes(context.Context, *overlaydv1.ListNodesRequest) (*overlaydv1.ListNodesResponse, error)
	GetNode(context.Context, *overlaydv1.GetNodeRequest) (*overlaydv1.GetNodeResponse, error)
	UpdateNode(context.Context, *overlaydv1.UpdateNodeRequest) (*overlaydv1.UpdateNodeResponse, error)
	RemoveNode(context.Context, *overlaydv1.RemoveNodeRequest) (*overlaydv1.RemoveNodeResponse, error)
}

// Networks are those of a cluster.
type Networks interface {
	CreateNetwork(context.Context, *overlaydv1.CreateNetworkRequest) (*overlaydv1.CreateNetworkResponse, error)
	ListClusterNetworks(context.Context, *overlaydv1.ListClusterNetworksRequest) (*overlaydv1.ListClusterNetworksResponse, error)
	GetNetwork(context.Context, *overlaydv1.GetNetworkRequest) (*overlaydv1.GetNetworkResponse, error)
	RemoveNetwork(context.Context, *overlaydv1.RemoveNetworkRequest) (*overlaydv1.RemoveNetworkResponse, error)
}

// Endpoints are those of a cluster.
type Endpoints interface {
	AddEndpoint(context.Context, *overlaydv1.AddEndpointRequest) (*overlaydv1.AddEndpointResponse, error)
	// ListEndpoints returns those whose ID stands behind page_token, sorted by ID and at most page_size,
	// and the ID of the last one as the next page token if there are more. It is given a page_size from 1
	// to MaxEndpoints, and a page_token that is an ID or empty.
	ListEndpoints(context.Context, *overlaydv1.ListEndpointsRequest) (*overlaydv1.ListEndpointsResponse, error)
	RemoveEndpoint(context.Context, *overlaydv1.RemoveEndpointRequest) (*overlaydv1.RemoveEndpointResponse, error)
}

// Archive saves the state of a cluster and brings it back.
type Archive interface {
	// Backup writes all of it. A write fails when the caller has gone away.
	Backup(context.Context, io.Writer) error
	// Restore reads what Backup wrote. An end of the stream before the caller's is an error other than
	// io.EOF, such as one of a caller that has gone away. The reader must not be used after Restore returned.
	Restore(context.Context, io.Reader) (*overlaydv1.RestoreResponse, error)
}

// Cluster is what a Server offers as overlayd.v1.ClusterService. Its methods are called by many goroutines
// at once, with requests whose fields were checked:
//
//   - names, IDs, roles, ports, VNIs and MTUs are in their ranges, and what must be there is;
//   - IP addresses, prefixes and MAC addresses are in their canonical form (netip's String, lower-case
//     hexadecimal digits with colons), prefixes have no host bits, and each gateway is a host of its subnet;
//   - CreateNetworkRequest.Gateways is empty or has an element for each subnet at the same place, "" for none;
//   - RestoreRequest never has more than MaxChunk.
//
// What an error says is for the operator; Errorf makes one of a Kind. Any other error is reported as an
// internal one. The context ends when the caller has gone away or waited for too long.
type Cluster interface {
	Membership
	Tokens
	Members
	Networks
	Endpoints
	Archive
}
