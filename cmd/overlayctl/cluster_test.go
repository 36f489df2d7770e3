package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/overlayd/overlayd/controlplane/api"
	"github.com/overlayd/overlayd/controlplane/api/apitest"
	"github.com/overlayd/overlayd/controlplane/api/overlayd/v1"
)

// cluster is one with three managers, one of which is down, and a worker.
func cluster() apitest.ClusterContent {
	node := func(n int, role, status, manager string) *overlaydv1.Node {
		return &overlaydv1.Node{
			Id: fmt.Sprintf("%016x", 9+n), Name: fmt.Sprintf("h%d", n), Role: role, Availability: api.AvailabilityActive, Status: status, ManagerStatus: manager,
			Addresses: []string{fmt.Sprintf("192.0.2.%d", n)}, ControlPort: 7789, GossipPort: 7790, VxlanPort: 4789,
			Joined: timestamppb.New(now.Add(-26 * time.Hour)), Self: n == 1, Endpoints: uint64(n % 2),
		}
	}
	c := apitest.ClusterContent{
		ID: "c000000000000001", Worker: "OVLTKN-1-digest-worker", Manager: "OVLTKN-1-digest-manager", Index: 1234,
		Nodes: []*overlaydv1.Node{
			node(1, "manager", "ready", "leader"), node(2, "manager", "ready", ""), node(3, "manager", "down", "unreachable"), node(4, "worker", "ready", ""),
		},
		Networks: []*overlaydv1.ClusterNetwork{
			{Id: "00000000000000b1", Name: "green", Vni: 4096, Subnets: []string{"10.43.0.0/24", "2001:db8:43::/64"}, Gateways: []string{"10.43.0.1", ""}, Endpoints: 2, Created: timestamppb.New(now.Add(-time.Hour))},
			{Id: "00000000000000b2", Name: "red", Vni: 4097, Subnets: []string{"10.44.0.0/24"}, Gateways: []string{""}, Mtu: 1300, Created: timestamppb.New(now)},
		},
		Endpoints: []*overlaydv1.Endpoint{
			{Id: "00000000000000e1", Network: "green", NetworkId: "00000000000000b1", Name: "web", Ips: []string{"10.43.0.2", "2001:db8:43::2"}, Mac: "02:00:00:00:00:01", Node: "h1", NodeId: "000000000000000a", Generation: 1, Status: "attached", Netns: "c1", Interface: "eth0", Mtu: 1450},
			{Id: "00000000000000e2", Network: "green", NetworkId: "00000000000000b1", Ips: []string{"10.43.0.3"}, Mac: "02:00:00:00:00:02", Node: "h3", NodeId: "000000000000000c", Generation: 2, Status: "pending"},
		},
		Problems: []string{"the manager h3 cannot be reached: see to it before another one fails"},
	}
	c.Nodes[1].Availability = api.AvailabilityDrain
	c.Nodes[2].Problem = "not heard from for 2m0s"
	return c
}

// serveCluster serves a node whose green network is the cluster's.
func serveCluster(t *testing.T, c *apitest.Cluster) string {
	t.Helper()
	n := content()
	n.Networks[1].Name, n.Networks[1].NetworkId, n.Networks[1].Vni = "green", "00000000000000b1", 4096
	n.Cluster = c
	socket, _ := apitest.New(n).Serve(t)
	return socket
}

// session runs commands one after the other, and returns what a terminal would show.
func session(t *testing.T, socket string, format string, commands []string) string {
	t.Helper()
	var out strings.Builder
	for _, line := range commands {
		fmt.Fprintf(&out, "$ overlayctl %s\n", line)
		line, stdin, _ := strings.Cut(line, " < ")
		args := strings.Fields(line)
		if format != "" {
			args = append(args, "-o", format)
		}
		code, stdout, stderr := callWith(t.Context(), stdin, map[string]string{"OVERLAYD_SOCKET": socket}, args...)
		if format == "json" && stdout != "" && !json.Valid([]byte(stdout)) {
			t.Errorf("%s -o json: no JSON:\n%s", line, stdout)
		}
		out.WriteString(stdout + stderr)
		if code != exitOK {
			fmt.Fprintf(&out, "(exit code %d)\n", code)
		}
	}
	return out.String()
}

