package main

import (
	"errors"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/overlayd/overlayd/controlplane/api"
	"github.com/overlayd/overlayd/controlplane/api/overlayd/v1"
	"github.com/overlayd/overlayd/dataplane/addr"
	"github.com/overlayd/overlayd/dataplane/forward"
)

// same compares a message with its JSON.
func same(t *testing.T, m proto.Message, want string) {
	t.Helper()
	got, err := api.MarshalJSON(m)
	if err != nil || string(got) != want {
		t.Errorf("%v\n got %s\nwant %s", err, got, want)
	}
}

func TestNode(t *testing.T) {
	n := newNode("h1", &overlaydv1.Version{Version: "v1.2.3"}, &fakeTunnel{}, func(string) string { return "" })

	st := n.Status()
	if st.Pid == 0 || st.StartTime == nil {
		t.Errorf("no process or start in %v", st)
	}
	st.Pid, st.StartTime = 1, nil
	same(t, st, `{"node":"h1","version":{"version":"v1.2.3","revision":"","goVersion":""},"pid":1,`+
		`"underlay":{"port":4789,"addresses":["192.0.2.1","2001:db8::1"],"datagramsIn":"3","datagramsOut":"4","receiveOverflow":"5","dropsByReason":{"vni_unknown":"6"}},`+
		`"features":[{"name":"udp-gso","on":true,"reason":""},{"name":"tap-uso","on":false,"reason":"kernel 6.2 or later"}]}`)

	networks := n.Networks()
	if len(networks) != 1 {
		t.Fatalf("networks %v", networks)
	}
	same(t, networks[0], `{"name":"blue","vni":42,"device":"blue0","mac":"00:00:00:00:00:00","backend":"vnet","queues":2,"mtu":1450,"mtuDerived":true,`+
		`"addresses":["10.42.0.1/24"],"peers":["192.0.2.2"],"learning":true,"allowNested":false,"fdbEntries":"3",`+
		`"counters":{"tapIn":{"frames":"10","bytes":"1000"},"tapOut":{"frames":"0","bytes":"0"},"underlayIn":{"frames":"0","bytes":"0"},"underlayOut":{"frames":"5","bytes":"500"},`+
		`"framesCreated":"0","framesSuppressed":"0","framesDropped":"5","dropsByReason":{"frame_runt":"2","no_peers":"3"},`+
		`"mssClamped":"0","icmpSent":"0","icmpLimited":"0","packetsFragmented":"0","superframesResegmented":"0","segmentsSplit":"0"},`+
		`"tapOverflow":"9","networkId":"","mss":0,"mtuLimits":["192.0.2.2"],"healed":"7",`+
		`"fastPathPairs":"2","fastPathOut":{"frames":"4","bytes":"400"},"fastPathIn":{"frames":"8","bytes":"800"},"problem":"the gateway"}`)

	if peers := n.Peers(); len(peers) != 1 {
		t.Errorf("peers %v", peers)
	} else {
		same(t, peers[0], `{"address":"192.0.2.2","localAddress":"","device":"","underlayMtu":0,"overhead":0,"overlayMtu":0,"networks":["blue"],"problem":"no route","remoteAddress":"","pathMtu":0,"candidates":[]}`)
	}

	if paths := n.Paths(); len(paths) != 2 {
		t.Errorf("paths %v", paths)
	} else {
		same(t, paths[0], `{"peer":"192.0.2.2","remote":"203.0.113.2","local":"192.0.2.1","device":"eth0","underlayMtu":1500,"pathMtu":1500,"learned":"probe","learnedTime":"1970-01-01T00:01:40Z",`+
			`"settled":true,"overhead":[{"name":"outer IPv4","bytes":20},{"name":"UDP","bytes":8},{"name":"VXLAN","bytes":8},{"name":"inner Ethernet","bytes":14}],`+
			`"overlayMtu":1450,"mssIpv4":1410,"mssIpv6":1390,"blackHoles":"2","moves":"1","candidates":[`+
			`{"remote":"192.0.2.2","local":"","origin":"stated","state":"lost","pathMtu":0,"chosen":false,"why":"no answer","seenAs":""},`+
			`{"remote":"203.0.113.2","local":"192.0.2.1","origin":"observed","state":"reachable","rtt":"0.001s","pathMtu":1500,"chosen":true,"why":"","seenAs":"203.0.113.1"}],`+
			`"networks":["blue"],"problem":"","chosenTime":"1970-01-01T00:01:30Z"}`)
		if paths[1].LearnedTime != nil || paths[1].ChosenTime != nil || paths[1].Remote != "" {
			t.Errorf("what is not known became %v", paths[1])
		}
	}
	same(t, n.Probes(), `{"sent":"9","acknowledged":"7","lost":"1","bytesSent":"4","acknowledgementsSent":"6","acknowledgementsLimited":"5","ignoredByReason":{"wrong_source":"11"},`+
		`"hintsAccepted":"8","hintsIgnoredByReason":{"no_quote":"12"},"blackHoles":"2","moves":"1","overflow":"10","sendErrors":"3"}`)

	drops := n.Drops()
	if len(drops) != 2 {
		t.Fatalf("drops %v: a reason without a count is no row", drops)
	}
	if drops[0].Help != forward.FrameRunt.Help() || drops[1].Help == "" {
		t.Errorf("help texts of %v", drops)
	}
	drops[0].Help = ""
	same(t, drops[0], `{"network":"blue","reason":"frame_runt","help":"","count":"2","lastTime":"1970-01-01T00:01:40Z"}`)
	if drops[1].LastTime != nil {
		t.Errorf("a time that is not known became %v", drops[1].LastTime)
	}

	if samples := n.Samples(6); len(samples) != 1 {
		t.Errorf("samples %v", samples)
	} else {
		same(t, samples[0], `{"seq":"7","time":"1970-01-01T00:01:40Z","network":"blue","reason":"frame_runt","egress":true,"peer":"","length":9,"data":"AQI=","outer":false}`)
	}
	if samples := n.Samples(7); len(samples) != 0 {
		t.Errorf("samples %v", samples)
	}
}

