package main

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/overlayd/overlayd/cmd/overlayd/config"
	"github.com/overlayd/overlayd/cmd/overlayd/metrics"
	"github.com/overlayd/overlayd/dataplane/checksum"
	"github.com/overlayd/overlayd/dataplane/forward"
	"github.com/overlayd/overlayd/dataplane/frame"
	"github.com/overlayd/overlayd/dataplane/header"
	"github.com/overlayd/overlayd/vtep"
	"github.com/overlayd/overlayd/vtep/pathmtu"
)

// root is the top of the repository.
const root = "../.."

func readDoc(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// rows returns the rows of all tables in text whose first heading is title, cell by cell.
func rows(text, title string) [][]string {
	var out [][]string
	inside := false
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if !strings.HasPrefix(line, "|") {
			inside = false
			continue
		}
		cells := strings.Split(strings.Trim(line, "|"), "|")
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		switch {
		case inside && !strings.HasPrefix(cells[0], "---"):
			out = append(out, cells)
		case cells[0] == title:
			inside = true
		}
	}
	return out
}

// sameRows compares the rows of a document with those that the code asks for.
func sameRows(t *testing.T, doc string, got [][]string, want []string) {
	t.Helper()
	var have []string
	for _, cells := range got {
		have = append(have, "| "+strings.Join(cells, " | ")+" |")
	}
	for _, w := range want {
		if !slices.Contains(have, w) {
			t.Errorf("%s lacks the row\n%s", doc, w)
		}
	}
	for _, h := range have {
		if !slices.Contains(want, h) {
			t.Errorf("%s has a row that the code does not know, or not so:\n%s", doc, h)
		}
	}
	if !t.Failed() && !slices.Equal(have, want) {
		t.Errorf("%s has the rows in another order than\n%s", doc, strings.Join(want, "\n"))
	}
}

// firstCells compares the names in the first column of a table with those that the code has.
func firstCells(t *testing.T, doc string, got [][]string, want []string) {
	t.Helper()
	var have []string
	for _, cells := range got {
		have = append(have, strings.Trim(cells[0], "`"))
		for i, c := range cells {
			if c == "" && i != 1 { // the default may be nothing
				t.Errorf("%s: a cell of the row %s is empty", doc, cells[0])
			}
		}
	}
	if !slices.Equal(have, want) {
		t.Errorf("%s describes\n%q,\nthe code has\n%q", doc, have, want)
	}
}

func TestDocsDropReasons(t *testing.T) {
	var want []string
	for r := forward.NotDropped + 1; r < forward.NumReasons; r++ {
		want = append(want, fmt.Sprintf("| `%s` | %s |", r, r.Help()))
	}
	sameRows(t, "docs/operations.md", rows(readDoc(t, "docs/operations.md"), "reason"), want)
}

func TestDocsFeatures(t *testing.T) {
	firstCells(t, "docs/configuration.md", rows(readDoc(t, "docs/configuration.md"), "feature"), vtep.FeatureNames())
}

// scraped is a source of metrics that has one of everything.
type scraped struct{}

func (scraped) Status() vtep.Status {
	return vtep.Status{Features: []vtep.Feature{{Name: "udp-gso", On: true}}}
}
func (scraped) Networks() []vtep.NetworkStatus { return []vtep.NetworkStatus{{Name: "blue", VNI: 42}} }
func (scraped) Peers() []vtep.PeerStatus {
	return []vtep.PeerStatus{{Address: netip.MustParseAddr("192.0.2.2"), UnderlayMTU: 1500, OverlayMTU: 1450}}
}
func (scraped) Paths() []vtep.PathStatus {
	a := netip.MustParseAddr("192.0.2.2")
	return []vtep.PathStatus{{Peer: a, PathMTU: 1500, Candidates: []vtep.CandidateStatus{{Remote: a, RTT: time.Millisecond}}}}
}
func (scraped) ProbeCounters() pathmtu.Counters { return pathmtu.Counters{} }

func TestDocsMetrics(t *testing.T) {
	reg, err := metrics.NewRegistry(scraped{}, metrics.Build{})
	if err != nil {
		t.Fatal(err)
	}
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for _, f := range families {
		if !strings.HasPrefix(f.GetName(), "overlayd_") {
			continue
		}
		var labels []string
		for _, l := range f.GetMetric()[0].GetLabel() {
			labels = append(labels, "`"+l.GetName()+"`")
		}
		row := []string{"`" + f.GetName() + "`", strings.Join(labels, ", "), f.GetHelp()}
		want = append(want, "| "+strings.Join(row, " | ")+" |")
	}
	sameRows(t, "docs/operations.md", rows(readDoc(t, "docs/operations.md"), "metric"), want)
}

