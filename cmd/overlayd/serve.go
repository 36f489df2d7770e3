package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os/signal"
	"strconv"
	"strings"
	"syscall"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sync/errgroup"

	"github.com/overlayd/overlayd/cmd/overlayd/cluster"
	"github.com/overlayd/overlayd/cmd/overlayd/config"
	"github.com/overlayd/overlayd/cmd/overlayd/metrics"
	"github.com/overlayd/overlayd/controlplane/api"
	"github.com/overlayd/overlayd/vtep"
)

// runner forwards until ctx ends. *vtep.VTEP is one.
type runner interface {
	Run(ctx context.Context) error
	Close() error
}

// tunnel is a VTEP, as the daemon uses it.
type tunnel interface {
	runner
	view
	cluster.VTEP
	SetAddresses([]netip.Addr) error
}

// view is what a VTEP shows.
type view interface {
	metrics.Source
	tables
}

// failure is an error of this host rather than of the configuration, although it says where in the file the
// thing that failed stands.
type failure struct{ err error }

func (e failure) Error() string { return e.err.Error() }
func (e failure) Unwrap() error { return e.err }

// serve brings everything up, forwards until a signal or an error, and takes everything down again.
func serve(ctx context.Context, cfg *config.Config, sys system, log *slog.Logger) (err error) {
	// From here on a signal leads to an orderly end, also one that comes while starting.
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT)
	defer stop()

	// What can only be taken once comes first: a second daemon on this host ends here, before it touches
	// a device.
	sock, err := api.Listen(cfg.Socket)
	if err != nil {
		return failure{cfg.At("socket", err)}
	}
	defer func() { err = errors.Join(err, sock.Close()) }()
	var scrape *metrics.Server
	if cfg.Metrics != "" {
		if scrape, err = metrics.Listen(cfg.Metrics); err != nil {
			return failure{cfg.At("metrics", err)}
		}
		defer scrape.Close()
	}
	facts, err := sys.facts()
	if err != nil {
		return err
	}
	tun, err := newLate(cfg.VTEP(log), sys, facts.HasAddress)
	if err != nil {
		if at, ok := errors.AsType[*vtep.ConfigError](err); ok {
			return cfg.At(at.Field, at.Err)
		}
		if at, ok := errors.AsType[*vtep.HostError](err); ok {
			return failure{cfg.At(at.Field, at.Err)}
		}
		return err
	}
	defer func() { err = errors.Join(err, tun.shut()) }()
	member, err := newMember(cfg, tun, log)
	if err != nil {
		return failure{cfg.At("data_dir", err)}
	}

	version := api.BuildVersion()
	server, err := api.NewServer(newNode(cfg.Node, version, tun, member.networkID), member.service(), log)
	if err != nil {
		return err
	}
	registry, err := metrics.NewRegistry(tun, metrics.Build{Version: version.Version, Revision: version.Revision})
	if err != nil {
		return fmt.Errorf("register the metrics: %w", err)
	}

	group, ctx := errgroup.WithContext(ctx)
	start := func(name string, run func(context.Context) error) {
		group.Go(func() error {
			err := run(ctx)
			switch {
			case ctx.Err() != nil && (err == nil || errors.Is(err, context.Canceled)):
				return nil
			case err == nil:
				return fmt.Errorf("%s ended by itself", name)
			default:
				return err
			}
		})
	}
	start("vtep", tun.Run)
	if member != nil {
		start("control plane", member.Run)
	}
	start("api", func(ctx context.Context) error { return server.Serve(ctx, sock) })
	if scrape != nil {
		start("metrics", func(ctx context.Context) error { return scrape.Serve(ctx, registry, log) })
	}

	if ctx.Err() == nil {
		log.Info("ready", readyAttrs(cfg, tun, scrape, version.Version)...)
		tell(sys, log, daemon.SdNotifyReady+"\nSTATUS="+strconv.Itoa(len(cfg.Networks))+" networks")
		if err := sys.relax(); err != nil {
			log.Info("an idle daemon costs more than it could", "error", err)
		}
	}
	<-ctx.Done()
	stop() // a second signal ends the process at once
	log.Info("stopping", "cause", context.Cause(ctx))
	tell(sys, log, daemon.SdNotifyStopping)
	return group.Wait()
}

// tell informs the service manager, which need not be there. That it cannot be told is no reason to end.
func tell(sys system, log *slog.Logger, state string) {
	if err := sys.notify(state); err != nil {
		log.Warn("cannot notify the service manager", "error", err)
	}
}

// readyAttrs is the one line that says what this daemon does.
func readyAttrs(cfg *config.Config, tun view, scrape *metrics.Server, version string) []any {
	st := tun.Status()
	var locals, networks, off []string
	for _, a := range st.Addresses {
		locals = append(locals, net.JoinHostPort(a.String(), strconv.Itoa(int(st.Port))))
	}
	for _, n := range tun.Networks() {
		networks = append(networks, fmt.Sprintf("%s(vni %v, device %s, mtu %d, peers %d)", n.Name, n.VNI, n.Device, n.MTU, len(n.Peers)))
	}
	for _, f := range st.Features {
		if !f.On {
			off = append(off, fmt.Sprintf("%s(%s)", f.Name, f.Reason))
		}
	}
	attrs := []any{
		"node", cfg.Node, "version", version, "underlay", strings.Join(locals, ","),
		"networks", strings.Join(networks, " "), "socket", cfg.Socket,
	}
	if scrape != nil {
		attrs = append(attrs, "metrics", scrape.Addr())
	}
	if len(off) > 0 {
		attrs = append(attrs, "off", strings.Join(off, " "))
	}
	return attrs
}
