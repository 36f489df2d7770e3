package api

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"

	"github.com/overlayd/overlayd/controlplane/api/overlayd/v1"
	"github.com/overlayd/overlayd/dataplane/addr"
)

const (
	maxPage = 65536 // entries of a forwarding database in one answer
	maxSend = 256   // samples of drops in one message of a stream

	// watchInterval is how often a stream of drops looks for new samples. The node takes samples without
	// telling anyone: on the path of a frame there is nobody to wake.
	watchInterval = 200 * time.Millisecond
)

// nodeService implements overlayd.v1.NodeService.
type nodeService struct {
	node Node
	stop <-chan struct{}
}

func (s nodeService) GetVersion(context.Context, *overlaydv1.GetVersionRequest) (*overlaydv1.GetVersionResponse, error) {
	return &overlaydv1.GetVersionResponse{Version: s.node.Status().GetVersion()}, nil
}

func (s nodeService) GetStatus(context.Context, *overlaydv1.GetStatusRequest) (*overlaydv1.GetStatusResponse, error) {
	return &overlaydv1.GetStatusResponse{Status: s.node.Status()}, nil
}

func (s nodeService) ListNetworks(context.Context, *overlaydv1.ListNetworksRequest) (*overlaydv1.ListNetworksResponse, error) {
	return &overlaydv1.ListNetworksResponse{Networks: s.node.Networks()}, nil
}

func (s nodeService) ListPeers(context.Context, *overlaydv1.ListPeersRequest) (*overlaydv1.ListPeersResponse, error) {
	return &overlaydv1.ListPeersResponse{Peers: s.node.Peers()}, nil
}

func (s nodeService) ListPaths(_ context.Context, req *overlaydv1.ListPathsRequest) (*overlaydv1.ListPathsResponse, error) {
	res := &overlaydv1.ListPathsResponse{Probes: s.node.Probes()}
	for _, n := range s.node.Networks() {
		if req.Network == "" || n.Name == req.Network {
			res.Networks = append(res.Networks, n)
		}
	}
	if req.Network != "" && len(res.Networks) == 0 {
		return nil, s.noNetwork(req.Network)
	}
	for _, p := range s.node.Paths() {
		if req.Network == "" || slices.Contains(p.Networks, req.Network) {
			res.Paths = append(res.Paths, p)
		}
	}
	return res, nil
}

func (s nodeService) ListFDB(_ context.Context, req *overlaydv1.ListFDBRequest) (*overlaydv1.ListFDBResponse, error) {
	limit := int(req.PageSize)
	if limit == 0 || limit > maxPage {
		limit = maxPage
	}
	var after addr.MAC
	if req.PageToken != "" {
		var err error
		if after, err = addr.ParseMAC(req.PageToken); err != nil {
			return nil, connect.NewError(connect.CodeInvalidArgument,
				fmt.Errorf("page token %s is none of ours: pass on the next_page_token of the answer before", show(req.PageToken)))
		}
	}
	// One more than asked for tells whether there is another page.
	entries, err := s.node.FDB(req.Network, after, limit+1)
	if errors.Is(err, ErrNoNetwork) {
		return nil, s.noNetwork(req.Network)
	}
	if err != nil {
		return nil, connect.NewError(connect.CodeInternal, fmt.Errorf("read the forwarding database of %s: %w", req.Network, err))
	}
	res := &overlaydv1.ListFDBResponse{Entries: entries}
	if len(entries) > limit {
		res.Entries = entries[:limit]
		res.NextPageToken = entries[limit-1].Mac
	}
	return res, nil
}

func (s nodeService) ListDrops(_ context.Context, req *overlaydv1.ListDropsRequest) (*overlaydv1.ListDropsResponse, error) {
	if err := s.checkNetwork(req.Network); err != nil {
		return nil, err
	}
	type row struct{ network, reason string }
	last := make(map[row]*overlaydv1.DropSample)
	for _, sample := range s.node.Samples(0) {
		last[row{sample.Network, sample.Reason}] = sample
	}
	res := &overlaydv1.ListDropsResponse{}
	for _, d := range s.node.Drops() {
		if req.Network == "" || d.Network == req.Network {
			d.LastSample = last[row{d.Network, d.Reason}]
			res.Drops = append(res.Drops, d)
		}
	}
	return res, nil
}

func (s nodeService) WatchDrops(ctx context.Context, req *overlaydv1.WatchDropsRequest, stream *connect.ServerStream[overlaydv1.WatchDropsResponse]) error {
	if err := s.checkNetwork(req.Network); err != nil {
		return err
	}
	// The header tells the caller that the watch stands, before there is anything to see.
	if err := bounded(ctx, func() error { return stream.Send(nil) }); err != nil {
		return err
	}
	tick := time.NewTicker(watchInterval)
	defer tick.Stop()
	after := req.After
	for {
		samples := s.node.Samples(after)
		var missed uint64
		if len(samples) > 0 {
			if first := samples[0].Seq; after > 0 && first > after+1 {
				missed = first - after - 1
			}
			after = samples[len(samples)-1].Seq
		}
		if err := sendSamples(ctx, stream, req.Network, samples, missed); err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		case <-s.stop:
			return connect.NewError(connect.CodeUnavailable, errors.New("the daemon is stopping"))
		}
	}
}

// sendSamples sends those of one network, or all of them if it is "", in messages of bounded size. The
// first message says how many were missed.
func sendSamples(ctx context.Context, stream *connect.ServerStream[overlaydv1.WatchDropsResponse], network string, samples []*overlaydv1.DropSample, missed uint64) error {
	res := &overlaydv1.WatchDropsResponse{Missed: missed}
	for _, sample := range samples {
		if network != "" && sample.Network != network {
			continue
		}
		if len(res.Samples) == maxSend {
			if err := bounded(ctx, func() error { return stream.Send(res) }); err != nil {
				return err
			}
			res = &overlaydv1.WatchDropsResponse{}
		}
		res.Samples = append(res.Samples, sample)
	}
	if len(res.Samples) == 0 && res.Missed == 0 {
		return nil
	}
	return bounded(ctx, func() error { return stream.Send(res) })
}

// checkNetwork returns an error if name is neither empty nor a network of this node.
func (s nodeService) checkNetwork(name string) error {
	if name == "" {
		return nil
	}
	for _, n := range s.node.Networks() {
		if n.Name == name {
			return nil
		}
	}
	return s.noNetwork(name)
}

// noNetwork says that there is no network of this name, and which there are.
func (s nodeService) noNetwork(name string) error {
	var known []string
	for _, n := range s.node.Networks() {
		known = append(known, n.Name)
	}
	list := "there is none at all"
	if len(known) > 0 {
		list = "choose from " + strings.Join(known, ", ")
	}
	return connect.NewError(connect.CodeNotFound, fmt.Errorf("this node has no network %s: %s", show(name), list))
}
