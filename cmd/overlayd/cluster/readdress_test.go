package cluster

import (
	"context"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/overlayd/overlayd/controlplane"
	"github.com/overlayd/overlayd/controlplane/api/overlayd/state/v1"
)

// member is a Membership that takes note.
type fakeMember struct {
	choice   controlplane.Choice
	fail     error
	proposed []*statev1.Command
}

func (m *fakeMember) Choice() controlplane.Choice { return m.choice }

func (m *fakeMember) Propose(_ context.Context, c *statev1.Command) (*statev1.Result, error) {
	m.proposed = append(m.proposed, c)
	return &statev1.Result{}, m.fail
}

// took returns the addresses that were proposed since the last time.
func (m *fakeMember) took() (out [][]string) {
	for _, c := range m.proposed {
		out = append(out, c.GetUpdateNode().GetAddresses())
	}
	m.proposed = nil
	return out
}

func list(text string) (out []netip.Addr) {
	for _, s := range strings.Fields(text) {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

// readdressed is a world whose node is known by addresses, and the look at those of its host.
type readdressed struct {
	*world
	a   *Addresses
	m   *fakeMember
	h   *routed
	log strings.Builder
}

func newReaddressed(t *testing.T, known, stated string, derived bool) *readdressed {
	r := &readdressed{world: newWorld(t)}
	r.m = &fakeMember{choice: controlplane.Choice{Stated: list(stated), Derived: derived}}
	r.h = &routed{has: strings.Fields(known), routes: map[string]string{"0.0.0.0/0": strings.Fields(known)[0]}}
	r.a = NewAddresses(r.m, r.Follower, r.h, slog.New(slog.NewTextHandler(&r.log, nil)))
	r.tell(true, node(r.self, strings.Fields(known)...))
	r.calls("open ")
	r.look()
	return r
}

func (r *readdressed) look() { r.a.look(r.t.Context()) }

// proposes looks n times and fails the test unless that made these proposals.
func (r *readdressed) proposes(n int, want ...string) {
	r.t.Helper()
	for range n {
		r.look()
	}
	var got []string
	for _, p := range r.m.took() {
		got = append(got, strings.Join(p, " "))
	}
	if !slices.Equal(got, want) {
		r.t.Errorf("proposed %q, want %q", got, want)
	}
}

// A node whose own addresses were derived follows its host: the VTEP goes there and the managers are told, once it is certain.
func TestDerivedAddressesFollowTheHost(t *testing.T) {
	r := newReaddressed(t, "192.0.2.10", "", true)
	r.proposes(3)
	r.calls()

	// Another one, as by DHCP. For a moment there is none.
	r.h.has, r.h.routes = nil, nil
	r.proposes(3)
	r.h.has, r.h.routes = []string{"192.0.2.77"}, map[string]string{"0.0.0.0/0": "192.0.2.77"}
	r.proposes(1)
	r.calls()
	r.proposes(1, "192.0.2.77")
	r.calls("move [192.0.2.77]")
	r.tell(false, node(r.self, "192.0.2.77"))
	r.proposes(3)
	r.calls()
	if r.here != nil || !slices.Equal(r.local, list("192.0.2.77")) {
		t.Errorf("here %v, local %v", r.here, r.local)
	}

	// A new interface draws the default route, and the old address stays: so does the name.
	r.h.has, r.h.routes["0.0.0.0/0"] = append(r.h.has, "198.51.100.7"), "198.51.100.7"
	r.proposes(2, "192.0.2.77 198.51.100.7")
	r.calls("move [192.0.2.77 198.51.100.7]")
	r.tell(false, node(r.self, "192.0.2.77", "198.51.100.7"))
	r.proposes(2)

	// One that comes and goes is not passed on.
	for range 5 {
		r.h.routes["::/0"] = "2001:db8::7"
		r.proposes(1)
		delete(r.h.routes, "::/0")
		r.proposes(1)
	}
	r.calls()
}

// Floating addresses that were stated stay, behind its own.
func TestStatedAddressesStay(t *testing.T) {
	r := newReaddressed(t, "192.0.2.10", "203.0.113.7", true)
	r.tell(false, node(r.self, "192.0.2.10", "203.0.113.7"))
	r.proposes(3)
	r.h.has, r.h.routes["0.0.0.0/0"] = []string{"192.0.2.77"}, "192.0.2.77"
	r.proposes(2, "192.0.2.77 203.0.113.7")
	if strings.Contains(r.log.String(), "advertise") {
		t.Errorf("the floating address was taken for one of the host:\n%s", &r.log)
	}
}

// Without managers the VTEP goes to the new address all the same, also one that is opened then; they are asked until they know.
func TestManagersAreAskedUntilTheyKnow(t *testing.T) {
	r := newReaddressed(t, "192.0.2.10", "", true)
	r.m.fail = errFake
	r.h.has, r.h.routes["0.0.0.0/0"] = []string{"192.0.2.77"}, "192.0.2.77"
	r.proposes(4, "192.0.2.77", "192.0.2.77", "192.0.2.77")
	if n := strings.Count(r.log.String(), "no manager could be told"); n != 1 {
		t.Errorf("it was said %d times:\n%s", n, &r.log)
	}
	if got := r.v.took(); !slices.Contains(got, "move [192.0.2.77]") {
		t.Errorf("calls %q", got)
	}
	if !slices.Equal(r.here, list("192.0.2.77")) {
		t.Errorf("here %v", r.here)
	}
	r.Follower.vtep = nil // as after a restart
	r.tidy(t.Context())
	if !slices.Equal(r.v.at, list("192.0.2.77")) {
		t.Errorf("opened at %v", r.v.at)
	}
	r.m.fail = nil
	r.proposes(1, "192.0.2.77")
}

// The addresses are looked at when the VTEP is opened: a host that has just made a cluster learns of its node before it is one.
func TestAddressesAreLookedAtWhenTheVTEPOpens(t *testing.T) {
	w := newWorld(t)
	w.v.fail["open"] = errFake
	w.tell(true, node(w.self, "192.0.2.10"))
	<-w.known
	w.tidy(t.Context())
	if len(w.known) > 0 {
		t.Error("it is looked again although nothing changed")
	}
	delete(w.v.fail, "open")
	w.tidy(t.Context())
	if len(w.known) == 0 {
		t.Error("it is not looked again")
	}
}

// Of a stated address that is gone the log tells once, and of each time that it goes.
func TestLossOfAStatedAddressIsTold(t *testing.T) {
	r := newReaddressed(t, "192.0.2.10", "192.0.2.10", false)
	r.tell(false, node(r.self, "192.0.2.10", "203.0.113.7"))
	told := func(want int) {
		t.Helper()
		r.proposes(3)
		if n := strings.Count(r.log.String(), "stated by --advertise"); n != want {
			t.Errorf("told %d times, want %d:\n%s", n, want, &r.log)
		}
	}
	told(0)
	r.h.has, r.h.routes["0.0.0.0/0"] = []string{"192.0.2.77"}, "192.0.2.77"
	told(1)
	r.h.has = []string{"192.0.2.10"}
	told(1)
	r.h.has = nil
	told(2)
	r.calls()
}

func TestRenewed(t *testing.T) {
	host := routed{has: []string{"192.0.2.10", "198.51.100.10"}, routes: map[string]string{"0.0.0.0/0": "192.0.2.10", "198.51.100.0/24": "198.51.100.10"}}
	for name, c := range map[string]struct {
		host   routed
		choice controlplane.Choice
		now    string
		want   string // "" = an error
	}{
		"as it is":              {host, controlplane.Choice{}, "192.0.2.10", "192.0.2.10"},
		"the order stays":       {host, controlplane.Choice{}, "198.51.100.10 192.0.2.10", "198.51.100.10 192.0.2.10"},
		"toward a manager":      {host, controlplane.Choice{Toward: netip.MustParseAddr("198.51.100.1")}, "203.0.113.9", "198.51.100.10"},
		"gone":                  {host, controlplane.Choice{}, "192.0.2.9 2001:db8::9", "192.0.2.10"},
		"a floating one is its": {routed{has: []string{"192.0.2.10", "203.0.113.7"}, routes: host.routes}, controlplane.Choice{Stated: list("203.0.113.7")}, "192.0.2.10 203.0.113.7", "192.0.2.10 203.0.113.7"},
		"no route":              {routed{has: []string{"192.0.2.10"}}, controlplane.Choice{}, "192.0.2.10", ""},
		"link-local alone":      {routed{routes: map[string]string{"0.0.0.0/0": "169.254.3.4"}}, controlplane.Choice{}, "192.0.2.10", ""},
	} {
		got, err := renewed(c.host, c.choice, list(c.now))
		if (err != nil) != (c.want == "") || !slices.Equal(got, list(c.want)) {
			t.Errorf("%s: %v, %v; want %q", name, got, err, c.want)
		}
	}
}

// slowHost is a host that changes while somebody looks.
type slowHost struct {
	mu sync.Mutex
	*routed
}

func (h *slowHost) HasAddress(a netip.Addr) (string, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.routed.HasAddress(a)
}

func (h *slowHost) SourceTo(to netip.Addr) (netip.Addr, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.routed.SourceTo(to)
}

func (h *slowHost) now(address string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.has, h.routes = []string{address}, map[string]string{"0.0.0.0/0": address}
}

// telling is a Membership that says what is proposed.
type telling struct {
	fakeMember
	told chan []string
}

func (m *telling) Propose(_ context.Context, c *statev1.Command) (*statev1.Result, error) {
	m.told <- c.GetUpdateNode().GetAddresses()
	return &statev1.Result{}, nil
}

// The addresses are looked at when the kernel says that something changed, or the managers know others, until both agree.
func TestAddressesAreLookedAtAfterChanges(t *testing.T) {
	r := newReaddressed(t, "192.0.2.10", "", true)
	h, m := &slowHost{routed: r.h}, &telling{told: make(chan []string)}
	m.choice = r.m.choice
	a := NewAddresses(m, r.Follower, h, slog.New(slog.DiscardHandler))
	changes, ended := make(chan struct{}), make(chan struct{})
	go func() { defer close(ended); a.run(t.Context(), changes) }()
	proposes := func(want string) {
		t.Helper()
		select {
		case got := <-m.told:
			if !slices.Equal(got, []string{want}) {
				t.Errorf("proposed %v, want %s", got, want)
			}
		case <-time.After(time.Minute):
			t.Fatalf("%s was not proposed", want)
		}
	}
	changes <- struct{}{}
	h.now("192.0.2.77")
	changes <- struct{}{}
	proposes("192.0.2.77")
	proposes("192.0.2.77") // the managers do not know it yet
	r.tell(false, node(r.self, "192.0.2.77"))
	end := time.Now().Add(time.Minute)
	for agreed := false; !agreed; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("what the managers know is not taken for what there is")
		}
		select {
		case <-m.told: // that was under way
		default:
		}
		r.mu.Lock()
		agreed = r.here == nil
		r.mu.Unlock()
	}
	r.tell(false, node(r.self, "192.0.2.10")) // somebody else changed it
	proposes("192.0.2.77")
	close(changes)
	for {
		select {
		case <-m.told: // that was under way
		case <-ended:
			return
		}
	}
}