// TestSessions goes through the life of a cluster, in both formats.
func TestSessions(t *testing.T) {
	for name, x := range map[string]struct {
		content  apitest.ClusterContent
		commands []string
	}{
		"first": {apitest.ClusterContent{}, []string{
			"status", "network ls", "node ls", "cluster status",
			"init --advertise 192.0.2.1 --name h1",
			"init --advertise 192.0.2.1",
			"token show", "token show worker", "token show manager --quiet", "token rotate worker", "token rotate manager -q",
			"network create blue --subnet 10.42.0.0/24", "network create blue", "network create red --subnet 10.44.0.0/24 --subnet 2001:db8:44::/64 --gateway 10.44.0.1 --vni 77 --mtu 1400",
			"network create Blue",
			"endpoint add blue --netns c1 --name web --ip 10.42.0.10", "endpoint add blue --netns /proc/4711/ns/net", "endpoint ls", "network rm blue",
			"endpoint add blue --netns ../c1", "endpoint add blue --netns c1 --mac 01:00:00:00:00:00", "endpoint add green --netns c1",
			"endpoint rm blue web", "endpoint rm blue web", "endpoint rm blue 000000000000a007", "network rm blue", "network inspect blue",
			"leave", "leave --force", "leave",
		}},
		"join": {apitest.ClusterContent{}, []string{
			"join --token OVLTKN-1-digest-secret --advertise 192.0.2.2 192.0.2.1:7789",
			"join --token OVLTKN-1-digest-secret 192.0.2.1:7789",
			"leave",
			"join --token-file - --advertise 192.0.2.2,2001:db8::2 192.0.2.1:7789 192.0.2.3:7789 < OVLTKN-1-dddddddddddddddd-6d616e6167657220303031\n",
			"join --token SWMTKN-1-secret 192.0.2.1:7789", "join --token OVLTKN-1-digest-secret 192.0.2.1",
		}},
		"cluster": {cluster(), []string{
			"status", "cluster status", "network ls", "network inspect green", "network inspect 00000000000000b2",
			"node ls", "node inspect", "node inspect h3", "node inspect h9",
			"endpoint ls", "endpoint ls green --node h3", "endpoint ls blue",
			"node promote h4", "node demote h2", "node drain h4", "node activate h4", "node rm h3", "node rm h4", "node rm h4 --force", "node rm h3",
			"node demote h1", "node promote ../h1",
			"cluster recover --data-dir /var/lib/overlayd", "cluster recover --data-dir /srv",
		}},
	} {
		for _, format := range []string{"", "json"} {
			socket := serveCluster(t, apitest.NewCluster(now, x.content))
			file := "session_" + name + ".txt"
			if format == "json" {
				file = "session_" + name + "_json.txt"
			}
			golden(t, file, session(t, socket, format, x.commands))
			x.content = again(name)
		}
	}
}

// again is the content of a session from the start.
func again(name string) apitest.ClusterContent {
	if name == "cluster" {
		return cluster()
	}
	return apitest.ClusterContent{}
}

// TestNoQuorum shows what remains when most managers are lost.
func TestNoQuorum(t *testing.T) {
	c := cluster()
	c.NoQuorum = true
	socket := serveCluster(t, apitest.NewCluster(now, c))
	golden(t, "session_noquorum.txt", session(t, socket, "", []string{"status", "cluster status", "node drain h1", "node ls"}))
}

