package compare

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/overlayd/overlayd/bench/lab"
	"github.com/overlayd/overlayd/bench/load"
)

// stand is a contender whose lab is up.
type stand struct {
	contender
	lab    *lab.Lab
	cabins []*cabin // the containers that are not the lab's
	path   path
	notes  notes
}

// close takes the lab down, and what was put into it before.
func (s *stand) close() error {
	var errs []error
	for _, c := range s.cabins {
		errs = append(errs, c.close())
	}
	s.cabins = nil
	return errors.Join(append(errs, s.lab.Close())...)
}

// arena is all of them.
type arena struct {
	stands []*stand
}

// closeAll takes all labs down.
func (a *arena) closeAll() error {
	var errs []error
	for _, s := range a.stands {
		errs = append(errs, s.close())
	}
	a.stands = nil
	return errors.Join(errs...)
}

// bringUp makes the labs of all contenders and sends a first packet through each. On an error nothing is left.
func (p *plan) bringUp(ctx context.Context) (*arena, error) {
	a := new(arena)
	for _, c := range p.contenders {
		if _, err := fmt.Fprintf(p.Progress, "bring up %s\n", c.name); err != nil {
			return nil, errors.Join(fmt.Errorf("say what is being done: %w", err), a.closeAll())
		}
		s, err := p.raise(ctx, c, c.scenario())
		if err != nil {
			return nil, errors.Join(err, a.closeAll())
		}
		a.stands = append(a.stands, s)
	}
	return a, nil
}

// raise makes a lab for a contender, and opens the path. On an error nothing is left.
func (p *plan) raise(ctx context.Context, c contender, sc lab.Scenario) (*stand, error) {
	l, err := lab.Up(ctx, sc, p.programs())
	if err != nil {
		return nil, err
	}
	s := &stand{contender: c, lab: l}
	err = s.furnish()
	if err == nil {
		err = s.congest(p.Congestion)
	}
	if err == nil {
		err = s.open(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

// furnish finds the path, and makes the containers that the lab has not.
func (s *stand) furnish() error {
	hosts := s.lab.Hosts()
	from, to := hosts[0], hosts[1]
	switch {
	case s.kind == "":
		s.path = path{from: from, to: to, address: to.Underlay()[0].Addr()}
	case !s.containers:
		s.path = path{from: from, to: to, address: to.Overlay(network)}
	case s.kind == lab.Overlayd:
		c := s.lab.Containers()
		s.path = path{from: c[0], to: c[1], address: c[1].Overlays(network)[0]}
	default:
		for i, h := range hosts {
			c, err := newCabin(h, hosts[1-i], i+1)
			if err != nil {
				return fmt.Errorf("bring up %s: %w", s.name, err)
			}
			s.cabins = append(s.cabins, c)
		}
		s.path = path{from: s.cabins[0].container, to: s.cabins[1].container, address: s.cabins[1].address}
	}
	return nil
}

// congest sets the congestion control of all connections between the ends of the paths. It is a setting of each network
// namespace. Empty, it stays that of the machine.
func (s *stand) congest(name string) error {
	if name == "" {
		return nil
	}
	ends := []load.Namespace{s.path.from, s.path.to}
	for _, h := range s.lab.Hosts() { // who may be ends too; and their settings are those that are recorded
		ends = append(ends, h)
	}
	for _, n := range ends {
		if err := n.Do(func() error { return os.WriteFile(congestionPath, []byte(name), 0) }); err != nil {
			return fmt.Errorf("set the congestion control of %s to %q: %w", s.name, name, err)
		}
	}
	return nil
}

// How the first packet of a path is waited for: it may be lost while addresses are resolved.
const (
	openTries   = 5
	openTimeout = 500 * time.Millisecond
)

// open makes sure that the path works, with addresses resolved and learned in both directions; and so do those to all
// other hosts that are on the network.
func (s *stand) open(ctx context.Context) error {
	paths := []path{s.path}
	for _, h := range s.lab.Hosts()[2:] {
		paths = append(paths, path{from: s.path.from, to: h, address: h.Overlay(network)})
	}
	for _, p := range paths {
		r, err := load.Ping(ctx, load.PingConfig{From: p.from, To: p.address, Count: openTries, Timeout: openTimeout})
		if err != nil {
			return fmt.Errorf("try %s: %w", s.name, err)
		}
		if r.Received == 0 {
			return fmt.Errorf("try %s: no answer to %d pings to %v%s", s.name, r.Sent, p.address, s.logs())
		}
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

// pids are the processes of the daemons that run.
func (s *stand) pids() []int {
	var out []int
	for _, h := range s.lab.Hosts() {
		if pid := h.PID(); pid != 0 {
			out = append(out, pid)
		}
	}
	return out
}

// used is the CPU time of the daemons since their start.
func (s *stand) used() time.Duration {
	var sum time.Duration
	for _, pid := range s.pids() {
		d, _ := processCPU(pid) // it may just have ended, which alive tells
		sum += d
	}
	return sum
}
