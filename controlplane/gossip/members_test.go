package gossip

import (
	"net/netip"
	"slices"
	"testing"
	"time"
)

// part makes a part that says something of node x.
func part(kind, incarnation byte, from string) []byte {
	b := deadPart(incarnation, "x", from)
	b[0] = kind
	return b
}

func TestMemberStates(t *testing.T) {
	at := netip.MustParseAddrPort("192.0.2.7:7790")
	join := func(m *members) { m.joined("x", at) }
	gone := func(m *members) { m.gone("x") }
	sends := func(kind, incarnation byte, from string) func(*members) {
		return func(m *members) { m.sent(part(kind, incarnation, from)) }
	}
	hears := func(kind, incarnation byte, from string) func(*members) {
		return func(m *members) { m.received(part(kind, incarnation, from)) }
	}
	type steps []func(*members)
	for name, c := range map[string]struct {
		steps steps
		want  Kind
	}{
		"joins":                               {steps{join}, Alive},
		"suspect":                             {steps{join, sends(partSuspect, 1, "y")}, Suspect},
		"others suspect it, this node not":    {steps{join, hears(partSuspect, 1, "y")}, Alive},
		"contradicts":                         {steps{join, sends(partSuspect, 1, "y"), sends(partAlive, 2, "")}, Alive},
		"old life sign":                       {steps{join, sends(partSuspect, 1, "y"), sends(partAlive, 1, "")}, Suspect},
		"contradicts, not sent on":            {steps{join, sends(partSuspect, 1, "y"), hears(partAlive, 2, "")}, Alive},
		"old life sign, not sent on":          {steps{join, sends(partSuspect, 1, "y"), hears(partAlive, 1, "")}, Suspect},
		"suspicion sent once more":            {steps{join, sends(partSuspect, 1, "y"), hears(partAlive, 2, ""), sends(partSuspect, 1, "y")}, Alive},
		"old suspicion":                       {steps{join, sends(partAlive, 2, ""), sends(partSuspect, 1, "y")}, Alive},
		"dies":                                {steps{join, sends(partSuspect, 1, "y"), gone}, Dead},
		"dies, as others say":                 {steps{join, hears(partDead, 1, "y"), gone}, Dead},
		"leaves":                              {steps{join, hears(partDead, 1, "x"), gone}, Left},
		"leaves, heard of by others":          {steps{join, gone, sends(partDead, 1, "x")}, Left},
		"left once, came back, died":          {steps{join, hears(partDead, 1, "x"), gone, join, sends(partAlive, 2, ""), gone}, Dead},
		"an old farewell":                     {steps{join, sends(partAlive, 5, ""), hears(partDead, 4, "x"), gone}, Dead},
		"a farewell before it came back":      {steps{join, hears(partDead, 1, "x"), join, gone}, Dead},
		"dead ones are not suspect":           {steps{join, gone, sends(partSuspect, 1, "y")}, Dead},
		"a farewell does not make it go":      {steps{join, hears(partDead, 1, "x")}, Alive},
		"dies and comes back as another life": {steps{join, gone, join}, Alive},
	} {
		m := newMembers("self")
		for _, s := range c.steps {
			s(m)
		}
		got := m.list()
		if len(got) != 1 || got[0].State != c.want || got[0].Addr != at {
			t.Errorf("%s: %+v, want %v", name, got, c.want)
		}
		present, suspect := m.counts()
		if present != in(c.want) || suspect != is(c.want == Suspect) {
			t.Errorf("%s: %d present, %d suspect", name, present, suspect)
		}
	}
}

func TestMembersReport(t *testing.T) {
	m := newMembers("self")
	at := netip.MustParseAddrPort("192.0.2.7:7790")
	m.joined("self", at)
	m.joined("x", at)
	if got, wait := m.report(); !slices.Equal(got, []Event{{"x", Alive}}) || wait != 0 {
		t.Errorf("%v, wait %v, want x alive", got, wait)
	}
	if got, _ := m.report(); got != nil {
		t.Errorf("reported again: %v", got)
	}
	m.gone("x")
	got, wait := m.report()
	if got != nil || wait <= 0 || wait > settleAfter {
		t.Errorf("%v, wait %v: a farewell may still come", got, wait)
	}
	m.joined("x", at)
	if got, wait := m.report(); got != nil || wait != 0 {
		t.Errorf("%v, wait %v: it has not been away long enough for anybody to know", got, wait)
	}
	m.gone("x")
	m.nodes["x"].since = time.Now().Add(-settleAfter)
	if got, _ := m.report(); !slices.Equal(got, []Event{{"x", Dead}}) {
		t.Errorf("%v, want x dead", got)
	}
	m.forget()
	if len(m.list()) != 2 {
		t.Error("forgotten at once")
	}
	m.nodes["x"].since = time.Now().Add(-forgetAfter - time.Second)
	m.forget()
	if len(m.list()) != 1 {
		t.Error("not forgotten")
	}
}

func TestMissing(t *testing.T) {
	m := newMembers("self")
	a, b, c := netip.MustParseAddrPort("192.0.2.1:1"), netip.MustParseAddrPort("192.0.2.2:1"), netip.MustParseAddrPort("192.0.2.3:1")
	m.joined("self", a)
	m.joined("x", b)
	if got := m.missing([]netip.AddrPort{a, b, c, c}); !slices.Equal(got, []netip.AddrPort{c}) {
		t.Errorf("missing %v, want %v", got, c)
	}
	m.gone("x")
	if got := m.missing([]netip.AddrPort{a, b}); !slices.Equal(got, []netip.AddrPort{b}) {
		t.Errorf("missing %v, want %v", got, b)
	}
}