// TestWarnings has what there is to say about paths go to where it is no part of the output.
func TestWarnings(t *testing.T) {
	c := cluster()
	c.Warnings = []string{"the path to 192.0.2.3 carries 1400", "so does another"}
	socket := serveCluster(t, apitest.NewCluster(now, c))
	code, out, errs := call(t.Context(), map[string]string{"OVERLAYD_SOCKET": socket}, "network", "create", "narrow", "--subnet", "10.99.0.0/24")
	if code != exitOK || strings.Contains(out, "1400") || errs != "warning: the path to 192.0.2.3 carries 1400\nwarning: so does another\n" {
		t.Errorf("exit code %d\n%s%s", code, out, errs)
	}
}

// TestClusterCannotBeAsked shows what is known of the node all the same, and then the error.
func TestClusterCannotBeAsked(t *testing.T) {
	fake := apitest.NewCluster(now, cluster())
	fake.Fail(errors.New("the copy of the state is damaged"))
	socket := serveCluster(t, fake)
	for _, args := range [][]string{{"status"}, {"status", "-o", "json"}, {"network", "ls"}, {"network", "ls", "-o", "json"}} {
		code, out, errs := call(t.Context(), map[string]string{"OVERLAYD_SOCKET": socket}, args...)
		if code != exitFailure || !strings.Contains(out, "green") && !strings.Contains(out, "192.0.2.1") || errs != "overlayctl: the copy of the state is damaged\n" {
			t.Errorf("%q: exit code %d\n%s%s", args, code, out, errs)
		}
	}
}

func TestClusterFaults(t *testing.T) {
	socket := serveCluster(t, apitest.NewCluster(now, cluster()))
	for _, c := range []struct{ args, want string }{
		{"init now", `unknown command "now" for "overlayctl init"`},
		{"join", "join needs --token or --token-file: `overlayctl token show worker --quiet` on a manager prints a token"},
		{"join 192.0.2.1:7789", "join needs --token or --token-file: `overlayctl token show worker --quiet` on a manager prints a token"},
		{"join --token x --token-file y 192.0.2.1:7789", "join takes --token or --token-file, not both"},
		{"join --token OVLTKN-1-x-y", "join needs the address of a manager, as in 192.0.2.1:7789"},
		{"token", "overlayctl token needs one of the commands rotate, show"},
		{"token show boss", `token show: "boss" is no role: choose worker or manager`},
		{"token show -q", "token show --quiet needs a role: worker or manager"},
		{"token show worker manager", "token show takes one role, worker or manager, not 2 arguments"},
		{"token rotate", "token rotate takes one role, worker or manager, not 0 arguments"},
		{"node promote", "node promote takes the name or ID of a node, not 0 arguments"},
		{"node inspect a b", "node inspect takes the name or ID of a node, not 2 arguments"},
		{"node rm", "node rm takes the name or ID of a node, not 0 arguments"},
		{"network create", "network create takes the name of the network, not 0 arguments"},
		{"network create a --vni -1", `invalid argument "-1" for "--vni" flag: strconv.ParseUint: parsing "-1": invalid syntax`},
		{"network create a --vni 4294967296", `invalid argument "4294967296" for "--vni" flag: strconv.ParseUint: parsing "4294967296": value out of range`},
		{"network rm a b", "network rm takes the name or ID of a network, not 2 arguments"},
		{"endpoint add", "endpoint add takes the name or ID of a network, not 0 arguments"},
		{"endpoint add green", "endpoint add needs --netns, with the network namespace that is to have the interface"},
		{"endpoint rm green", "endpoint rm takes the name or ID of a network and that of an endpoint, not 1 argument"},
		{"cluster recover", "cluster recover needs --data-dir, with the data directory of the daemon"},
		{"backup", "backup takes the name of a file, or -, not 0 arguments"},
		{"restore a b", "restore takes the name of a file, or -, not 2 arguments"},
	} {
		code, out, errs := call(t.Context(), map[string]string{"OVERLAYD_SOCKET": socket}, strings.Fields(c.args)...)
		if code != exitUsage || out != "" || errs != "overlayctl: "+c.want+"; see overlayctl --help\n" {
			t.Errorf("overlayctl %s: exit code %d\n%s%s", c.args, code, out, errs)
		}
	}
}

