package vtep

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/overlayd/overlayd/dataplane/addr"
	"github.com/overlayd/overlayd/dataplane/fdb"
	"github.com/overlayd/overlayd/dataplane/forward"
	"github.com/overlayd/overlayd/dataplane/frametest"
)

// tablesOf are the tables of a network as text, in an order.
func tablesOf(n *forward.Network) (rows []string) {
	for e := range n.FDB.All() {
		if e.Static {
			rows = append(rows, fmt.Sprint(e.MAC, " behind ", e.VTEP))
		}
	}
	for ip, mac := range n.Neighbors.All() {
		rows = append(rows, fmt.Sprint(ip, " of ", mac))
	}
	slices.Sort(rows)
	return rows
}

// Whatever is stated in whatever order, the tables hold what a plain model says, and come back to it after anything
// was done to them.
func TestStationsFollowAModel(t *testing.T) {
	type owner struct {
		vtep fdb.VTEPID
		ips  []netip.Addr
	}
	rapid.Check(t, func(t *rapid.T) {
		n := &forward.Network{FDB: fdb.NewTable(100), Neighbors: fdb.NewNeighbors()}
		var s stations
		model := map[addr.MAC]owner{}
		ips := []netip.Addr{}
		for i := range 4 {
			ips = append(ips, inside4(i), inside6(i))
		}
		mac := rapid.Custom(func(t *rapid.T) addr.MAC { return frametest.MAC(uint16(rapid.IntRange(1, 5).Draw(t, "mac"))) })
		vtep := rapid.SampledFrom([]fdb.VTEPID{0, 1, 2, fdb.Local})
		some := rapid.SliceOfNDistinct(rapid.SampledFrom(ips), 0, 3, rapid.ID[netip.Addr])
		state := func(m addr.MAC, v fdb.VTEPID, addrs []netip.Addr) {
			for other, o := range model {
				if other != m {
					o.ips = slices.DeleteFunc(slices.Clone(o.ips), func(ip netip.Addr) bool { return slices.Contains(addrs, ip) })
					model[other] = o
				}
			}
			model[m] = owner{v, addrs}
		}
		t.Repeat(map[string]func(*rapid.T){
			"set": func(t *rapid.T) {
				m, v, a := mac.Draw(t, "m"), vtep.Draw(t, "v"), some.Draw(t, "a")
				s.set(n, m, v, a)
				state(m, v, a)
			},
			"swap and back": func(t *rapid.T) {
				m, v := mac.Draw(t, "m"), vtep.Draw(t, "v")
				s.swap(n, m, v, some.Draw(t, "a"))()
			},
			"remove": func(t *rapid.T) {
				m, local := mac.Draw(t, "m"), rapid.Bool().Draw(t, "local")
				s.remove(n, m, local)
				if o, ok := model[m]; ok && (o.vtep == fdb.Local) == local {
					delete(model, m)
				}
			},
			"spoil": func(t *rapid.T) {
				before := tablesOf(n)
				m, ip := mac.Draw(t, "m"), rapid.SampledFrom(ips).Draw(t, "ip")
				switch rapid.IntRange(0, 4).Draw(t, "how") {
				case 0:
					n.FDB.Delete(m)
				case 1:
					n.FDB.SetStatic(m, 7)
				case 2:
					n.Neighbors.Delete(ip)
				case 3:
					n.Neighbors.Set(ip, frametest.MAC(77))
				case 4:
					n.FDB.Delete(m)
					n.FDB.Learn(m, 1, 1)
				}
				changed := !slices.Equal(before, tablesOf(n))
				if healed := s.heal(n); (healed > 0) != changed {
					t.Fatalf("%d healed, changed: %v", healed, changed)
				}
			},
			"": func(t *rapid.T) {
				var want []string
				for m, o := range model {
					want = append(want, fmt.Sprint(m, " behind ", o.vtep))
					for _, ip := range o.ips {
						want = append(want, fmt.Sprint(ip, " of ", m))
					}
					got := s.of(m)
					if fmt.Sprint(got) != fmt.Sprint(o.ips) {
						t.Fatalf("%v has %v, want %v", m, got, o.ips)
					}
				}
				slices.Sort(want)
				if got := tablesOf(n); !slices.Equal(got, want) {
					t.Fatalf("tables\n%v\nwant\n%v", got, want)
				}
				if healed := s.heal(n); healed != 0 {
					t.Fatalf("%d healed that were well", healed)
				}
			},
		})
	})
}
