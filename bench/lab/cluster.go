package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/overlayd/overlayd/controlplane/api"
	"github.com/overlayd/overlayd/controlplane/api/overlayd/v1"
)

// controlPort is where a manager is joined through.
const controlPort = 7789

const (
	// clusterPatience is how long anything in a cluster may take. An election is the longest; that is a few seconds.
	clusterPatience = time.Minute
	pollInterval    = 20 * time.Millisecond // between two looks
)

// shown is a command as Options.Tell has it: short, and without secrets.
func shown(program string, args ...string) string {
	words := map[string]string{"--data-dir": "DIR", "--socket": "SOCK", "--config": "FILE", "--token": "TOKEN"}
	line := []string{program}
	for i, arg := range args {
		if i > 0 && words[args[i-1]] != "" {
			arg = words[args[i-1]]
		}
		line = append(line, arg)
	}
	return strings.Join(line, " ")
}

// show tells of a command that is about to run.
func (l *Lab) show(h *Host, program string, args ...string) {
	if l.tell == nil {
		return
	}
	l.telling.Lock()
	defer l.telling.Unlock()
	l.tell(h.name, shown(program, args...))
}

// Overlayctl runs overlayctl on the host, against its overlayd, and returns what it writes to its standard output. The
// error has what it writes to the other.
func (h *Host) Overlayctl(ctx context.Context, args ...string) (string, error) {
	args = slices.Concat([]string{"--socket", h.Socket()}, args)
	h.lab.show(h, "overlayctl", args...)
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(ctx, h.lab.state.Overlayctl, args...)
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = &out, &errs
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // as that of overlayd
	err := h.Start(cmd)
	if err == nil {
		err = cmd.Wait()
	}
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	if err != nil {
		why := string(bytes.TrimSpace(errs.Bytes()))
		if h.PID() == 0 {
			why += h.LogTail()
		}
		return "", fmt.Errorf("%s on %s: %w: %s", shown("overlayctl", args...), h.name, err, why)
	}
	return out.String(), nil
}

// clusterSteps make the cluster, its networks and their endpoints.
func (l *Lab) clusterSteps(ctx context.Context) []func() error {
	var all []*Host
	for _, h := range l.hosts {
		if h.spec.Cluster != "" {
			all = append(all, h)
		}
	}
	first, last := all[0], all[len(all)-1]
	ctl := func(h *Host, args ...string) func() error {
		return func() error {
			_, err := h.Overlayctl(ctx, args...)
			return err
		}
	}
	steps := []func() error{ctl(first, "init", "--advertise", first.advertised())}
	for _, role := range []Role{Manager, Worker} {
		joining := slices.DeleteFunc(slices.Clone(all[1:]), func(h *Host) bool { return h.spec.Cluster != role })
		if len(joining) > 0 {
			steps = append(steps, func() error { return l.admit(ctx, first, role, joining) })
		}
	}
	for i := range l.scenario.Networks {
		n := &l.scenario.Networks[i]
		if !n.ofCluster() {
			continue
		}
		steps = append(steps, ctl(last, createArgs(n)...)) // any node does
		for _, e := range n.Endpoints {
			steps = append(steps, func() error { return l.Container(e.Container).attach(ctx, n.Name, e.IP) })
		}
		steps = append(steps, func() error { return l.awaitKnown(ctx, n.Name) })
	}
	return steps
}

// admit has hosts join the cluster in a role, which is that of the token that they join with.
func (l *Lab) admit(ctx context.Context, first *Host, role Role, joining []*Host) error {
	token, err := first.Overlayctl(ctx, "token", "show", string(role), "--quiet")
	if err != nil {
		return err
	}
	at := first.spec.Underlay[0].Addr()
	if first.spec.Floating.IsValid() {
		at = first.spec.Floating.Addr
	}
	remote := net.JoinHostPort(at.String(), strconv.Itoa(controlPort))
	for _, h := range joining {
		if _, err := h.Overlayctl(ctx, "join", "--token", strings.TrimSpace(token), "--advertise", h.advertised(), remote); err != nil {
			return err
		}
	}
	return nil
}

// advertised are the underlay addresses of a host as overlayctl takes them, or the one that leads to it.
func (h *Host) advertised() string {
	if h.spec.Floating.IsValid() {
		return h.spec.Floating.String()
	}
	var out []string
	for _, p := range h.spec.Underlay {
		out = append(out, p.Addr().String())
	}
	return strings.Join(out, ",")
}

func createArgs(n *NetworkSpec) []string {
	args := []string{"network", "create", n.Name}
	for _, s := range n.Subnets {
		args = append(args, "--subnet", s.String())
	}
	if n.VNI != 0 {
		args = append(args, "--vni", fmt.Sprint(n.VNI))
	}
	if n.MTU != 0 {
		args = append(args, "--mtu", fmt.Sprint(n.MTU))
	}
	return args
}

// ClusterStatus asks the overlayd of the host how the cluster is.
func (h *Host) ClusterStatus(ctx context.Context) (*overlaydv1.ClusterStatus, error) {
	c := api.NewClient(h.Socket())
	defer c.Close()
	r, err := c.GetClusterStatus(ctx, &overlaydv1.GetClusterStatusRequest{})
	if err != nil {
		return nil, fmt.Errorf("ask the overlayd of %s how the cluster is: %s", h.name, api.Message(err))
	}
	return r.GetStatus(), nil
}

// voters counts the managers that vote. One that has joined does so after it has kept up for a while.
func voters(st *overlaydv1.ClusterStatus) int {
	n := 0
	for _, m := range st.GetManagers() {
		if m.Voter {
			n++
		}
	}
	return n
}

// await asks until the answer is yes, or its patience is over.
func await(ctx context.Context, what string, ask func(context.Context) (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, clusterPatience)
	defer cancel()
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		yes, err := ask(ctx)
		if yes && err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("wait for %s: %w", what, ctx.Err()), err)
		case <-tick.C:
		}
	}
}
