package gossip

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"
)

const (
	rejoinLeast = 10 * time.Second
	rejoinMost  = 30 * time.Second
	// joinsAtOnce is how many missing managers are tried in one round: the first one that answers knows the
	// others, and a thousand nodes do this at the same time.
	joinsAtOnce = 3
	// assertions is in how many rounds a node exchanges membership with any other one, after its start and
	// after managers were lost. One that has come back at another address is refused until its old self is long
	// enough dead, and is not told. And when two halves find each other everybody has so much news that some of
	// it is lost; in a large cluster memberlist itself exchanges every few minutes only.
	assertions = 3
	// tendEvery is how often managers are looked for, sockets are told the segment size, and nodes forgotten.
	tendEvery = 5 * time.Second
)

func rejoinAfter() time.Duration {
	return rejoinLeast + rand.N(rejoinMost-rejoinLeast)
}

// rejoin is the goroutine "rejoin". A partition that lasts makes both sides forget the other one. Then nobody
// talks across, healed or not, unless somebody who knows from elsewhere who should be there tries again and again.
func (g *Gossip) rejoin(ctx context.Context) {
	tend := time.NewTimer(untilWhole(time.Now(), tendEvery))
	defer tend.Stop()
	next := time.NewTimer(g.cfg.RejoinAfter())
	defer next.Stop()
	m := managers{lost: map[netip.AddrPort]bool{}}
	for left := assertions; ; {
		select {
		case <-tend.C:
			g.members.forget()
			if g.sockets != nil {
				g.sockets.tend(g.cfg.Log)
			}
			g.look(&m)
			tend.Reset(untilWhole(time.Now(), tendEvery))
		case <-next.C:
			targets := g.look(&m)
			rand.Shuffle(len(targets), func(i, j int) { targets[i], targets[j] = targets[j], targets[i] })
			targets = targets[:min(len(targets), joinsAtOnce)]
			if len(m.lost) > 0 {
				left = assertions
			} else if left > 0 {
				left--
				targets = append(targets, g.members.random()...)
			}
			g.exchange(ctx, targets)
			g.look(&m)
			next.Reset(g.cfg.RejoinAfter())
		case <-ctx.Done():
			return
		}
	}
}

// exchange exchanges membership with the nodes at addrs, or stops waiting for that when ctx is done.
func (g *Gossip) exchange(ctx context.Context, addrs []netip.AddrPort) {
	if len(addrs) == 0 {
		return
	}
	done := make(chan struct{})
	g.joins.Go(func() {
		defer close(done)
		reached, err := g.Join(addrs)
		level, attrs := slog.LevelDebug, []slog.Attr{slog.Any("addresses", addrs), slog.Int("reached", reached)}
		if err != nil {
			level, attrs = slog.LevelWarn, append(attrs, slog.Any("error", err))
		}
		if !g.closed.Load() {
			g.cfg.Log.LogAttrs(ctx, level, "gossip: exchanged membership", attrs...)
		}
	})
	select {
	case <-done:
	case <-ctx.Done():
	}
}

// managers remembers which managers were missing, to count heals.
type managers struct {
	known    map[netip.AddrPort]bool // that have been members
	lost     map[netip.AddrPort]bool // of these, those that are not now
	returned bool                    // some that were lost have come back, while others are still lost
}

// look returns the managers that are not members.
func (g *Gossip) look(m *managers) []netip.AddrPort {
	all := g.cfg.Rejoin()
	missing := g.members.missing(all)
	g.count.missing.Store(int64(len(missing)))
	known, lost := map[netip.AddrPort]bool{}, map[netip.AddrPort]bool{}
	for _, a := range all {
		switch {
		case !slices.Contains(missing, a):
			known[a] = true
			m.returned = m.returned || m.lost[a]
		case m.known[a]:
			known[a], lost[a] = true, true
		}
	}
	if len(lost) > 0 && len(m.lost) == 0 {
		g.cfg.Log.Warn("gossip: managers are no members any more, trying to join them from now on", "addresses", missing)
	}
	if len(lost) == 0 {
		if m.returned {
			g.count.heals.Add(1)
			g.cfg.Log.Info("gossip: the managers that were missing are members again")
		}
		m.returned = false
	}
	m.known, m.lost = known, lost
	return missing
}
