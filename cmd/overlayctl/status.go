package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"github.com/overlayd/overlayd/controlplane/api"
	"github.com/overlayd/overlayd/controlplane/api/overlayd/v1"
)

func (a *app) statusCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show at a glance what this node does",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.ask(cmd.Context(), a.status)
		},
	}
	a.addOutput(cmd)
	return cmd
}

func (a *app) status(ctx context.Context, c *api.Client) error {
	res, err := c.GetStatus(ctx, &overlaydv1.GetStatusRequest{})
	if err != nil {
		return err
	}
	cluster, clusterErr := c.GetClusterStatus(ctx, &overlaydv1.GetClusterStatusRequest{})
	if noCluster(clusterErr) {
		clusterErr = nil
	}
	// If the cluster cannot be asked, what is known of the node stands, and the error comes behind it.
	switch {
	case a.output != formatJSON:
	case cluster == nil:
		return firstError(printJSON(a.stdout, res), clusterErr)
	default:
		return printWith(a.stdout, res, "cluster", cluster.GetStatus())
	}
	networks, err := c.ListNetworks(ctx, &overlaydv1.ListNetworksRequest{})
	if err != nil {
		return err
	}
	peers, err := c.ListPeers(ctx, &overlaydv1.ListPeersRequest{})
	if err != nil {
		return err
	}

	st, u := res.GetStatus(), res.GetStatus().GetUnderlay()
	p := &paragraph{}
	p.add("node", "%s, up %s, process %d", st.GetNode(), span(a.now().Sub(st.GetStartTime().AsTime())), st.GetPid())
	p.add("version", "%s", api.VersionLine(st.GetVersion()))
	describeCluster(p, cluster.GetStatus())
	addresses := "no address yet"
	if len(u.GetAddresses()) > 0 {
		addresses = strings.Join(u.GetAddresses(), ", ")
	}
	p.add("underlay", "%s, UDP port %d", addresses, u.GetPort())
	p.add("datagrams", "%s received, %s sent", count(u.GetDatagramsIn()), count(u.GetDatagramsOut()))
	if n := u.GetReceiveOverflow(); n > 0 {
		p.add("", "%s lost because the receive buffer was full", count(n))
	}
	var dropped uint64
	for _, n := range u.GetDropsByReason() {
		dropped += n
	}
	for _, n := range networks.Networks {
		fixed := ""
		if !n.MtuDerived {
			fixed = " (fixed)"
		}
		p.add("network", "%s: VNI %d, device %s, MTU %d%s, %s, %s", n.Name, n.Vni, n.Device, n.Mtu, fixed,
			plural(uint64(len(n.Peers)), "peer"), plural(n.FdbEntries, "station"))
		if n.TapOverflow > 0 {
			p.add("", "%s lost because the queue of %s was full", plural(n.TapOverflow, "frame"), n.Device)
		}
		if n.Healed > 0 {
			p.add("", "%s put right that somebody else had changed: the log says when", plural(n.Healed, "thing"))
		}
		if n.Problem != "" {
			p.add("", "not as stated: %s", n.Problem)
		}
		dropped += n.GetCounters().GetFramesDropped()
	}
	describeFastPath(p, st.GetFeatures(), networks.Networks)
	describePeers(p, peers.Peers)
	describePaths(p, peers.Peers)
	if dropped == 0 {
		p.add("dropped", "nothing")
	} else {
		p.add("dropped", "%s: overlayctl drops says why", plural(dropped, "frame"))
	}
	var on []string
	for _, f := range st.GetFeatures() {
		if f.On {
			on = append(on, f.Name)
		}
	}
	if len(on) > 0 {
		p.add("features", "%s", strings.Join(on, ", "))
	}
	for _, f := range st.GetFeatures() {
		if !f.On {
			p.add("without", "%s: %s", f.Name, f.Reason)
		}
	}
	return firstError(p.print(a.stdout), clusterErr)
}

// noCluster reports whether an error says that there is no cluster here: the node is in none, or the daemon offers
// none.
func noCluster(err error) bool {
	kind, _ := api.Info(err)
	return kind == api.NotMember || connect.CodeOf(err) == connect.CodeUnimplemented
}

// describeCluster tells of the cluster that the node is in, if it is in one.
func describeCluster(p *paragraph, st *overlaydv1.ClusterStatus) {
	if st == nil {
		return
	}
	p.add("cluster", "%s, as %s", st.GetClusterId(), roleText(st.GetNode()))
	p.add("quorum", "%s", quorumText(st))
	for _, problem := range st.GetProblems() {
		p.add("trouble", "%s", problem)
	}
}

