package state

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/iotest"

	"google.golang.org/protobuf/proto"

	"github.com/overlayd/overlayd/controlplane/api/overlayd/state/v1"
)

// smallWorld has at least one part of each kind in its snapshots, and little more.
func smallWorld(t testing.TB) *world {
	w := newWorld(t)
	blue := w.must(&statev1.CreateNetwork{Name: "blue", Subnets: []string{"10.42.0.0/24", "2001:db8:42::/64"}, Gateways: []string{"10.42.0.1", ""}}).Network
	w.must(&statev1.AddEndpoint{Network: blue.Id, Node: id(2), Name: "web", LeaseEnd: at(9)})
	w.endpoint(blue, "")
	c := withKind(&statev1.CollectLeases{})
	c.Version, c.Time, c.Seed, c.RequestId = 1, at(0), make([]byte, seedLen), "request"
	w.apply(wire(c))
	return w
}

func TestSnapshotParts(t *testing.T) {
	w := smallWorld(t)
	kinds := func(f *Frozen) string {
		var out []string
		for _, m := range partsOf(t, snapshotOf(t, f)) {
			field := m.ProtoReflect().WhichOneof(m.ProtoReflect().Descriptor().Oneofs().ByName("part"))
			out = append(out, string(field.Name()))
		}
		return strings.Join(out, " ")
	}
	if got := kinds(w.Snapshot()); got != "header cursors secrets node node network pool endpoint endpoint request trailer" {
		t.Error(got)
	}
	if got := kinds(w.PublicSnapshot()); got != "header node node network endpoint endpoint trailer" {
		t.Error(got)
	}
	full, public := partsOf(t, snapshotOf(t, w.Snapshot())), partsOf(t, snapshotOf(t, w.PublicSnapshot()))
	if h := full[0].GetHeader(); h.Version != RulesVersion || h.ClusterId != cluster || h.Index != 6 || h.Previous != 5 {
		t.Errorf("%v", h)
	}
	if h := public[0].GetHeader(); h.Version != RulesVersion || h.ClusterId != cluster || h.Index != 5 || h.Previous != 5 {
		t.Errorf("%v", h)
	}
	b := snapshotOf(t, w.PublicSnapshot())
	for _, secret := range [][]byte{testSecrets().CaKey, testSecrets().WorkerToken, testSecrets().ManagerToken, testSecrets().GossipKeys[0]} {
		if bytes.Contains(b, secret) {
			t.Errorf("a public snapshot has the secret %x", secret)
		}
	}
}