func TestNodeFDB(t *testing.T) {
	n := newNode("h1", nil, &fakeTunnel{}, func(string) string { return "" })
	for _, c := range []struct {
		after addr.MAC
		limit int
		want  string
	}{
		{addr.MAC{}, 9, "00:01 00:02 01:00"},
		{addr.MAC{}, 2, "00:01 00:02"},
		{addr.MAC{2, 0, 0, 0, 0, 1}, 9, "00:02 01:00"},
		{addr.MAC{2, 0, 0, 0, 0, 9}, 9, "01:00"}, // the entry after which to go on has gone
		{addr.MAC{2, 0, 0, 0, 1, 0}, 9, ""},
	} {
		entries, err := n.FDB("blue", c.after, c.limit)
		var got []string
		for _, e := range entries {
			got = append(got, e.Mac[12:])
		}
		if err != nil || strings.Join(got, " ") != c.want {
			t.Errorf("FDB after %v, at most %d: %v, %v; want %s", c.after, c.limit, got, err, c.want)
		}
	}
	entries, err := n.FDB("blue", addr.MAC{}, 2)
	if err != nil || len(entries) != 2 {
		t.Fatal(entries, err)
	}
	same(t, entries[0], `{"mac":"02:00:00:00:00:01","vtep":"192.0.2.2","static":false,"age":"5s","ips":[]}`)
	same(t, entries[1], `{"mac":"02:00:00:00:00:02","vtep":"192.0.2.2","static":true,"ips":["10.42.0.2"]}`)
	if _, err := n.FDB("red", addr.MAC{}, 1); !errors.Is(err, api.ErrNoNetwork) {
		t.Errorf("FDB of a network that is not there: %v", err)
	}
}