// configKeys lists the leaves and groups below a struct of the configuration, as the documents call them.
func configKeys(typ reflect.Type, prefix string) []string {
	var own, below []string
	for i := range typ.NumField() {
		f := typ.Field(i)
		key, _, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		if key == "" {
			continue
		}
		own = append(own, prefix+key)
		inner, path := f.Type, prefix+key+"."
		if inner.Kind() == reflect.Slice {
			inner, path = inner.Elem(), prefix+key+"[]."
		}
		if inner.Kind() == reflect.Struct && inner.PkgPath() == typ.PkgPath() {
			below = append(below, configKeys(inner, path)...)
		}
	}
	return append(own, below...)
}

func TestDocsConfigKeys(t *testing.T) {
	firstCells(t, "docs/configuration.md", rows(readDoc(t, "docs/configuration.md"), "key"),
		configKeys(reflect.TypeFor[config.Config](), ""))
}

// flagUsage is one flag of the help text, with its default if that is not empty.
var flagUsage = regexp.MustCompile(`(?m)^ +(?:-\w, +)?--([\w-]+)(?:.*\(default "(.*)"\)$)?`)

func TestDocsFlags(t *testing.T) {
	cmd := newCommand(system{facts: func() (config.Facts, error) { return config.Facts{}, nil }})
	cmd.InitDefaultHelpFlag()
	cmd.InitDefaultVersionFlag()
	var want, have []string
	for _, m := range flagUsage.FindAllStringSubmatch(cmd.Flags().FlagUsages(), -1) {
		want = append(want, "--"+m[1]+" "+m[2])
	}
	for _, cells := range rows(readDoc(t, "docs/configuration.md"), "flag") {
		have = append(have, strings.Trim(cells[0], "`")+" "+strings.Trim(cells[1], "`"))
	}
	slices.Sort(want)
	slices.Sort(have)
	if len(want) < 5 || !slices.Equal(have, want) {
		t.Errorf("docs/configuration.md describes\n%q,\nthe program has\n%q", have, want)
	}
}

