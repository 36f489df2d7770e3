package lab

import (
	"context"
	"fmt"
	"time"

	"github.com/overlayd/overlayd/bench/load"
	"github.com/overlayd/overlayd/controlplane/api/overlayd/v1"
)

// What the demo does about the leader.
const (
	streamRate = 500 // datagrams a second
	streamSize = 200 // bytes
	// streamTime outlasts an election and what follows it. Should it not, the next stream begins at once.
	streamTime  = 8 * time.Second
	streamAhead = 500 * time.Millisecond // how long it runs before anything happens
	// newNetwork is longer than the name of a network of a scenario may be, so that it is none of them.
	newNetwork = "after-failover"
)

// failover kills the leader of the cluster while containers on other hosts talk, and brings it back.
func (d *demo) failover(ctx context.Context) error {
	n := d.lab.failoverNetwork()
	if n == nil {
		return nil
	}
	d.section("The leader dies", fmt.Sprintf("Two containers talk, %d datagrams a second. The daemon of the host that leads the cluster, which is neither's, is killed. Nothing of what they say may be lost, another manager has to lead, and changes have to be possible again.", streamRate))
	leader, err := d.findLeader(ctx)
	if err != nil {
		return err
	}
	var others []station
	for _, s := range d.lab.stations(n.Name) {
		if s.host != leader {
			others = append(others, s)
		}
	}
	from, to := others[0], others[len(others)-1]
	d.command(time.Since(d.start), from.name, "(sends to "+to.name+" from now on)")
	talking, cancel := context.WithCancel(ctx)
	defer cancel()
	end := talk(talking, load.UDPConfig{From: from, To: to, Address: to.addrs[0], Size: streamSize, Rate: streamRate, Duration: streamTime})
	err = pause(ctx, streamAhead)
	if err == nil {
		err = d.succession(ctx, leader, from, to)
	}
	if err == nil {
		err = d.comeBack(ctx, leader, from, n)
	}
	if err != nil {
		cancel()
	}
	said, serr := end()
	if err != nil {
		return err
	}
	d.check(serr == nil && said.Sent > 0 && said.Received == said.Sent && said.Corrupt == 0 && said.Duplicate == 0,
		fmt.Sprintf("nothing lost, damaged or doubled from %s to %s in these %.0f s", from.name, to.name, said.SendTime.Seconds()),
		fmt.Sprintf("%s of %s datagrams arrive, %d damaged, %d doubled%s", grouped(said.Received), grouped(said.Sent), said.Corrupt, said.Duplicate, because(serr)))
	return nil
}

// findLeader waits until all managers vote, so that one can be lost, and returns the host of the one that leads.
func (d *demo) findLeader(ctx context.Context) (*Host, error) {
	asked := d.lab.Host(d.lab.scenario.clusterHosts()[0].Name)
	var st *overlaydv1.ClusterStatus
	want := d.lab.scenario.managers()
	err := await(ctx, "all managers to vote", func(ctx context.Context) (ok bool, err error) {
		st, err = asked.ClusterStatus(ctx)
		return voters(st) == want && d.lab.Host(st.GetLeader()) != nil, err
	})
	if err != nil {
		return nil, err
	}
	d.check(true, fmt.Sprintf("%d managers that vote, of which %d may be lost", want, (want-1)/2), fmt.Sprintf("%d that vote, led by %s", voters(st), st.GetLeader()))
	return d.lab.Host(st.GetLeader()), nil
}

// succession kills the leader, waits for the next and changes something.
func (d *demo) succession(ctx context.Context, leader *Host, from, to station) error {
	if err := leader.KillOverlayd(); err != nil {
		return err
	}
	start := time.Now()
	next := ""
	err := await(ctx, "another leader than "+leader.name, func(ctx context.Context) (bool, error) {
		st, err := to.host.ClusterStatus(ctx)
		next = st.GetLeader()
		return next != "" && next != leader.name, err
	})
	if err != nil {
		return err
	}
	d.check(true, "another leader than "+leader.name, fmt.Sprintf("%s leads, after %.1f s", next, time.Since(start).Seconds()))
	if _, err := to.host.Overlayctl(ctx, "network", "create", newNetwork); err != nil {
		return err
	}
	a, b := d.lab.Container(from.name), d.lab.Container(to.name)
	for _, c := range []*Container{a, b} {
		if err := c.attach(ctx, newNetwork, nil); err != nil {
			return err
		}
	}
	if err := d.lab.awaitKnown(ctx, newNetwork); err != nil {
		return err
	}
	r, err := load.Ping(ctx, load.PingConfig{From: a, To: b.Overlays(newNetwork)[0], Count: pingCount, Timeout: pingWait})
	if ctx.Err() != nil {
		return ctx.Err()
	}
	d.check(err == nil && r.Received > 0, fmt.Sprintf("%s to reach %s on the network made now", a.name, b.name), fmt.Sprintf("%d of %d pings answered%s", r.Received, r.Sent, because(err)))
	return nil
}

// comeBack starts the daemon of the former leader again, whose containers nobody has touched.
func (d *demo) comeBack(ctx context.Context, h *Host, from station, n *NetworkSpec) error {
	if err := h.StartOverlayd(ctx); err != nil {
		return err
	}
	start := time.Now()
	for _, s := range d.lab.stations(n.Name) {
		if s.host != h {
			continue
		}
		err := await(ctx, s.name+" to be reached again", func(ctx context.Context) (bool, error) {
			r, err := load.Ping(ctx, load.PingConfig{From: from, To: s.addrs[0], Timeout: pingWait})
			return r.Received > 0, err
		})
		if ctx.Err() != nil {
			return ctx.Err()
		}
		d.check(err == nil, s.name+" to be reached again", fmt.Sprintf("an answer after %.1f s%s", time.Since(start).Seconds(), because(err)))
	}
	out, err := h.Overlayctl(ctx, "node", "ls")
	if err != nil {
		return err
	}
	d.quote(out)
	return nil
}

// talk sends one stream after the other, until the function that it returns is called: that waits for the end of the
// last one, and returns the sum. It has to be called.
func talk(ctx context.Context, c load.UDPConfig) (end func() (load.UDPResult, error)) {
	stop := make(chan struct{})
	done := make(chan struct{})
	var sum load.UDPResult
	var err error
	go func() {
		defer close(done)
		for err == nil {
			var r load.UDPResult
			r, err = load.UDP(ctx, c)
			sum.Sent += r.Sent
			sum.Received += r.Received
			sum.Corrupt += r.Corrupt
			sum.Duplicate += r.Duplicate
			sum.SendTime += r.SendTime
			select {
			case <-stop:
				return
			default:
			}
		}
	}()
	return func() (load.UDPResult, error) {
		close(stop)
		<-done
		return sum, err
	}
}

// pause waits, or returns the error of ctx.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

// failoverNetwork finds a network on which two containers can talk whichever host is lost. It is nil when there is none,
// or the cluster cannot lose its leader.
func (l *Lab) failoverNetwork() *NetworkSpec {
	if l.scenario.managers() < 3 {
		return nil
	}
	for i := range l.scenario.Networks {
		n := &l.scenario.Networks[i]
		hosts := make(map[*Host]bool)
		for _, e := range l.endpoints(n.Name) {
			hosts[l.Container(e.Container).host] = true
		}
		if len(hosts) >= 3 {
			return n
		}
	}
	return nil
}
