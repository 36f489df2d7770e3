package api_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/overlayd/overlayd/controlplane/api"
	"github.com/overlayd/overlayd/controlplane/api/apitest"
	"github.com/overlayd/overlayd/controlplane/api/overlayd/v1"
)

// anID has the form of one.
const anID = "00000000000000aa"

// goodRequests has, for each method, a request whose every field is set and right.
var goodRequests = map[string]map[string]any{
	"Init":                {"advertise": []any{"192.0.2.1", "2001:db8::1"}, "name": "h1"},
	"Join":                {"token": "OVLTKN-1-abc-def", "remotes": []any{"192.0.2.1:7789", "[2001:db8::1]:7789", "h2.example.net:7789"}, "advertise": []any{"192.0.2.2"}, "name": "h2"},
	"Leave":               {"force": true},
	"GetTokens":           {"role": "worker"},
	"RotateToken":         {"role": "manager"},
	"ListNodes":           {},
	"GetNode":             {"node": "h2"},
	"UpdateNode":          {"node": "h2", "role": "manager", "availability": "drain"},
	"RemoveNode":          {"node": "h2", "force": true},
	"CreateNetwork":       {"name": "red", "vni": 77, "subnets": []any{"10.43.0.0/24", "2001:db8:43::/64"}, "gateways": []any{"10.43.0.1", "2001:db8:43::1"}, "mtu": 1400, "mss": 1300},
	"ListClusterNetworks": {},
	"GetNetwork":          {"network": "blue"},
	"RemoveNetwork":       {"network": "blue"},
	"AddEndpoint":         {"network": "blue", "netns": "c1", "name": "web", "ips": []any{"10.42.0.10", "2001:db8:42::10"}, "mac": "02:00:00:00:00:01", "interface": "eth1"},
	"ListEndpoints":       {"network": "blue", "node": "h2", "page_size": 5, "page_token": anID},
	"RemoveEndpoint":      {"network": "blue", "endpoint": "web"},
	"GetClusterStatus":    {},
}

// required are the fields that must not be empty.
var required = map[string]bool{
	"Join.token": true, "Join.remotes": true, "RotateToken.role": true, "GetNode.node": true, "UpdateNode.node": true, "RemoveNode.node": true,
	"CreateNetwork.name": true, "GetNetwork.network": true, "RemoveNetwork.network": true, "AddEndpoint.network": true, "AddEndpoint.netns": true,
	"RemoveEndpoint.network": true, "RemoveEndpoint.endpoint": true,
}

// badStrings fit into no field of the API.
var badStrings = map[string]string{
	"64 KiB": strings.Repeat("a", 64<<10), "NUL": "a\x00b", "unicode": "b\u00fcr\u00f6\u2603", "right to left": "a\u202eb", "traversal": "../../etc/passwd",
	"slashes": "/run/netns/../../etc/passwd", "a space": "a b", "a line end": "web\n", "an escape": "\x1b[2J", "a quote": `a"b`, "a percent": "%s%n", "a hyphen": "-",
}

// badValues are values that a field takes in no case, and emptyValues those that mean that it is not set.
func badValues(f protoreflect.FieldDescriptor) (bad map[string]any, empty map[string]any) {
	bad = map[string]any{"an object": map[string]any{"a": 1}}
	empty = map[string]any{"null": nil}
	switch f.Kind() {
	case protoreflect.StringKind:
		bad["a number"], bad["a negative number"], bad["true"] = 5, -1, true
		empty["empty"] = ""
		for name, s := range badStrings {
			bad[name] = s
		}
	case protoreflect.Uint32Kind:
		bad["negative"], bad["max+1"], bad["a fraction"], bad["text"], bad["true"] = -1, 1<<32, 1.5, "ten", true
		bad["64 KiB"] = strings.Repeat("9", 64<<10)
		empty["0"] = 0
	case protoreflect.BoolKind:
		bad["a number"], bad["text"] = 1, "yes"
		empty["false"] = false
	default:
		panic("a kind of field that no test knows: " + f.Kind().String())
	}
	if !f.IsList() {
		bad["a list"] = []any{}
		return bad, empty
	}
	elements := map[string]any{"not a list": "x", "an object": map[string]any{}, "a number": 5}
	for name, v := range bad {
		elements["element: "+name] = []any{v}
	}
	for name, v := range empty {
		elements["element: "+name] = []any{v}
	}
	var many []any
	for i := range 1000 {
		many = append(many, fmt.Sprintf("192.0.2.%d", i%256))
	}
	elements["too many"] = many
	return elements, map[string]any{"null": nil, "empty": []any{}}
}