// TestDamagedSnapshots changes, cuts and extends snapshots at every offset. The reader refuses all of them.
func TestDamagedSnapshots(t *testing.T) {
	w := smallWorld(t)
	kept := smallWorld(t)
	kept.network("kept")
	keptBefore := snapshotOf(t, kept.Snapshot())
	r := NewReplica()
	if _, err := r.Load(bytes.NewReader(snapshotOf(t, kept.PublicSnapshot()))); err != nil {
		t.Fatal(err)
	}
	copyBefore := copyOf(t, r)

	for _, c := range []struct {
		name   string
		whole  []byte
		read   func(io.Reader) error
		intact func() bool
	}{
		{"Restore", snapshotOf(t, w.Snapshot()), kept.Restore, func() bool { return bytes.Equal(snapshotOf(t, kept.Snapshot()), keptBefore) }},
		{"Load", snapshotOf(t, w.PublicSnapshot()), func(in io.Reader) error { _, err := r.Load(in); return err }, func() bool { return bytes.Equal(copyOf(t, r), copyBefore) }},
	} {
		refused := func(what string, at int, b []byte) {
			t.Helper()
			err := c.read(bytes.NewReader(b))
			if !errors.Is(err, ErrDamaged) {
				t.Errorf("%s, %s at %d: %v", c.name, what, at, err)
			}
		}
		for i := range c.whole {
			refused("cut", i, c.whole[:i])
			for _, flip := range []byte{1, 0xff} {
				b := bytes.Clone(c.whole)
				b[i] ^= flip
				refused("flipped", i, b)
			}
			refused("one byte missing", i, slices.Delete(bytes.Clone(c.whole), i, i+1))
			refused("one byte more", i, slices.Insert(bytes.Clone(c.whole), i, 0))
			if i%16 == 0 && !c.intact() {
				t.Fatalf("%s, at %d: something changed", c.name, i)
			}
		}
		refused("more behind it", len(c.whole), append(bytes.Clone(c.whole), 0))
		refused("twice", len(c.whole), append(bytes.Clone(c.whole), c.whole...))
		for _, length := range [][]byte{{0x81, 0x80, 0x40}, {0xff, 0xff, 0xff, 0xff, 0x0f}, bytes.Repeat([]byte{0xff}, 20), bytes.Repeat([]byte{0x80}, 20)} {
			// They are refused for what they say, before memory is taken for it.
			if err := c.read(bytes.NewReader(length)); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "larger than any") {
				t.Errorf("%s of a part with the length %x: %v", c.name, length, err)
			}
		}

		if !c.intact() {
			t.Fatalf("%s: something changed", c.name)
		}

		broken := errors.New("broken disk")
		if err := c.read(io.MultiReader(bytes.NewReader(c.whole[:50]), iotest.ErrReader(broken))); !errors.Is(err, broken) || errors.Is(err, ErrDamaged) {
			t.Errorf("%s of a broken disk: %v", c.name, err)
		}
		if err := c.read(iotest.OneByteReader(bytes.NewReader(c.whole))); err != nil {
			t.Errorf("%s, byte by byte: %v", c.name, err)
		}
	}
}

// TestNewerSnapshots are told from damaged ones, although parts of them are of unknown kinds.
func TestNewerSnapshots(t *testing.T) {
	w := smallWorld(t)
	parts := partsOf(t, snapshotOf(t, w.Snapshot()))
	parts = parts[:len(parts)-1]
	parts[0].GetHeader().Version = 9
	unknown := new(statev1.Snapshot)
	unknown.ProtoReflect().SetUnknown([]byte{0xca, 0x3e, 1, 'x'})
	b := joined(append(parts, unknown)...)
	err := NewStore().Restore(bytes.NewReader(b))
	if v, ok := errors.AsType[*VersionError](err); !ok || v.Needs != 9 || !strings.Contains(err.Error(), "upgrade overlayd") {
		t.Errorf("%v", err)
	}
	for i := range b {
		b[i] ^= 0x20
		if err := NewStore().Restore(bytes.NewReader(b)); !errors.Is(err, ErrDamaged) {
			t.Errorf("damaged at %d: %v", i, err)
		}
		b[i] ^= 0x20
		if err := NewStore().Restore(bytes.NewReader(b[:i])); !errors.Is(err, ErrDamaged) {
			t.Errorf("cut at %d: %v", i, err)
		}
	}
}

