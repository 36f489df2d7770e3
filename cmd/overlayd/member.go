package main

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/overlayd/overlayd/cmd/overlayd/cluster"
	"github.com/overlayd/overlayd/cmd/overlayd/config"
	"github.com/overlayd/overlayd/controlplane"
	"github.com/overlayd/overlayd/controlplane/api"
	"github.com/overlayd/overlayd/controlplane/consensus"
	"github.com/overlayd/overlayd/vtep/link"
)

// member is the node's part in a cluster: the control plane, and what brings it to the VTEP. It is nil on a node that
// takes part in none.
type member struct {
	cp     *controlplane.Node
	follow *cluster.Follower
	serves *cluster.Service
	at     *cluster.Addresses
}

// newMember returns nil if there is no data directory.
func newMember(cfg *config.Config, tun *late, log *slog.Logger) (*member, error) {
	if cfg.DataDir == "" {
		return nil, nil
	}
	dir, err := filepath.Abs(cfg.DataDir)
	if err != nil {
		return nil, err
	}
	cp, err := controlplane.New(controlplane.Config{
		Dir:         dir,
		Listen:      cfg.Cluster.Listen,
		ControlPort: uint16(cfg.Cluster.ControlPort),
		GossipPort:  uint16(cfg.Cluster.GossipPort),
		VXLANPort:   uint16(cfg.Underlay.Port),
		Timing:      timing(cfg.Cluster.RaftMultiplier),
		Log:         log,
	})
	if err != nil {
		return nil, err
	}
	f, err := cluster.NewFollower(cp, tun, filepath.Join(dir, "attachments.json"), log)
	if err != nil {
		return nil, err
	}
	name := ""
	if cfg.NodeStated() {
		name = cfg.Node
	}
	return &member{
		cp: cp, follow: f, serves: cluster.NewService(cp, f, clusterHost{}, name, log),
		at: cluster.NewAddresses(cp, f, clusterHost{}, log),
	}, nil
}

// timing stretches the patience of Raft.
func timing(multiplier int) consensus.Timing {
	if multiplier == 1 {
		return consensus.Timing{} // its defaults
	}
	const heartbeat = 2 * time.Second // the default
	return consensus.Timing{Heartbeat: time.Duration(multiplier) * heartbeat}
}

// service is what the API serves of it.
func (m *member) service() api.Cluster {
	if m == nil {
		return nil
	}
	return m.serves
}

// networkID returns the ID of the cluster's network of this name, or "".
func (m *member) networkID(name string) string {
	if m == nil {
		return ""
	}
	return m.cp.Tables().NetworkByName(name).GetId()
}

// Run takes part until ctx ends.
func (m *member) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return m.cp.Run(ctx) })
	group.Go(func() error { return m.follow.Run(ctx) })
	group.Go(func() error { return m.at.Run(ctx) })
	err := group.Wait()
	if err == nil {
		err = ctx.Err()
	}
	return err
}

// clusterHost is this host as a cluster.Service asks for it.
type clusterHost struct{}

func (clusterHost) HasAddress(a netip.Addr) (string, bool) { return link.HasAddress(a) }

func (clusterHost) SourceTo(to netip.Addr) (netip.Addr, error) {
	if to.IsValid() {
		r, err := link.RouteTo(to)
		return r.Src, err
	}
	var err error
	// Any address of the Internet has the default route; these are of the documentation.
	for _, to := range []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")} {
		var r link.Route
		if r, err = link.RouteTo(to); err == nil {
			return r.Src, nil
		}
	}
	return netip.Addr{}, fmt.Errorf("this host has no default route: %w", err)
}

func (clusterHost) RouteWithin(p netip.Prefix) string { return link.RouteOverlapping(p) }