// documents are the files for people.
func documents(t *testing.T) []string {
	t.Helper()
	out := []string{"README.md", "CHANGELOG.md", "CONTRIBUTING.md"}
	err := filepath.WalkDir(filepath.Join(root, "docs"), func(path string, d fs.DirEntry, err error) error {
		if err == nil && filepath.Ext(path) == ".md" {
			rel, _ := filepath.Rel(root, path) // both begin with root
			out = append(out, rel)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

var (
	yamlBlock      = regexp.MustCompile("(?ms)^```yaml\n(.*?)^```")
	localAddresses = regexp.MustCompile(`(?m)^ *addresses: \[(.*?)\]`)
)

// TestDocsExamples loads every configuration that the documents show.
func TestDocsExamples(t *testing.T) {
	n := 0
	for _, doc := range documents(t) {
		for _, m := range yamlBlock.FindAllStringSubmatch(readDoc(t, doc), -1) {
			n++
			var local []netip.Addr
			if a := localAddresses.FindStringSubmatch(m[1]); a != nil {
				for s := range strings.SplitSeq(a[1], ",") {
					local = append(local, netip.MustParseAddr(strings.Trim(s, ` "`)))
				}
			}
			file := filepath.Join(t.TempDir(), "overlayd.yaml")
			if err := os.WriteFile(file, []byte(m[1]), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := config.Load(file, nil, config.Facts{
				Hostname: "h1", Features: vtep.FeatureNames(),
				HasAddress: func(a netip.Addr) (string, bool) { return "eth0", slices.Contains(local, a) },
			})
			if err != nil {
				t.Errorf("%s: %v, in\n%s", doc, err, m[1])
			}
		}
	}
	if n < 3 {
		t.Errorf("only %d examples were found", n)
	}
}

var (
	mdLink  = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	heading = regexp.MustCompile(`(?m)^#+ (.*)$`)
	noSlug  = regexp.MustCompile(`[^\p{L}\p{N} _-]`)
)

// anchors are the names under which the headings of a document can be linked to.
func anchors(text string) []string {
	var out []string
	for _, m := range heading.FindAllStringSubmatch(text, -1) {
		slug := noSlug.ReplaceAllString(strings.ToLower(m[1]), "")
		out = append(out, strings.ReplaceAll(slug, " ", "-"))
	}
	return out
}

// TestDocsLinks follows every link to a file of the repository, and into it.
func TestDocsLinks(t *testing.T) {
	for _, doc := range documents(t) {
		text := readDoc(t, doc)
		for _, m := range mdLink.FindAllStringSubmatch(text, -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			path, anchor, _ := strings.Cut(m[1], "#")
			target := doc
			if path != "" {
				target = filepath.Join(filepath.Dir(doc), path)
			}
			if _, err := os.Stat(filepath.Join(root, target)); err != nil {
				t.Errorf("%s links to %s: %v", doc, m[1], err)
				continue
			}
			if anchor != "" && !slices.Contains(anchors(readDoc(t, target)), anchor) {
				t.Errorf("%s links to %s: %s has no such heading", doc, m[1], target)
			}
		}
	}
}

var (
	codePath = regexp.MustCompile("`((?:cmd|dataplane|vtep|bench|controlplane|docs|\\.ci)/[\\w./-]*\\w)`")
	codeFunc = regexp.MustCompile("`([\\w/]+/\\w+\\.go)`\\s+`([\\w.]+)`")
)

// TestDocsCode looks up every file and function that the documents send their reader to.
func TestDocsCode(t *testing.T) {
	funcs := make(map[string][]string)
	for _, doc := range documents(t) {
		text := readDoc(t, doc)
		for _, m := range codePath.FindAllStringSubmatch(text, -1) {
			if strings.HasSuffix(m[1], "...") {
				continue
			}
			if _, err := os.Stat(filepath.Join(root, m[1])); errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%s speaks of %s, which is not there", doc, m[1])
			}
		}
		for _, m := range codeFunc.FindAllStringSubmatch(text, -1) {
			if funcs[m[1]] == nil {
				funcs[m[1]] = declared(t, m[1])
			}
			if !slices.Contains(funcs[m[1]], m[2]) {
				t.Errorf("%s speaks of %s in %s, which is not declared there", doc, m[2], m[1])
			}
		}
	}
	if len(funcs) < 10 {
		t.Errorf("functions of only %d files were found in the documents", len(funcs))
	}
}

// declared lists the functions of a file, methods as Type.Method.
func declared(t *testing.T, file string) []string {
	t.Helper()
	parsed, err := parser.ParseFile(token.NewFileSet(), filepath.Join(root, file), nil, parser.SkipObjectResolution)
	if err != nil {
		t.Error(err)
		return []string{""}
	}
	var out []string
	for _, d := range parsed.Decls {
		f, ok := d.(*ast.FuncDecl)
		if !ok {
			continue
		}
		name := f.Name.Name
		if f.Recv != nil {
			typ := f.Recv.List[0].Type
			if star, ok := typ.(*ast.StarExpr); ok {
				typ = star.X
			}
			if id, ok := typ.(*ast.Ident); ok {
				name = id.Name + "." + name
			}
		}
		out = append(out, name)
	}
	return out
}

// TestDatagram verifies the datagram that docs/packet-walk.md shows.
func TestDatagram(t *testing.T) {
	var b []byte
	for _, cells := range rows(readDoc(t, "docs/packet-walk.md"), "offset") {
		if cells[0] == "" {
			continue // the heading of a layer
		}
		if off, err := strconv.Atoi(cells[0]); err != nil || off != len(b) {
			t.Errorf("the row %q begins at %d", cells, len(b))
		}
		part, err := hex.DecodeString(strings.ReplaceAll(strings.Trim(cells[1], "`"), " ", ""))
		if err != nil {
			t.Fatal(err)
		}
		b = append(b, part...)
	}
	const (
		outerIP  = header.EthernetLen
		outerUDP = outerIP + header.IPv4MinLen
		vxlan    = outerUDP + header.UDPLen
		inner    = vxlan + header.VXLANLen
	)
	if len(b) != 148 {
		t.Fatalf("%d bytes, want 148", len(b))
	}
	var p frame.Parsed
	if fault := p.Parse(b); fault != frame.Sound || p.End != len(b) || p.Proto != header.ProtoUDP {
		t.Errorf("the outer packet: fault %d, %+v", fault, p)
	}
	udp := b[outerUDP:]
	pseudo := checksum.PseudoIPv4(b[outerIP+12:outerIP+16], b[outerIP+16:outerIP+20], header.ProtoUDP, len(udp))
	if checksum.Fold(checksum.Sum(udp, pseudo)) != 0xffff {
		t.Error("the outer UDP checksum is wrong")
	}
	if port := binary.BigEndian.Uint16(udp[2:]); port != header.VXLANPort {
		t.Errorf("destination port %d", port)
	}
	if v := header.VXLAN(b[vxlan:]); !v.ValidVNI() || v.VNI() != 42 {
		t.Errorf("VXLAN header % x", b[vxlan:inner])
	}
	if fault := p.Parse(b[inner:]); fault != frame.Sound || p.End != len(b)-inner || p.Proto != header.ProtoICMP {
		t.Errorf("the frame: fault %d, %+v", fault, p)
	}
	if checksum.Checksum(b[inner+int(p.L4Off):]) != 0 {
		t.Error("the ICMP checksum is wrong")
	}
}