// TestSenselessSnapshots have a checksum that is right, and something in them that cannot be.
func TestSenselessSnapshots(t *testing.T) {
	w := smallWorld(t)
	// header 0, cursors 1, secrets 2, nodes 3 and 4, network 5, pool 6, endpoints 7 and 8, request 9
	for name, change := range map[string]func(p []*statev1.Snapshot) []*statev1.Snapshot{
		"no header":               func(p []*statev1.Snapshot) []*statev1.Snapshot { return p[1:] },
		"two headers":             func(p []*statev1.Snapshot) []*statev1.Snapshot { return slices.Insert(p, 0, p[0]) },
		"header later":            func(p []*statev1.Snapshot) []*statev1.Snapshot { return append(p, p[0]) },
		"two trailers":            func(p []*statev1.Snapshot) []*statev1.Snapshot { return append(p, trailer(1, nilHash{})) },
		"empty part":              func(p []*statev1.Snapshot) []*statev1.Snapshot { return append(p, &statev1.Snapshot{}) },
		"no version":              func(p []*statev1.Snapshot) []*statev1.Snapshot { p[0].GetHeader().Version = 0; return p },
		"no cluster":              func(p []*statev1.Snapshot) []*statev1.Snapshot { p[0].GetHeader().ClusterId = ""; return p },
		"malformed cluster":       func(p []*statev1.Snapshot) []*statev1.Snapshot { p[0].GetHeader().ClusterId = "x"; return p },
		"previous behind index":   func(p []*statev1.Snapshot) []*statev1.Snapshot { p[0].GetHeader().Previous = 99; return p },
		"records of the future":   func(p []*statev1.Snapshot) []*statev1.Snapshot { p[0].GetHeader().Previous = 4; return p },
		"secrets of the future":   func(p []*statev1.Snapshot) []*statev1.Snapshot { p[2].GetSecrets().Index = 7; return p },
		"secrets twice":           func(p []*statev1.Snapshot) []*statev1.Snapshot { return slices.Insert(p, 2, p[2]) },
		"no secrets":              func(p []*statev1.Snapshot) []*statev1.Snapshot { return slices.Delete(p, 2, 3) },
		"secrets of nothing":      func(p []*statev1.Snapshot) []*statev1.Snapshot { p[2].GetSecrets().CaKey = nil; return p },
		"VNI cursor":              func(p []*statev1.Snapshot) []*statev1.Snapshot { p[1].GetCursors().NextVni = 4095; return p },
		"subnet cursor":           func(p []*statev1.Snapshot) []*statev1.Snapshot { p[1].GetCursors().NextSubnet = 1<<16 + 1; return p },
		"nodes out of order":      func(p []*statev1.Snapshot) []*statev1.Snapshot { p[3], p[4] = p[4], p[3]; return p },
		"node twice":              func(p []*statev1.Snapshot) []*statev1.Snapshot { return slices.Insert(p, 3, p[3]) },
		"node malformed":          func(p []*statev1.Snapshot) []*statev1.Snapshot { p[3].GetNode().VxlanPort = 0; return p },
		"node without a date":     func(p []*statev1.Snapshot) []*statev1.Snapshot { p[3].GetNode().Joined = nil; return p },
		"node names alike":        func(p []*statev1.Snapshot) []*statev1.Snapshot { p[3].GetNode().Name = "node-2"; return p },
		"no manager":              func(p []*statev1.Snapshot) []*statev1.Snapshot { p[3].GetNode().Role = worker; return p },
		"no node":                 func(p []*statev1.Snapshot) []*statev1.Snapshot { return slices.Delete(p, 4, 5) },
		"network malformed":       func(p []*statev1.Snapshot) []*statev1.Snapshot { p[5].GetNetwork().Vni = 0; return p },
		"network without subnets": func(p []*statev1.Snapshot) []*statev1.Snapshot { p[5].GetNetwork().Subnets = nil; return p },
		"network over a node":     func(p []*statev1.Snapshot) []*statev1.Snapshot { p[3].GetNode().Addresses[0] = "10.42.0.7"; return p },
		"no network":              func(p []*statev1.Snapshot) []*statev1.Snapshot { return slices.Delete(p, 5, 7) },
		"no pool":                 func(p []*statev1.Snapshot) []*statev1.Snapshot { return slices.Delete(p, 6, 7) },
		"pool of another":         func(p []*statev1.Snapshot) []*statev1.Snapshot { p[6].GetPool().Network = id(5); return p },
		"pool too short":          func(p []*statev1.Snapshot) []*statev1.Snapshot { p[6].GetPool().Next = []uint64{1}; return p },
		"pool out of range":       func(p []*statev1.Snapshot) []*statev1.Snapshot { p[6].GetPool().Next[0] = 256; return p },
		"pool of derived ones":    func(p []*statev1.Snapshot) []*statev1.Snapshot { p[6].GetPool().Next[1] = 1; return p },
		"endpoint IP taken": func(p []*statev1.Snapshot) []*statev1.Snapshot {
			p[7].GetEndpoint().Ips = p[8].GetEndpoint().Ips
			return p
		},
		"endpoint IP missing":  func(p []*statev1.Snapshot) []*statev1.Snapshot { e := p[7].GetEndpoint(); e.Ips = e.Ips[:1]; return p },
		"endpoint IP reserved": func(p []*statev1.Snapshot) []*statev1.Snapshot { p[7].GetEndpoint().Ips[0] = "10.42.0.1"; return p },
		"endpoint MAC taken": func(p []*statev1.Snapshot) []*statev1.Snapshot {
			p[7].GetEndpoint().Mac = p[8].GetEndpoint().Mac
			return p
		},
		"endpoint of no node":    func(p []*statev1.Snapshot) []*statev1.Snapshot { p[7].GetEndpoint().Node = id(5); return p },
		"endpoint before all":    func(p []*statev1.Snapshot) []*statev1.Snapshot { p[7].GetEndpoint().Generation = 0; return p },
		"endpoints out of order": func(p []*statev1.Snapshot) []*statev1.Snapshot { p[7], p[8] = p[8], p[7]; return p },
		"node behind networks":   func(p []*statev1.Snapshot) []*statev1.Snapshot { p[4], p[5], p[6] = p[5], p[6], p[4]; return p },
		"endpoint before nodes":  func(p []*statev1.Snapshot) []*statev1.Snapshot { return slices.Insert(p, 3, p[7]) },
		"request without ID":     func(p []*statev1.Snapshot) []*statev1.Snapshot { p[9].GetRequest().RequestId = ""; return p },
		"request without result": func(p []*statev1.Snapshot) []*statev1.Snapshot { p[9].GetRequest().Result = nil; return p },
		"request twice":          func(p []*statev1.Snapshot) []*statev1.Snapshot { return append(p, p[9]) },
	} {
		parts := partsOf(t, snapshotOf(t, w.Snapshot()))
		s := NewStore()
		if err := s.Restore(bytes.NewReader(joined(change(parts[:len(parts)-1])...))); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %v", name, err)
		}
		if s.ClusterID() != "" || len(s.Nodes()) > 0 {
			t.Errorf("%s: something changed", name)
		}
	}
	parts := partsOf(t, snapshotOf(t, w.Snapshot()))
	if err := NewStore().Restore(bytes.NewReader(joined(parts[:len(parts)-1]...))); err != nil {
		t.Error("unchanged:", err)
	}
}