func TestTokenFile(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	const token = "OVLTKN-1-digest-secret"
	for _, c := range []struct {
		flag, value, stdin string
		want               string // "" = joined
	}{
		{"--token-file", write("token", "  "+token+"\n"), "", ""},
		{"--token-file", "-", token + "\r\n", ""},
		{"--token", "-", token, ""},
		{"--token", " " + token, "", ""},
		{"--token-file", write("empty", "\n"), "", "read the token: " + dir + "/empty is empty: write into it what `overlayctl token show worker --quiet` prints on a manager"},
		{"--token-file", "-", "", "read the token: the standard input is empty: write into it what `overlayctl token show worker --quiet` prints on a manager"},
		{"--token-file", write("long", strings.Repeat(token, 1000)), "", "read the token: " + dir + "/long has more than 4096 bytes: it should hold the token alone"},
		{"--token-file", filepath.Join(dir, "none"), "", "read the token: open " + dir + "/none: no such file or directory"},
		{"--token-file", write("two", token+"\n"+token), "", "token: it is cut short, or has characters that no token has; copy all of what `overlayctl token show` prints on a manager"},
	} {
		socket := serveCluster(t, apitest.NewCluster(now, apitest.ClusterContent{}))
		code, out, errs := callWith(t.Context(), c.stdin, map[string]string{"OVERLAYD_SOCKET": socket}, "join", c.flag, c.value, "192.0.2.1:7789")
		if c.want == "" && (code != exitOK || !strings.Contains(out, "worker")) || c.want != "" && (code != exitFailure || errs != "overlayctl: "+c.want+"\n") {
			t.Errorf("%s %q: exit code %d\n%s%s", c.flag, c.value, code, out, errs)
		}
		if strings.Contains(out+errs, "secret") {
			t.Errorf("%s %q: the token is repeated:\n%s%s", c.flag, c.value, out, errs)
		}
	}
}

func TestBackupAndRestore(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "backup")
	env := map[string]string{"OVERLAYD_SOCKET": serveCluster(t, apitest.NewCluster(now, cluster()))}
	code, toStdout, errs := call(t.Context(), env, "backup", "-")
	if code != exitOK || errs != "" || !strings.HasSuffix(toStdout, "end\n") {
		t.Fatalf("backup -: exit code %d, %d bytes, %s", code, len(toStdout), errs)
	}
	for range 2 { // the second time there is one
		code, out, errs := call(t.Context(), env, "backup", file)
		if want := fmt.Sprintf("%s bytes, SHA-256 ", count(uint64(len(toStdout)))); code != exitOK || errs != "" || !strings.HasPrefix(out, want) || !strings.Contains(out, "keep it as you keep a password") {
			t.Errorf("backup: exit code %d\n%s%s", code, out, errs)
		}
	}
	code, out, _ := call(t.Context(), env, "backup", file, "-o", "json")
	var summary struct{ File, Bytes, SHA256 string }
	if err := json.Unmarshal([]byte(out), &summary); code != exitOK || err != nil || summary.Bytes != fmt.Sprint(len(toStdout)) || summary.File != file || len(summary.SHA256) != 64 {
		t.Errorf("backup -o json: exit code %d, %v\n%s", code, err, out)
	}
	st, err := os.Stat(file)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("the backup has the mode %v, %v", st.Mode(), err)
	}
	data, err := os.ReadFile(file)
	if err != nil || string(data) != toStdout {
		t.Errorf("the file has %d bytes, the standard output got %d; %v", len(data), len(toStdout), err)
	}

	for _, stdin := range []string{"", toStdout} {
		from := file
		if stdin != "" {
			from = "-"
		}
		fresh := map[string]string{"OVERLAYD_SOCKET": serveCluster(t, apitest.NewCluster(now, apitest.ClusterContent{}))}
		code, out, errs = callWith(t.Context(), stdin, fresh, "restore", from)
		if want := fmt.Sprintf("The cluster c000000000000001 is as it was at index %s.\n", count(uint64(len(toStdout)))); code != exitOK || out != want || errs != "" {
			t.Errorf("restore %s: exit code %d\n%s%s", from, code, out, errs)
		}
	}

	none := map[string]string{"OVERLAYD_SOCKET": serveCluster(t, apitest.NewCluster(now, apitest.ClusterContent{}))}
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"backup", file}, "this node is in no cluster: make one with `overlayctl init`, or enter one with `overlayctl join`"},
		{[]string{"backup", "-"}, "this node is in no cluster: make one with `overlayctl init`, or enter one with `overlayctl join`"},
		{[]string{"backup", dir}, "write the backup: " + dir + " is not a regular file: choose another name, or - for the standard output"},
		{[]string{"backup", "/dev/null"}, "write the backup: /dev/null is not a regular file: choose another name, or - for the standard output"},
		{[]string{"restore", filepath.Join(dir, "none")}, "read the backup: open " + dir + "/none: no such file or directory"},
		{[]string{"restore", dir}, "read the backup: read " + dir + ": is a directory"},
		{[]string{"restore", "-"}, "chunk: the backup is empty; send what Backup gave"},
	} {
		code, out, errs := call(t.Context(), none, c.args...)
		if code != exitFailure || out != "" || errs != "overlayctl: "+c.want+"\n" {
			t.Errorf("%q: exit code %d\n%s%s", c.args, code, out, errs)
		}
	}
	if after, err := os.ReadFile(file); err != nil || string(after) != toStdout {
		t.Errorf("a backup that failed took the one that was there: %d bytes, %v", len(after), err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("something is left beside the backup: %v, %v", entries, err)
	}
}