// describeFastPath tells how much of the traffic the kernel forwards by itself. Why it does not is told with the features.
func describeFastPath(p *paragraph, features []*overlaydv1.Feature, networks []*overlaydv1.Network) {
	const feature = "fast-path"
	if !slices.ContainsFunc(features, func(f *overlaydv1.Feature) bool { return f.Name == feature && f.On }) {
		return
	}
	var pairs, fast, all uint64
	for _, n := range networks {
		pairs += n.GetFastPathPairs()
		fast += n.GetFastPathOut().GetFrames() + n.GetFastPathIn().GetFrames()
		all += n.GetCounters().GetUnderlayOut().GetFrames() + n.GetCounters().GetUnderlayIn().GetFrames()
	}
	known := plural(pairs, "pair")
	if pairs == 0 {
		known = "no pairs"
	}
	if all == 0 {
		p.add("fast path", "%s of stations", known)
		return
	}
	permille := fast * 1000 / all // rounded down: 100 % is all of them
	p.add("fast path", "%s of stations, %d.%d %% of frames forwarded in the kernel", known, permille/10, permille%10)
}

func describePeers(p *paragraph, peers []*overlaydv1.Peer) {
	var bad []*overlaydv1.Peer
	for _, peer := range peers {
		if peer.Problem != "" {
			bad = append(bad, peer)
		}
	}
	switch {
	case len(peers) == 0:
		p.add("peers", "none")
	case len(bad) == 0:
		p.add("peers", "%d, nothing known against any", len(peers))
	default:
		p.add("peers", "%d, of which %d with a problem", len(peers), len(bad))
		for _, peer := range bad {
			p.add("", "%s: %s", peer.Address, peer.Problem)
		}
	}
}

// describePaths tells of paths that carry less than the devices that they begin with.
func describePaths(p *paragraph, peers []*overlaydv1.Peer) {
	const most = 5
	var narrow []*overlaydv1.Peer
	for _, peer := range peers {
		if peer.Problem == "" && peer.PathMtu != 0 && peer.PathMtu < peer.UnderlayMtu {
			narrow = append(narrow, peer)
		}
	}
	for i, peer := range narrow {
		if i == most {
			p.add("paths", "%d more like that: overlayctl mtu shows all", len(narrow)-most)
			break
		}
		p.add("paths", "to %s %d bytes, of the %d that %s sends: overlayctl mtu says how that is known", peer.Address, peer.PathMtu, peer.UnderlayMtu, peer.Device)
	}
}

// paragraph is a list of labelled lines, with the labels in a column of their own. A label is printed once
// for the lines in a row that have it.
type paragraph struct {
	lines [][2]string // label and text
}

func (p *paragraph) add(label, f string, args ...any) {
	p.lines = append(p.lines, [2]string{label, fmt.Sprintf(f, args...)})
}

func (p *paragraph) print(w io.Writer) error {
	width := 0
	for _, l := range p.lines {
		width = max(width, len(l[0]))
	}
	var out strings.Builder
	last := ""
	for _, l := range p.lines {
		label := l[0]
		if label == last {
			label = ""
		}
		if l[0] != "" {
			last = l[0]
		}
		fmt.Fprintf(&out, "%-*s  %s\n", width, label, l[1])
	}
	_, err := io.WriteString(w, out.String())
	return err
}

func (a *app) versionCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Show the versions of overlayctl and of the daemon",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.ask(cmd.Context(), a.version)
		},
	}
	a.addOutput(cmd)
	return cmd
}

// version prints its own version also when no daemon answers; that is then the error.
func (a *app) version(ctx context.Context, c *api.Client) error {
	own := api.BuildVersion()
	res, err := c.GetVersion(ctx, &overlaydv1.GetVersionRequest{})
	if a.output == formatJSON {
		return firstError(a.versionJSON(own, res.GetVersion()), err)
	}
	p := &paragraph{}
	p.add("overlayctl", "%s", api.VersionLine(own))
	if err == nil {
		p.add("overlayd", "%s", api.VersionLine(res.GetVersion()))
	}
	return firstError(p.print(a.stdout), err)
}

// versionJSON prints {"overlayctl": ..., "overlayd": ...}; the latter is null when no daemon answers.
func (a *app) versionJSON(own, daemon *overlaydv1.Version) error {
	var parts struct {
		Overlayctl json.RawMessage  `json:"overlayctl"`
		Overlayd   *json.RawMessage `json:"overlayd"`
	}
	var err error
	if parts.Overlayctl, err = api.MarshalJSON(own); err != nil {
		return err
	}
	if daemon != nil {
		raw, err := api.MarshalJSON(daemon)
		if err != nil {
			return err
		}
		parts.Overlayd = (*json.RawMessage)(&raw)
	}
	return printValue(a.stdout, parts)
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