// nilHash is the checksum of nothing in particular.
type nilHash struct{ hashOfNothing }

type hashOfNothing interface {
	io.Writer
	Reset()
	Size() int
	BlockSize() int
}

func (nilHash) Sum(b []byte) []byte { return append(b, make([]byte, 32)...) }

// TestSnapshotsStayApart: a whole snapshot gives no copy its secrets, and a public one makes no manager.
func TestSnapshotsStayApart(t *testing.T) {
	w := smallWorld(t)
	if _, err := NewReplica().Load(bytes.NewReader(snapshotOf(t, w.Snapshot()))); err == nil || !strings.Contains(err.Error(), "managers only") {
		t.Errorf("Load of a whole snapshot: %v", err)
	}
	if err := NewStore().Restore(bytes.NewReader(snapshotOf(t, w.PublicSnapshot()))); err == nil || !strings.Contains(err.Error(), "public") {
		t.Errorf("Restore of a public snapshot: %v", err)
	}
}

// TestFrozen: what is applied later does not show, and a released one says so.
func TestFrozen(t *testing.T) {
	w := smallWorld(t)
	f := w.Snapshot()
	before := snapshotOf(t, w.Snapshot())
	blue := w.NetworkByName("blue")
	for range 200 {
		w.endpoint(blue, "")
	}
	w.must(&statev1.RemoveNode{Id: id(2), Force: true})
	w.must(&statev1.RemoveNetwork{Id: blue.Id})
	w.must(&statev1.SetSecrets{Secrets: &statev1.Secrets{WorkerToken: bytes.Repeat([]byte{9}, 16)}})
	for range 2 { // it can be written more than once
		if !bytes.Equal(snapshotOf(t, f), before) {
			t.Error("a snapshot that was taken changed")
		}
	}
	full := errors.New("disk full")
	for _, room := range []int64{0, 10, int64(len(before)) - 1} {
		if n, err := f.WriteTo(&limited{room, full}); !errors.Is(err, full) || n != room {
			t.Errorf("with room for %d: %d, %v", room, n, err)
		}
	}
	f.Release()
	if _, err := f.WriteTo(io.Discard); err == nil || !strings.Contains(err.Error(), "released") {
		t.Error(err)
	}
}