func TestClusterCompletion(t *testing.T) {
	socket := serveCluster(t, apitest.NewCluster(now, cluster()))
	const (
		networks = "green\tVNI 4096, 10.43.0.0/24,2001:db8:43::/64\nred\tVNI 4097, 10.44.0.0/24\n:4\n"
		nodes    = "h1\tmanager, ready\nh2\tmanager, ready\nh3\tmanager, down\nh4\tworker, ready\n:4\n"
		roles    = "worker\nmanager\n:4\n"
	)
	for args, want := range map[string]string{
		"network inspect ":            networks,
		"network rm ":                 networks,
		"network rm green ":           ":4\n",
		"network create ":             ":4\n",
		"network create a --vni ":     ":4\n",
		"endpoint add ":               networks,
		"endpoint add green --netns ": "c1\nc2\n:4\n",
		"endpoint add green --ip ":    ":4\n",
		"endpoint ls ":                networks,
		"endpoint ls --node ":         nodes,
		"endpoint rm ":                networks,
		"endpoint rm green ":          "web\t10.43.0.2,2001:db8:43::2 on h1\n00000000000000e2\t10.43.0.3 on h3\n:4\n",
		"endpoint rm green web ":      ":4\n",
		"node inspect ":               nodes,
		"node promote ":               nodes,
		"node rm --force ":            nodes,
		"node drain h1 ":              ":4\n",
		"token show ":                 roles,
		"token rotate ":               roles,
		"token rotate worker ":        ":4\n",
		"join --token-file ":          ":0\n",
		"join ":                       ":4\n",
		"init --advertise ":           ":4\n",
		"cluster recover --data-dir ": ":16\n",
		"backup ":                     ":0\n",
		"node ls --output ":           "table\njson\n:4\n",
		"endpoint rm nowhere ":        ":1\n",
	} {
		_, out, _ := call(t.Context(), map[string]string{"OVERLAYD_SOCKET": socket}, append([]string{"__complete"}, strings.Split(args, " ")...)...)
		if out != want {
			t.Errorf("completion of %q: %q, want %q", args, out, want)
		}
	}
}