// post sends JSON to a method as curl would.
func post(t *testing.T, hc *http.Client, method, body string) (int, string) {
	t.Helper()
	res, err := hc.Post("http://overlayd/overlayd.v1."+method, "application/json", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	data, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(data)
}

// curl returns a client for a unix socket.
func curl(t *testing.T, socket string) *http.Client {
	t.Helper()
	tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

// clusterContent is a cluster with one of everything.
func clusterContent() apitest.ClusterContent {
	return apitest.ClusterContent{
		ID: "c000000000000001", Worker: "OVLTKN-1-digest-worker", Manager: "OVLTKN-1-digest-manager",
		Nodes: []*overlaydv1.Node{
			{Id: "000000000000000a", Name: "h1", Role: "manager", Availability: "active", Status: "ready", ManagerStatus: "leader", Addresses: []string{"192.0.2.1"}, ControlPort: 7789, Self: true},
			{Id: "000000000000000b", Name: "h2", Role: "worker", Availability: "active", Status: "ready", Addresses: []string{"192.0.2.2"}, ControlPort: 7789},
		},
		Networks: []*overlaydv1.ClusterNetwork{{Id: "00000000000000b1", Name: "blue", Vni: 4096, Subnets: []string{"10.42.0.0/24"}, Gateways: []string{""}}},
	}
}

// serveCluster serves a cluster, and returns the client that curl would be.
func serveCluster(t *testing.T, c api.Cluster) (*http.Client, string) {
	t.Helper()
	n := content()
	n.Cluster = c
	socket, _ := apitest.New(n).Serve(t)
	return curl(t, socket), socket
}

// typedError is an error as the API sends it.
type typedError struct {
	Code    string
	Message string
	Details []struct {
		Type  string
		Debug struct{ Kind, Field string }
	}
}

func parseError(t *testing.T, body string) typedError {
	t.Helper()
	var e typedError
	if err := json.Unmarshal([]byte(body), &e); err != nil || e.Code == "" {
		t.Fatalf("not an error of the API: %.300s (%v)", body, err)
	}
	return e
}

// TestBadValues sends, for each field of each request, values that it must not take.
func TestBadValues(t *testing.T) {
	cluster := apitest.NewCluster(time.Unix(0, 0), clusterContent())
	hc, _ := serveCluster(t, cluster)
	methods := overlaydv1.File_overlayd_v1_cluster_proto.Services().ByName("ClusterService").Methods()
	sent := 0
	for i := range methods.Len() {
		method := methods.Get(i)
		if method.IsStreamingClient() || method.IsStreamingServer() {
			continue
		}
		name := string(method.Name())
		good, ok := goodRequests[name]
		fields := method.Input().Fields()
		if !ok || len(good) != fields.Len() {
			t.Errorf("%s: the good request has %d fields, the message has %d", name, len(good), fields.Len())
			continue
		}
		// refused sends the good request with one field replaced, which must be refused because of it.
		refused := func(field, what string, value any) {
			t.Helper()
			sent++
			before := cluster.Calls()
			code, body := post(t, hc, "ClusterService/"+name, with(t, good, field, value))
			if code != http.StatusBadRequest {
				t.Errorf("%s with %s = %s: status %d %.200s", name, field, what, code, body)
				return
			}
			e := parseError(t, body)
			if e.Code != "invalid_argument" || !strings.Contains(e.Message, field) || !strings.Contains(e.Message, "; ") {
				t.Errorf("%s with %s = %s: %s: %.300s", name, field, what, e.Code, e.Message)
			}
			if len(e.Message) > 1000 {
				t.Errorf("%s with %s = %s: an error of %d bytes", name, field, what, len(e.Message))
			}
			if strings.ContainsFunc(e.Message, func(r rune) bool { return r < ' ' || r > '~' }) {
				t.Errorf("%s with %s = %s: the error repeats what a terminal might act on: %q", name, field, what, e.Message)
			}
			if cluster.Calls() != before {
				t.Errorf("%s with %s = %s came through", name, field, what)
			}
		}
		for j := range fields.Len() {
			f := fields.Get(j)
			field := string(f.Name())
			bad, empty := badValues(f)
			for what, value := range bad {
				refused(field, what, value)
			}
			for what, value := range empty {
				if required[name+"."+field] {
					refused(field, what, value)
				} else if code, body := post(t, hc, "ClusterService/"+name, with(t, good, field, value)); code == http.StatusBadRequest && parseError(t, body).Code == "invalid_argument" {
					t.Errorf("%s with %s = %s, which is optional: %s", name, field, what, body)
				}
			}
		}
		for _, body := range []string{`[]`, `5`, `"x"`, `null`, `{`, ``, `{"no_such_field":1}`, `{}{}`, "{\"\xff\":1}"} {
			if code, text := post(t, hc, "ClusterService/"+name, body); code != http.StatusBadRequest || parseError(t, text).Code != "invalid_argument" {
				t.Errorf("%s with the body %q: status %d %s", name, body, code, text)
			}
		}
	}
	if sent < 400 {
		t.Errorf("only %d bad values were sent", sent)
	}
}

// with writes a request with one field replaced as JSON.
func with(t *testing.T, req map[string]any, field string, value any) string {
	t.Helper()
	changed := map[string]any{field: value}
	for k, v := range req {
		if k == "gateways" && field == "subnets" {
			continue // they need the right subnets
		}
		if k != field {
			changed[k] = v
		}
	}
	b, err := json.Marshal(changed)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestGoodRequests shows that the requests which TestBadValues spoils are right.
func TestGoodRequests(t *testing.T) {
	for name, good := range goodRequests {
		c := clusterContent()
		if name == "Init" || name == "Join" {
			c = apitest.ClusterContent{}
		}
		hc, _ := serveCluster(t, apitest.NewCluster(time.Unix(0, 0), c))
		b, err := json.Marshal(good)
		if err != nil {
			t.Fatal(err)
		}
		if code, body := post(t, hc, "ClusterService/"+name, string(b)); code != http.StatusOK && code != http.StatusNotFound {
			t.Errorf("%s %s: status %d %s", name, b, code, body)
		}
	}
}

// TestBadRequests is about values that have the right form and make no sense.
func TestBadRequests(t *testing.T) {
	cluster := apitest.NewCluster(time.Unix(0, 0), clusterContent())
	hc, _ := serveCluster(t, cluster)
	for _, c := range []struct{ method, body, field, want string }{
		{"Init", `{"advertise":["127.0.0.1"]}`, "advertise[0]", "127.0.0.1 is only this host's own; give an address that the other hosts can reach"},
		{"Init", `{"advertise":["192.0.2.1","192.0.2.1"]}`, "advertise[1]", "192.0.2.1 is there twice; give it once"},
		{"Init", `{"advertise":["192.0.2.1:7789"]}`, "advertise[0]", `"192.0.2.1:7789" is not an IP address; write it as in 192.0.2.1 or 2001:db8::1, without prefix length or port`},
		{"Init", `{"advertise":["0.0.0.0"]}`, "advertise[0]", "0.0.0.0 is not the address of one interface; give a unicast address"},
		{"Init", `{"advertise":["fe80::1%eth0"]}`, "advertise[0]", `"fe80::1%eth0" has a zone, which means something to one host only; give an address without`},
		{"Init", `{"advertise":["fe80::1"]}`, "advertise[0]", "fe80::1 is link-local, which means something on one link only; give another address"},
		{"Init", `{"advertise":["::ffff:192.0.2.1"]}`, "advertise[0]", `"::ffff:192.0.2.1" is an IPv4 address in the form of IPv6; write 192.0.2.1`},
		{"Init", `{"name":"Host1"}`, "name", `"Host1" is no name; use 1 to 63 lower-case letters, digits and hyphens, with no hyphen at either end`},
		{"Init", `{"name":"` + strings.Repeat("a", 64) + `"}`, "name", `"` + strings.Repeat("a", 40) + `"... (64 bytes) is no name; use 1 to 63 lower-case letters, digits and hyphens, with no hyphen at either end`},
		{"Init", `{"name":"` + anID + `"}`, "name", `"` + anID + `" has the form of an ID; choose a name that cannot be taken for one`},
		{"Join", `{"remotes":["192.0.2.1:7789"]}`, "token", "it is missing; give what `overlayctl token show` prints on a manager"},
		{"Join", `{"token":"SWMTKN-1-topsecret","remotes":["192.0.2.1:7789"]}`, "token", "a token begins with OVLTKN-1-; copy all of what `overlayctl token show` prints on a manager"},
		{"Join", `{"token":"OVLTKN-1-","remotes":["192.0.2.1:7789"]}`, "token", "it is cut short, or has characters that no token has; copy all of what `overlayctl token show` prints on a manager"},
		{"Join", `{"token":"OVLTKN-1-a-b"}`, "remotes", "it is missing; give the address of a manager, as in 192.0.2.1:7789"},
		{"Join", `{"token":"OVLTKN-1-a-b","remotes":["192.0.2.1"]}`, "remotes[0]", `"192.0.2.1" is not host:port; write it as in 192.0.2.1:7789 or [2001:db8::1]:7789`},
		{"Join", `{"token":"OVLTKN-1-a-b","remotes":["h1:0"]}`, "remotes[0]", `"h1:0" has no port from 1 to 65535; write it as in 192.0.2.1:7789`},
		{"Join", `{"token":"OVLTKN-1-a-b","remotes":["h1:65536"]}`, "remotes[0]", `"h1:65536" has no port from 1 to 65535; write it as in 192.0.2.1:7789`},
		{"Join", `{"token":"OVLTKN-1-a-b","remotes":["h1:+1"]}`, "remotes[0]", `"h1:+1" has no port from 1 to 65535; write it as in 192.0.2.1:7789`},
		{"Join", `{"token":"OVLTKN-1-a-b","remotes":["[::]:7789"]}`, "remotes[0]", ":: is not the address of a host; give that of a manager"},
		{"Join", `{"token":"OVLTKN-1-a-b","remotes":["h1:1","h2:1","h1:1"]}`, "remotes[2]", "h1:1 is there twice; give it once"},
		{"GetTokens", `{"role":"boss"}`, "role", `"boss" is not known; choose worker or manager`},
		{"UpdateNode", `{"node":"h1"}`, "role", "neither it nor availability is set, so nothing would change; set one of them"},
		{"UpdateNode", `{"node":"h1","availability":"pause"}`, "availability", `"pause" is not known; choose active or drain`},
		{"CreateNetwork", `{"name":"red","vni":16777216}`, "vni", "VNI 16777216 is out of range: choose a number from 1 to 16777215 (24 bits, RFC 7348), or leave it out to have one chosen"},
		{"CreateNetwork", `{"name":"red","vni":4294967295}`, "vni", "VNI 4294967295 is out of range: choose a number from 1 to 16777215 (24 bits, RFC 7348), or leave it out to have one chosen"},
		{"CreateNetwork", `{"name":"red","subnets":["10.43.0.1/24"]}`, "subnets[0]", "10.43.0.1/24 has bits set behind its prefix; write 10.43.0.0/24"},
		{"CreateNetwork", `{"name":"red","subnets":["10.43.0.0"]}`, "subnets[0]", `"10.43.0.0" is not a prefix; write it as in 10.42.0.0/24 or 2001:db8:42::/64`},
		{"CreateNetwork", `{"name":"red","subnets":["10.43.0.0/33"]}`, "subnets[0]", `"10.43.0.0/33" is not a prefix; write it as in 10.42.0.0/24 or 2001:db8:42::/64`},
		{"CreateNetwork", `{"name":"red","subnets":["10.43.0.0/31"]}`, "subnets[0]", "10.43.0.0/31 has no room for two hosts; choose at most /30"},
		{"CreateNetwork", `{"name":"red","subnets":["2001:db8::/127"]}`, "subnets[0]", "2001:db8::/127 has no room for two hosts; choose at most /126"},
		{"CreateNetwork", `{"name":"red","subnets":["0.0.0.0/0"]}`, "subnets[0]", "0.0.0.0/0 reaches into 0.0.0.0/8, whose addresses no host can have; choose another one"},
		{"CreateNetwork", `{"name":"red","subnets":["239.0.0.0/8"]}`, "subnets[0]", "239.0.0.0/8 reaches into 224.0.0.0/3, whose addresses no host can have; choose another one"},
		{"CreateNetwork", `{"name":"red","subnets":["::ffff:10.0.0.0/104"]}`, "subnets[0]", `"::ffff:10.0.0.0/104" is an IPv4 address in the form of IPv6; write it as in 10.42.0.0/24`},
		{"CreateNetwork", `{"name":"red","subnets":["10.1.0.0/24","10.2.0.0/24"]}`, "subnets[1]", "10.2.0.0/24 is the second prefix of its family, after 10.1.0.0/24; give at most one of IPv4 and one of IPv6"},
		{"CreateNetwork", `{"name":"red","gateways":["10.0.0.1"]}`, "gateways", "there is no subnet that it could be in; give subnets too"},
		{"CreateNetwork", `{"name":"red","subnets":["10.1.0.0/24"],"gateways":["10.2.0.1"]}`, "gateways[0]", "10.2.0.1 is in none of the subnets; choose an address of 10.1.0.0/24"},
		{"CreateNetwork", `{"name":"red","subnets":["10.1.0.0/24"],"gateways":["10.1.0.1","10.1.0.2"]}`, "gateways[1]", "10.1.0.2 is the second gateway in 10.1.0.0/24, after 10.1.0.1; give one"},
		{"CreateNetwork", `{"name":"red","subnets":["10.1.0.0/24"],"gateways":["10.1.0.255"]}`, "gateways[0]", "10.1.0.255 stands for all of 10.1.0.0/24; choose another address of it"},
		{"CreateNetwork", `{"name":"red","subnets":["10.1.0.0/22"],"gateways":["10.1.3.255"]}`, "gateways[0]", "10.1.3.255 stands for all of 10.1.0.0/22; choose another address of it"},
		{"CreateNetwork", `{"name":"red","subnets":["2001:db8::/64"],"gateways":["2001:db8::"]}`, "gateways[0]", "2001:db8:: stands for all of 2001:db8::/64; choose another address of it"},
		{"CreateNetwork", `{"name":"red","mtu":67}`, "mtu", "67 is out of range; choose from 68 to 65485, or leave it out to have it derived from the underlay"},
		{"CreateNetwork", `{"name":"red","mtu":65486}`, "mtu", "65486 is out of range; choose from 68 to 65485, or leave it out to have it derived from the underlay"},
		{"CreateNetwork", `{"name":"red","mss":87}`, "mss", "87 is out of range: choose from 88 to 65445, or leave it out to have it follow what each path leaves"},
		{"CreateNetwork", `{"name":"red","mss":65446}`, "mss", "65446 is out of range: choose from 88 to 65445, or leave it out to have it follow what each path leaves"},
		{"CreateNetwork", `{"name":"red","mss":4294967295,"mtu":1400}`, "mss", "4294967295 is out of range: choose from 88 to 65445, or leave it out to have it follow what each path leaves"},
		{"CreateNetwork", `{"name":"red","mss":1361,"mtu":1400}`, "mss", "1361 does not fit: an mtu of 1400 leaves 1360 at most; choose that or less, or leave it out"},
		{"CreateNetwork", `{"name":"red","mtu":1279,"subnets":["2001:db8::/64"]}`, "mtu", "1279 is too small for IPv6; choose at least 1280"},
		{"AddEndpoint", `{"network":"blue","netns":".."}`, "netns", `".." names no network namespace; give a name of /run/netns, such as c1, or an absolute path, such as /proc/4711/ns/net`},
		{"AddEndpoint", `{"network":"blue","netns":"a/b"}`, "netns", `"a/b" names no network namespace; give a name of /run/netns, such as c1, or an absolute path, such as /proc/4711/ns/net`},
		{"AddEndpoint", `{"network":"blue","netns":"/run/netns/./c1"}`, "netns", `"/run/netns/./c1" is not a plain absolute path; give a name of /run/netns, such as c1, or an absolute path, such as /proc/4711/ns/net`},
		{"AddEndpoint", `{"network":"blue","netns":"c1","ips":["10.42.0.10/24"]}`, "ips[0]", `"10.42.0.10/24" is not an IP address; write it as in 192.0.2.1 or 2001:db8::1, without prefix length or port`},
		{"AddEndpoint", `{"network":"blue","netns":"c1","ips":["10.42.0.10","10.42.0.11"]}`, "ips[1]", "10.42.0.11 is the second address of its family, after 10.42.0.10; give at most one of IPv4 and one of IPv6"},
		{"AddEndpoint", `{"network":"blue","netns":"c1","ips":["224.0.0.1"]}`, "ips[0]", "224.0.0.1 is not the address of one interface; give a unicast address"},
		{"AddEndpoint", `{"network":"blue","netns":"c1","ips":["010.042.0.1"]}`, "ips[0]", `"010.042.0.1" is not an IP address; write it as in 192.0.2.1 or 2001:db8::1, without prefix length or port`},
		{"AddEndpoint", `{"network":"blue","netns":"c1","mac":"03:00:00:00:00:01"}`, "mac", "03:00:00:00:00:01 is not the address of one interface; choose one whose first byte is even, such as 02:42:0a:2a:00:0a"},
		{"AddEndpoint", `{"network":"blue","netns":"c1","mac":"00:00:00:00:00:00"}`, "mac", "00:00:00:00:00:00 is not the address of one interface; choose one whose first byte is even, such as 02:42:0a:2a:00:0a"},
		{"AddEndpoint", `{"network":"blue","netns":"c1","mac":"02:00:00:00:00:00:00:01"}`, "mac", `"02:00:00:00:00:00:00:01" is not a MAC address; write six bytes as in 02:42:0a:2a:00:0a`},
		{"AddEndpoint", `{"network":"blue","netns":"c1","interface":"a-name-too-long1"}`, "interface", `"a-name-too-long1" cannot be the name of an interface; use 1 to 15 letters, digits, dots, hyphens and underscores, with no hyphen first`},
		{"AddEndpoint", `{"network":"blue","netns":"c1","interface":"lo"}`, "interface", `"lo" has a meaning of its own to the kernel; choose another name, such as eth0`},
		{"ListEndpoints", `{"page_token":"web"}`, "page_token", `"web" is none of ours; pass on the next_page_token of the answer before`},
	} {
		before := cluster.Calls()
		code, body := post(t, hc, "ClusterService/"+c.method, c.body)
		if code != http.StatusBadRequest {
			t.Errorf("%s %s: status %d %s", c.method, c.body, code, body)
			continue
		}
		e := parseError(t, body)
		if e.Code != "invalid_argument" || e.Message != c.field+": "+c.want {
			t.Errorf("%s %s:\n got %s: %s\nwant %s: %s", c.method, c.body, e.Code, e.Message, c.field, c.want)
		}
		if len(e.Details) != 1 || e.Details[0].Type != "overlayd.v1.ErrorInfo" || e.Details[0].Debug.Kind != "KIND_INVALID" || e.Details[0].Debug.Field != c.field {
			t.Errorf("%s %s: details %+v", c.method, c.body, e.Details)
		}
		if cluster.Calls() != before {
			t.Errorf("%s %s came through", c.method, c.body)
		}
	}
}
