package state

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/overlayd/overlayd/controlplane/api/overlayd/state/v1"
)

const cluster = "00000000000000c1"

// epoch is when the tests begin.
var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func at(seconds int) *timestamppb.Timestamp {
	return timestamppb.New(epoch.Add(time.Duration(seconds) * time.Second))
}

func id(n int) string { return fmt.Sprintf("%016x", n) }

// testNode is a sound node; different numbers share nothing.
func testNode(n int, role statev1.Role) *statev1.Node {
	return &statev1.Node{
		Id: id(n), Name: fmt.Sprintf("node-%d", n), Role: role, Availability: statev1.Availability_AVAILABILITY_ACTIVE,
		Addresses:   []string{fmt.Sprintf("192.0.2.%d", n), fmt.Sprintf("2001:db8::%x", n)},
		ControlPort: 7789, GossipPort: 7790, VxlanPort: 4789, PublicKey: fmt.Appendf(nil, "key-%d", n),
	}
}

func testSecrets() *statev1.Secrets {
	return &statev1.Secrets{
		CaCertificate: []byte("certificate"), CaKey: []byte("key of the CA"),
		WorkerToken: bytes.Repeat([]byte{1}, 16), ManagerToken: bytes.Repeat([]byte{2}, 16),
		GossipKeys: [][]byte{bytes.Repeat([]byte{3}, 32)},
	}
}

// withKind returns a command of a kind, which is one of the messages of the oneof.
func withKind(kind proto.Message) *statev1.Command {
	c := new(statev1.Command)
	m := c.ProtoReflect()
	fields := m.Descriptor().Oneofs().ByName("kind").Fields()
	for i := range fields.Len() {
		if f := fields.Get(i); f.Message().FullName() == kind.ProtoReflect().Descriptor().FullName() {
			m.Set(f, protoreflect.ValueOfMessage(kind.ProtoReflect()))
			return c
		}
	}
	panic("no such kind")
}

// entry is a command of a kind, complete and in wire form. What it draws on is made of the index.
func entry(index uint64, seconds int, kind proto.Message) []byte {
	c := withKind(kind)
	seed := sha256.Sum256(binary.BigEndian.AppendUint64(nil, index))
	c.Version, c.Time, c.Seed = 1, at(seconds), seed[:seedLen]
	return wire(c)
}

func wire(m proto.Message) []byte {
	b, err := proto.Marshal(m)
	if err != nil {
		panic(err)
	}
	return b
}

// world is a store with its log.
type world struct {
	t interface {
		Helper()
		Fatalf(string, ...any)
	}
	*Store
	at      uint64
	seconds int
	log     [][]byte
	batches []*statev1.Batch
}

// newWorld returns a cluster of a manager, 1, and a worker, 2.
func newWorld(t testing.TB) *world {
	w := &world{t: t, Store: NewStore()}
	w.must(&statev1.Bootstrap{ClusterId: cluster, Node: testNode(1, statev1.Role_ROLE_MANAGER), Secrets: testSecrets()})
	w.must(&statev1.AddNode{Node: testNode(2, statev1.Role_ROLE_WORKER)})
	return w
}

// do applies a command, which may be refused.
func (w *world) do(kind proto.Message) *statev1.Result {
	w.t.Helper()
	return w.apply(entry(w.at+1, w.seconds, kind))
}

func (w *world) apply(e []byte) *statev1.Result {
	w.t.Helper()
	w.at++
	res, batch, err := w.Apply(w.at, e)
	if err != nil {
		w.t.Fatalf("Apply: %v", err)
	}
	w.log = append(w.log, e)
	if batch != nil {
		w.batches = append(w.batches, batch)
	}
	return res
}

// must applies a command that is not refused.
func (w *world) must(kind proto.Message) *statev1.Result {
	w.t.Helper()
	res := w.do(kind)
	if res.Error != nil {
		w.t.Fatalf("%T was refused: %v", kind, res.Error)
	}
	return res
}

func (w *world) network(name string, subnets ...string) *statev1.Network {
	w.t.Helper()
	return w.must(&statev1.CreateNetwork{Name: name, Subnets: subnets}).Network
}

func (w *world) endpoint(network *statev1.Network, name string) *statev1.Endpoint {
	w.t.Helper()
	return w.must(&statev1.AddEndpoint{Network: network.Id, Node: id(2), Name: name}).Endpoint
}

func snapshotOf(t testing.TB, f *Frozen) []byte {
	t.Helper()
	var b bytes.Buffer
	n, err := f.WriteTo(&b)
	if err != nil || n != int64(b.Len()) {
		t.Fatalf("WriteTo = %d, %v with %d bytes written", n, err, b.Len())
	}
	return b.Bytes()
}

func copyOf(t testing.TB, r *Replica) []byte {
	t.Helper()
	var b bytes.Buffer
	if _, err := r.WriteTo(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// partsOf splits a snapshot.
func partsOf(t testing.TB, b []byte) []*statev1.Snapshot {
	t.Helper()
	var out []*statev1.Snapshot
	for len(b) > 0 {
		size, n := binary.Uvarint(b)
		m := new(statev1.Snapshot)
		if err := proto.Unmarshal(b[n:n+int(size)], m); err != nil {
			t.Fatal(err)
		}
		out = append(out, m)
		b = b[n+int(size):]
	}
	return out
}

// contentOf is a snapshot of the store without what a refusal may change: the indexes of the header, the requests, and
// with them the trailer.
func contentOf(t testing.TB, s *Store) string {
	t.Helper()
	var b []byte
	for _, m := range partsOf(t, snapshotOf(t, s.Snapshot())) {
		switch {
		case m.GetHeader() != nil:
			m.GetHeader().Index = 0
		case m.GetRequest() != nil, m.GetTrailer() != nil:
			continue
		}
		b, _ = appendPart(b, m)
	}
	return string(b)
}

// joined puts parts together as a snapshot, with a trailer that is right.
func joined(parts ...*statev1.Snapshot) []byte {
	var b []byte
	for _, m := range parts {
		b, _ = appendPart(b, m)
	}
	sum := sha256.New()
	sum.Write(b)
	b, _ = appendPart(b, trailer(uint64(len(parts)-1), sum))
	return b
}
