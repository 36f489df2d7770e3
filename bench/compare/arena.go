package compare

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/overlayd/overlayd/bench/lab"
	"github.com/overlayd/overlayd/bench/load"
	"github.com/overlayd/overlayd/bench/report"
	"github.com/overlayd/overlayd/controlplane/api"
	"github.com/overlayd/overlayd/controlplane/api/overlayd/v1"
)

// stand is a contender whose lab is up.
type stand struct {
	contender
	lab  *lab.Lab
	path path
}

// arena is all of them.
type arena struct {
	stands []*stand
}

// closeAll takes all labs down.
func (a *arena) closeAll() error {
	var errs []error
	for _, s := range a.stands {
		errs = append(errs, s.lab.Close())
	}
	a.stands = nil
	return errors.Join(errs...)
}

// bringUp makes the labs of all contenders and sends a first packet through each. On an error nothing is left.
func bringUp(ctx context.Context, cs []contender, overlayd string, progress io.Writer) (*arena, error) {
	a := new(arena)
	for _, c := range cs {
		if _, err := fmt.Fprintf(progress, "bring up %s\n", c.name); err != nil {
			return nil, errors.Join(fmt.Errorf("say what is being done: %w", err), a.closeAll())
		}
		l, err := lab.Up(ctx, c.scenario(), lab.Options{Overlayd: overlayd})
		if err != nil {
			return nil, errors.Join(err, a.closeAll())
		}
		s := &stand{contender: c, lab: l}
		a.stands = append(a.stands, s)
		if err := s.open(ctx); err != nil {
			return nil, errors.Join(err, a.closeAll())
		}
	}
	return a, nil
}

// How the first packet of a path is waited for: it may be lost while addresses are resolved.
const (
	openTries   = 5
	openTimeout = 500 * time.Millisecond
)

// open finds the path and makes sure that it works, with addresses resolved and learned in both directions.
func (s *stand) open(ctx context.Context) error {
	hosts := s.lab.Hosts()
	from, to := hosts[0], hosts[1]
	s.path = path{from: from, to: to, address: to.Overlay(network)}
	if s.kind == "" {
		s.path.address = to.Underlay()[0].Addr()
	}
	r, err := load.Ping(ctx, load.PingConfig{From: from, To: s.path.address, Count: openTries, Timeout: openTimeout})
	if err != nil {
		return fmt.Errorf("try %s: %w", s.name, err)
	}
	if r.Received == 0 {
		return fmt.Errorf("try %s: no answer to %d pings from %s to %v%s", s.name, r.Sent, from.Name(), s.path.address, s.logs())
	}
	return nil
}

// logs quotes what the daemons have said last.
func (s *stand) logs() string {
	var text string
	for _, h := range s.lab.Hosts() {
		if h.RunsOverlayd() {
			text += "\noverlayd of " + h.Name() + h.LogTail()
		}
	}
	return text
}

// alive is an error when a daemon that should run does not.
func (s *stand) alive() error {
	for _, h := range s.lab.Hosts() {
		if h.RunsOverlayd() && h.PID() == 0 {
			return fmt.Errorf("the overlayd of %s has ended%s", h.Name(), h.LogTail())
		}
	}
	return nil
}

// used is the CPU time of the daemons since their start.
func (s *stand) used() time.Duration {
	var sum time.Duration
	for _, h := range s.lab.Hosts() {
		if pid := h.PID(); pid != 0 {
			d, _ := processCPU(pid) // it may just have ended, which alive tells
			sum += d
		}
	}
	return sum
}

// ask is what the daemons say about themselves; nil when the contender has none. Features, backend and MTU
// are those of the sender, losses those of both.
func (s *stand) ask(ctx context.Context) (*report.Daemon, error) {
	var d *report.Daemon
	for _, h := range s.lab.Hosts() {
		if !h.RunsOverlayd() {
			continue
		}
		if err := askHost(ctx, h, &d); err != nil {
			return nil, fmt.Errorf("ask the overlayd of %s, of %s: %s", h.Name(), s.name, api.Message(err))
		}
	}
	return d, nil
}

func askHost(ctx context.Context, h *lab.Host, d **report.Daemon) error {
	c := api.NewClient(h.Socket())
	defer c.Close()
	status, err := c.GetStatus(ctx, &overlaydv1.GetStatusRequest{})
	if err != nil {
		return err
	}
	networks, err := c.ListNetworks(ctx, &overlaydv1.ListNetworksRequest{})
	if err != nil {
		return err
	}
	drops, err := c.ListDrops(ctx, &overlaydv1.ListDropsRequest{})
	if err != nil {
		return err
	}
	if *d == nil {
		*d = &report.Daemon{Version: api.VersionLine(status.GetStatus().GetVersion()), Drops: make(map[string]uint64)}
		for _, f := range status.GetStatus().GetFeatures() {
			(*d).Features = append((*d).Features, report.Feature{Name: f.GetName(), On: f.GetOn(), Reason: f.GetReason()})
		}
		for _, n := range networks.GetNetworks() { // there is one
			(*d).Backend, (*d).Queues, (*d).MTU = n.GetBackend(), int(n.GetQueues()), int(n.GetMtu())
		}
	}
	for _, n := range networks.GetNetworks() {
		(*d).TAPOverflow += n.GetTapOverflow()
	}
	(*d).ReceiveOverflow += status.GetStatus().GetUnderlay().GetReceiveOverflow()
	for _, drop := range drops.GetDrops() {
		(*d).Drops[drop.GetReason()] += drop.GetCount()
	}
	return nil
}
