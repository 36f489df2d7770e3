package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/overlayd/overlayd/cmd/overlayctl/decode"
	"github.com/overlayd/overlayd/controlplane/api"
	"github.com/overlayd/overlayd/controlplane/api/overlayd/v1"
)

func (a *app) dropsCommand() *cobra.Command {
	var (
		network string
		follow  bool
	)
	cmd := &cobra.Command{
		Use:   "drops",
		Short: "Show what was dropped, why, and what to do about it",
		Long: `drops lists each reason for which frames were dropped, how many and when, what
that means, and the first bytes of the last one.

With --follow it shows single frames instead: first those that the daemon still
remembers, then new ones as they are dropped, until it is interrupted. When
many are dropped, the daemon remembers only the most recent ones.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if follow {
				return a.followDrops(cmd.Context(), network)
			}
			return a.ask(cmd.Context(), func(ctx context.Context, c *api.Client) error { return a.listDrops(ctx, c, network) })
		},
	}
	a.addOutput(cmd)
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "show single frames as they are dropped")
	cmd.Flags().StringVar(&network, "network", "", "only those of this `network`")
	completeFlag(cmd, "network", a.completeNetwork())
	return cmd
}

func (a *app) listDrops(ctx context.Context, c *api.Client, network string) error {
	res, err := c.ListDrops(ctx, &overlaydv1.ListDropsRequest{Network: network})
	if err != nil {
		return err
	}
	if a.output == formatJSON {
		return printJSON(a.stdout, res)
	}
	if len(res.Drops) == 0 {
		_, err := fmt.Fprintln(a.stdout, "Nothing was dropped.")
		return err
	}
	t := newTable(a.stdout, left("REASON"), left("NETWORK"), right("COUNT"), left("LAST"))
	for _, d := range res.Drops {
		last := ""
		if d.LastTime != nil {
			last = ago(a.now(), d.LastTime.AsTime())
		}
		t.add(d.Reason, d.Network, count(d.Count), last)
		t.note(d.Help)
		if d.LastSample != nil {
			t.note(origin(d.LastSample) + ":")
			for _, line := range decode.Lines(d.LastSample.Data, d.LastSample.Outer) {
				t.note("  " + line)
			}
		}
	}
	return t.flush()
}

// origin says where a dropped frame came from and how long it was.
func origin(s *overlaydv1.DropSample) string {
	var from string
	switch {
	case s.Egress && s.Peer != "":
		from = "from the TAP to " + s.Peer
	case s.Egress:
		from = "from the TAP"
	case s.Peer != "":
		from = "from " + s.Peer
	default:
		from = "from the underlay"
	}
	return fmt.Sprintf("%s, %d bytes", from, s.Length)
}

// followDrops prints samples until the caller interrupts, which is no error.
func (a *app) followDrops(ctx context.Context, network string) error {
	client := api.NewClient(a.socket)
	defer client.Close()
	stream, err := client.WatchDrops(ctx, &overlaydv1.WatchDropsRequest{Network: network})
	if err != nil {
		return err
	}
	defer stream.Close()
	for stream.Receive() {
		if err := a.printSamples(stream.Msg()); err != nil {
			return err
		}
	}
	if ctx.Err() != nil {
		return nil
	}
	if err := stream.Err(); err != nil {
		return err
	}
	return fmt.Errorf("overlayd on %s ended the stream", a.socket)
}

// printSamples prints one message of the stream in one write.
func (a *app) printSamples(res *overlaydv1.WatchDropsResponse) error {
	var out strings.Builder
	if a.output == formatJSON {
		for _, s := range res.Samples {
			line, err := api.MarshalJSON(s)
			if err != nil {
				return err
			}
			out.Write(line)
			out.WriteByte('\n')
		}
	} else {
		if res.Missed > 0 {
			fmt.Fprintf(&out, "(%s more, of any network, were dropped in between and are forgotten)\n", count(res.Missed))
		}
		for _, s := range res.Samples {
			network := s.Network
			if network == "" {
				network = "-"
			}
			fmt.Fprintf(&out, "%s  %s  %s  %s\n", s.Time.AsTime().In(a.now().Location()).Format("15:04:05.000"), s.Reason, network, origin(s))
			for _, line := range decode.Lines(s.Data, s.Outer) {
				out.WriteString("    " + line + "\n")
			}
		}
	}
	_, err := io.WriteString(a.stdout, out.String())
	return err
}