// limited is a writer with little room.
type limited struct {
	room int64
	full error
}

func (l *limited) Write(b []byte) (int, error) {
	n := min(int64(len(b)), l.room)
	l.room -= n
	if int(n) < len(b) {
		return int(n), l.full
	}
	return len(b), nil
}

// TestRestoreGoesOn: a store that is restored allocates what the old one would have.
func TestRestoreGoesOn(t *testing.T) {
	w := smallWorld(t)
	blue := w.NetworkByName("blue")
	w.must(&statev1.RemoveEndpoint{Id: w.endpoint(blue, "").Id})
	w.must(&statev1.RemoveNetwork{Id: w.network("gone").Id})
	other := &world{t: t, Store: NewStore(), at: w.at}
	if err := other.Restore(bytes.NewReader(snapshotOf(t, w.Snapshot()))); err != nil {
		t.Fatal(err)
	}
	for _, c := range []proto.Message{
		&statev1.AddEndpoint{Network: blue.Id, Node: id(2)}, &statev1.CreateNetwork{Name: "next"}, &statev1.CollectLeases{},
	} {
		if a, b := w.must(c), other.must(c); !proto.Equal(a, b) {
			t.Errorf("%v\nand restored %v", a, b)
		}
	}
	if _, _, err := other.Apply(other.at, entry(other.at, 0, &statev1.CollectLeases{})); err == nil {
		t.Error("an index is applied twice after a restore")
	}
}

// TestReadersBesideApply has readers of all kinds run beside one that applies. It is for the race detector; that each
// snapshot is sound is checked by loading it.
func TestReadersBesideApply(t *testing.T) {
	w := newWorld(t)
	blue := w.network("blue", "10.0.0.0/16")
	r := NewReplica()
	for _, b := range w.batches {
		if _, err := r.Apply(b); err != nil {
			t.Fatal(err)
		}
	}
	done := make(chan struct{})
	var readers sync.WaitGroup
	for range 2 {
		readers.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				for _, f := range []*Frozen{w.Snapshot(), w.PublicSnapshot()} {
					var b bytes.Buffer
					if _, err := f.WriteTo(&b); err != nil {
						t.Error(err)
					}
					if f.cursors == nil {
						if _, err := NewReplica().Load(&b); err != nil {
							t.Error(err)
						}
					} else if err := NewStore().Restore(&b); err != nil {
						t.Error(err)
					}
				}
				for _, x := range []*Tables{&w.Tables, &r.Tables} {
					x.Endpoints("", id(2))
					x.Networks()
					x.Nodes()
					x.EndpointByName(blue.Id, "x")
					x.Digest()
				}
				w.Since(w.Index() - 1)
				w.Leases()
				w.Secrets()
				if _, err := r.WriteTo(io.Discard); err != nil {
					t.Error(err)
				}
			}
		})
	}
	var last *statev1.Endpoint
	for i := range 400 {
		e := w.endpoint(blue, "")
		if i%3 == 0 && last != nil {
			w.must(&statev1.RemoveEndpoint{Id: last.Id})
		}
		w.must(&statev1.MoveEndpoint{Id: e.Id, Node: id(1)})
		last = e
		missing, ok := w.Since(r.Index())
		if !ok {
			t.Fatal("the ring lost batches")
		}
		for _, b := range missing {
			if ok, err := r.Apply(b); !ok || err != nil {
				t.Fatal(err)
			}
		}
	}
	close(done)
	readers.Wait()
	if !bytes.Equal(copyOf(t, r), snapshotOf(t, w.PublicSnapshot())) {
		t.Error("the copy differs")
	}
}
