package config

import (
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/overlayd/overlayd/dataplane/addr"
	"github.com/overlayd/overlayd/vtep"
)

// sample is the file of the documentation.
const sample = `node: h1                                # default: the host name
socket: /run/overlayd/overlayd.sock     # local API
metrics: 127.0.0.1:9789                 # Prometheus; empty turns it off
underlay:
  port: 4789
  addresses: [192.0.2.1]                # default: the source address of the route to the peers
networks:
  - name: blue
    vni: 42
    device: blue0                       # the TAP; MTU derived from the underlay
    address: 10.42.0.1/24               # optional, given to the TAP; may be a list (v4 and v6)
    peers: [192.0.2.2]                  # remote VTEPs; BUM is replicated to each
    learning: true                      # learn MAC -> VTEP from received frames
`

// facts are those of a host with 192.0.2.1 and 2001:db8::1 on eth0.
func facts() Facts {
	return Facts{
		Hostname: "thishost",
		Features: []string{"tap-vnet", "udp-gso", "udp-gro"},
		HasAddress: func(a netip.Addr) (string, bool) {
			return "eth0", a == netip.MustParseAddr("192.0.2.1") || a == netip.MustParseAddr("2001:db8::1")
		},
	}
}

func TestSample(t *testing.T) {
	file := filepath.Join(t.TempDir(), "overlayd.yaml")
	if err := os.WriteFile(file, []byte(sample), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := Load(file, nil, facts())
	if err != nil {
		t.Fatal(err)
	}
	if c.Node != "h1" || c.Socket != "/run/overlayd/overlayd.sock" || c.Metrics != "127.0.0.1:9789" || c.Log != slog.LevelInfo {
		t.Errorf("read as %+v", c)
	}
	log := slog.New(slog.DiscardHandler)
	want := vtep.Config{
		Underlay: vtep.Underlay{Port: 4789, Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1")}, TTL: 64},
		Networks: []vtep.Network{{
			Name: "blue", VNI: 42, Device: "blue0",
			Addresses: []netip.Prefix{netip.MustParsePrefix("10.42.0.1/24")},
			Peers:     []netip.Addr{netip.MustParseAddr("192.0.2.2")},
			Learning:  true,
		}},
		Log: log,
	}
	if got := c.VTEP(log); !reflect.DeepEqual(got, want) {
		t.Errorf("VTEP config\n%+v\nwant\n%+v", got, want)
	}
}

// TestEveryKey reads a file with every key that there is.
func TestEveryKey(t *testing.T) {
	c, err := parse("f", []byte(`
node: h1
socket: /tmp/s
metrics:
log: debug
disable: [udp-gso]
queues: 2
busy_poll: 50
underlay: {port: 8472, addresses: [192.0.2.1, "2001:db8::1"], ttl: 9, checksum: off}
networks:
  - name: blue
    vni: 16777215
    device: blue0
    address: [10.42.0.1/24, "fd42::1/64"]
    peers: [192.0.2.2, "2001:db8::2"]
    learning: false
    allow_nested: true
    mtu: 1400
    mss: 1360
    endpoints:
      - {mac: "02:42:0a:2a:00:02", ips: [10.42.0.2, "fd42::2"], vtep: 192.0.2.2}
      - mac: 02:42:0a:2a:00:03
        vtep: 2001:db8::2
`), nil, facts())
	if err != nil {
		t.Fatal(err)
	}
	if c.Metrics != "" || c.Log != slog.LevelDebug {
		t.Errorf("metrics %q, log %v", c.Metrics, c.Log)
	}
	mac := func(s string) addr.MAC { m, _ := addr.ParseMAC(s); return m }
	v4, v6 := netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("2001:db8::2")
	want := vtep.Config{
		Underlay: vtep.Underlay{
			Port: 8472, TTL: 9, Checksum: vtep.ChecksumOff,
			Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")},
		},
		Networks: []vtep.Network{{
			Name: "blue", VNI: addr.MaxVNI, Device: "blue0",
			Addresses:   []netip.Prefix{netip.MustParsePrefix("10.42.0.1/24"), netip.MustParsePrefix("fd42::1/64")},
			Peers:       []netip.Addr{v4, v6},
			AllowNested: true,
			MTU:         1400,
			MSS:         1360,
			Mappings: []addr.Mapping{
				{VNI: addr.MaxVNI, MAC: mac("02:42:0a:2a:00:02"), IPs: []netip.Addr{netip.MustParseAddr("10.42.0.2"), netip.MustParseAddr("fd42::2")}, VTEP: v4},
				{VNI: addr.MaxVNI, MAC: mac("02:42:0a:2a:00:03"), VTEP: v6},
			},
		}},
		Disable:  []string{"udp-gso"},
		Queues:   2,
		BusyPoll: 50 * time.Microsecond,
	}
	if got := c.VTEP(nil); !reflect.DeepEqual(got, want) {
		t.Errorf("VTEP config\n%+v\nwant\n%+v", got, want)
	}
}

// TestSeveralUnderlayAddresses states two of one family.
func TestSeveralUnderlayAddresses(t *testing.T) {
	known := facts()
	known.HasAddress = func(netip.Addr) (string, bool) { return "eth0", true }
	c, err := parse("f", []byte("underlay: {addresses: [192.0.2.1, 198.51.100.1, \"2001:db8::1\"]}\nnetworks: [{name: blue, vni: 42, device: blue0}]"), nil, known)
	if err != nil || len(c.VTEP(nil).Underlay.Addresses) != 3 {
		t.Errorf("%+v, %v", c, err)
	}
}

func TestDefaults(t *testing.T) {
	c, err := parse("f", []byte("networks: [{name: blue, vni: 42, device: blue0, peers: [192.0.2.2]}]"), nil, facts())
	if err != nil {
		t.Fatal(err)
	}
	if c.Node != "thishost" || c.Socket != DefaultSocket || c.Metrics != DefaultMetrics || c.Underlay.Port != 4789 ||
		c.Underlay.TTL != 64 || c.Underlay.Checksum != "auto" || !c.Networks[0].Learning || c.Networks[0].MTU != 0 {
		t.Errorf("defaults: %+v", c)
	}
}

// TestAnchors reads what YAML offers for saying the same twice.
func TestAnchors(t *testing.T) {
	c, err := parse("f", []byte("networks:\n- {name: blue, vni: 42, device: blue0, peers: &p [192.0.2.2]}\n- {name: red, vni: 43, device: red0, peers: *p}"), nil, facts())
	if err != nil || len(c.Networks[1].Peers) != 1 {
		t.Errorf("%+v, %v", c, err)
	}
}

func TestOverrides(t *testing.T) {
	c, err := parse("f", []byte("disable: [udp-gso]\nlog: warn\n"+sample), []Override{
		{Key: "disable", Flag: "--disable", Values: []string{"udp-gro", "tap-vnet"}},
		{Key: "log", Flag: "--log", Values: []string{"error"}},
		{Key: "metrics", Flag: "--metrics", Values: []string{""}},
		{Key: "socket", Flag: "--socket", Values: []string{"/tmp/s"}},
	}, facts())
	if err != nil {
		t.Fatal(err)
	}
	if strings.Join(c.Disable, " ") != "udp-gro tap-vnet" || c.Log != slog.LevelError || c.Metrics != "" || c.Socket != "/tmp/s" {
		t.Errorf("overridden: %+v", c)
	}
	for _, o := range []struct {
		Override
		want string
	}{
		{Override{"disable", "--disable", []string{"udp-gso", "udp-gr0"}}, `--disable: unknown feature "udp-gr0": did you mean udp-gro?`},
		{Override{"log", "--log", []string{"loud"}}, `--log: "loud" is not a log level: choose from debug, info, warn, error`},
		{Override{"socket", "--socket", []string{"s"}}, `--socket: "s" is not an absolute path: begin it with /`},
		{Override{"metrics", "--metrics", []string{"9789"}}, `--metrics: "9789" is not host:port: write it such as 127.0.0.1:9789 or [::1]:9789, or leave it empty to turn metrics off`},
		{Override{"metrics", "--metrics", nil}, `--metrics: give it one value`},
		{Override{"colour", "--colour", []string{"red"}}, `--colour: there is no key "colour"`},
	} {
		if _, err := parse("f", []byte("disable: [udp-gso]\n"+sample), []Override{o.Override}, facts()); err == nil || err.Error() != o.want {
			t.Errorf("%v\n got %v\nwant %s", o.Values, err, o.want)
		}
	}
}

// TestAt places complaints that come from elsewhere.
func TestAt(t *testing.T) {
	c, err := parse("f", []byte(sample), []Override{{Key: "disable", Flag: "--disable", Values: []string{"udp-gso"}}}, facts())
	if err != nil {
		t.Fatal(err)
	}
	taken := errors.New("taken")
	for path, want := range map[string]string{
		"networks[0].device":     "f:10: networks[0].device: taken",
		"networks[0].address[0]": "f:11: networks[0].address[0]: taken",
		"networks[0].mtu":        "f:8: networks[0].mtu: taken", // not in the file: that of the network
		"networks[9].mtu":        "f:7: networks[9].mtu: taken",
		"underlay":               "f:4: underlay: taken",
		"queues":                 "f: queues: taken",
		"disable[0]":             "--disable: taken",
		"":                       "f: taken",
	} {
		if got := c.At(path, taken); got.Error() != want || !errors.Is(got, taken) {
			t.Errorf("At(%q) = %q, want %q", path, got, want)
		}
	}
}

func TestLoadRefusesWhatIsNoFile(t *testing.T) {
	dir := t.TempDir()
	for path, want := range map[string]string{
		filepath.Join(dir, "none"): "read the configuration: no such file or directory; name the file with --config",
		dir:                        "read the configuration: read " + dir + ": is a directory",
		"/dev/zero":                "read the configuration: it is larger than 32 MiB; is it the right file?",
	} {
		_, err := Load(path, nil, facts())
		if err == nil || err.Error() != path+": "+want {
			t.Errorf("%v, want %s", err, want)
		}
	}
}

func TestNearest(t *testing.T) {
	known := []string{"name", "vni", "device", "address", "peers", "learning", "allow_nested", "mtu", "mss", "endpoints"}
	for word, want := range map[string]string{
		"vnii": "vni", "peer": "peers", "adress": "address", "Learning": "learning", "allow-nested": "allow_nested",
		"mut": "mtu", "endpoint": "endpoints", "devcie": "device",
		"colour": "", "x": "", "": "", "subnet": "",
	} {
		if got, ok := nearest(word, known); got != want || ok != (want != "") {
			t.Errorf("nearest(%q) = %q, %v, want %q", word, got, ok, want)
		}
	}
	for _, c := range []struct {
		a, b string
		want int
	}{{"", "", 0}, {"", "abc", 3}, {"abc", "", 3}, {"ab", "ba", 1}, {"kitten", "sitting", 3}, {"abcd", "acbd", 1}} {
		if got := edits(c.a, c.b); got != c.want {
			t.Errorf("edits(%q, %q) = %d, want %d", c.a, c.b, got, c.want)
		}
	}
}

// FuzzParse checks that no file makes the reader panic, and that what it says of one is always one line.
func FuzzParse(f *testing.F) {
	f.Add(sample)
	f.Add("networks: &a [*a]")
	f.Add("\"a\\n\\eb\": 1")
	f.Add("disable: \"a\\n\\eb\"")
	f.Add("a: !!binary x\n? [b]\n: c")
	f.Add("networks:\n- {name: blue, vni: 42, device: blue0, peers: &p [192.0.2.2, *p]}\n<<: {}")
	f.Fuzz(func(t *testing.T, text string) {
		c, err := parse("f", []byte(text), nil, facts())
		if err == nil {
			c.VTEP(nil)
			return
		}
		var e *Error
		if !errors.As(err, &e) || !strings.HasPrefix(err.Error(), "f") {
			t.Errorf("%T %v is not an *Error of the file", err, err)
		}
		if strings.ContainsAny(err.Error(), "\n\r\x1b") {
			t.Errorf("%q is not one clean line", err)
		}
	})
}
