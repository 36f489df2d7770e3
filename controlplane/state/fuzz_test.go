package state

import (
	"bytes"
	"errors"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/overlayd/overlayd/controlplane/api/overlayd/state/v1"
)

// FuzzApply applies two entries of any bytes to a small cluster. Whatever comes, a refusal and an error leave no trace,
// two stores agree, and a copy can follow.
func FuzzApply(f *testing.F) {
	w := smallWorld(f)
	blue := w.NetworkByName("blue")
	web := w.EndpointByName(blue.Id, "web")
	for _, c := range []proto.Message{
		&statev1.AddNode{Node: testNode(3, manager)}, &statev1.UpdateNode{Id: id(2), Role: manager, Addresses: []string{"192.0.2.7"}, Name: "x"},
		&statev1.RemoveNode{Id: id(2), Force: true}, &statev1.CreateNetwork{Name: "red"},
		&statev1.CreateNetwork{Name: "red", Vni: 9, Subnets: []string{"10.1.0.0/30", "2001:db8:1::/126"}, Gateways: []string{"10.1.0.1", ""}, Mtu: 1400},
		&statev1.RemoveNetwork{Id: blue.Id}, &statev1.AddEndpoint{Network: blue.Id, Node: id(1), Ips: []string{"10.42.0.9"}, Mac: []byte{2, 0, 0, 0, 0, 9}, LeaseEnd: at(9)},
		&statev1.ConfirmEndpoint{Id: web.Id, Node: id(2)}, &statev1.MoveEndpoint{Id: web.Id, Node: id(1), Generation: 1},
		&statev1.RemoveEndpoint{Id: web.Id}, &statev1.CollectLeases{}, &statev1.SetSecrets{Secrets: testSecrets()},
	} {
		f.Add(entry(w.at+1, 100, c), entry(w.at+2, 100, c))
	}
	snapshot, public := snapshotOf(f, w.Snapshot()), snapshotOf(f, w.PublicSnapshot())
	f.Fuzz(func(t *testing.T, first, second []byte) {
		s, twin, r := NewStore(), NewStore(), NewReplica()
		if err := errors.Join(s.Restore(bytes.NewReader(snapshot)), twin.Restore(bytes.NewReader(snapshot))); err != nil {
			t.Fatal(err)
		}
		if _, err := r.Load(bytes.NewReader(public)); err != nil {
			t.Fatal(err)
		}
		for i, e := range [][]byte{first, second} {
			whole, content := snapshotOf(t, s.Snapshot()), contentOf(t, s)
			res, batch, err := s.Apply(w.at+1+uint64(i), e)
			twinRes, twinBatch, twinErr := twin.Apply(w.at+1+uint64(i), e)
			if !proto.Equal(res, twinRes) || !proto.Equal(batch, twinBatch) || (err == nil) != (twinErr == nil) {
				t.Fatalf("%v, %v, %v\nand %v, %v, %v", res, batch, err, twinRes, twinBatch, twinErr)
			}
			if err != nil && !bytes.Equal(snapshotOf(t, s.Snapshot()), whole) {
				t.Fatalf("%v left a trace", err)
			}
			if res.GetError() != nil && contentOf(t, s) != content {
				t.Fatalf("%v left a trace", res)
			}
			if batch != nil {
				if ok, err := r.Apply(batch); !ok || err != nil {
					t.Fatalf("a copy cannot follow %v: %v", batch, err)
				}
			}
			if b := snapshotOf(t, s.PublicSnapshot()); !bytes.Equal(copyOf(t, r), b) {
				t.Fatal("the copy differs")
			}
			b := snapshotOf(t, s.Snapshot())
			if !bytes.Equal(snapshotOf(t, twin.Snapshot()), b) {
				t.Fatal("two stores differ")
			}
			if err := NewStore().Restore(bytes.NewReader(b)); err != nil {
				t.Fatalf("the snapshot cannot be restored: %v", err)
			}
		}
	})
}

// FuzzRestore reads any bytes as a snapshot, and also any parts with a trailer that is right. What is accepted is a state
// whose own snapshot is accepted too.
func FuzzRestore(f *testing.F) {
	w := smallWorld(f)
	for _, frozen := range []*Frozen{w.Snapshot(), w.PublicSnapshot(), NewStore().Snapshot()} {
		b := snapshotOf(f, frozen)
		parts := partsOf(f, b)
		last, _ := appendPart(nil, parts[len(parts)-1])
		f.Add(b)
		f.Add(b[:len(b)-len(last)])
	}
	whole, public := snapshotOf(f, w.Snapshot()), snapshotOf(f, w.PublicSnapshot())
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, b := range [][]byte{b, sealed(b)} {
			s := NewStore()
			if err := s.Restore(bytes.NewReader(whole)); err != nil {
				t.Fatal(err)
			}
			if err := s.Restore(bytes.NewReader(b)); err != nil {
				if !bytes.Equal(snapshotOf(t, s.Snapshot()), whole) {
					t.Fatalf("%v left a trace", err)
				}
			} else if err := NewStore().Restore(bytes.NewReader(snapshotOf(t, s.Snapshot()))); err != nil {
				t.Fatalf("accepted, but its own snapshot is not: %v", err)
			}

			r := NewReplica()
			if _, err := r.Load(bytes.NewReader(public)); err != nil {
				t.Fatal(err)
			}
			if _, err := r.Load(bytes.NewReader(b)); err != nil {
				if !bytes.Equal(copyOf(t, r), public) {
					t.Fatalf("%v left a trace", err)
				}
			} else if _, err := NewReplica().Load(bytes.NewReader(copyOf(t, r))); err != nil {
				t.Fatalf("accepted, but what it writes is not: %v", err)
			}
		}
	})
}

// sealed puts a trailer that is right behind b, if b consists of parts.
func sealed(b []byte) []byte {
	p := newPartReader(bytes.NewReader(b))
	var parts []*statev1.Snapshot
	for {
		_, body, err := p.raw()
		m := new(statev1.Snapshot)
		if err != nil || proto.Unmarshal(body, m) != nil || m.GetTrailer() != nil {
			break
		}
		parts = append(parts, m)
	}
	return joined(parts...)
}

// FuzzReplicaApply applies any bytes as a batch. What is refused leaves no trace; what is accepted can be written and
// loaded.
func FuzzReplicaApply(f *testing.F) {
	w := smallWorld(f)
	blue := w.NetworkByName("blue")
	w.must(&statev1.MoveEndpoint{Id: w.EndpointByName(blue.Id, "web").Id, Node: id(1)})
	w.must(&statev1.RemoveNode{Id: id(2), Force: true})
	w.must(&statev1.RemoveEndpoint{Id: w.Endpoints("", "")[0].Id})
	w.must(&statev1.RemoveNetwork{Id: blue.Id})
	for _, b := range w.batches {
		f.Add(wire(b))
	}
	small := smallWorld(f)
	public := snapshotOf(f, small.PublicSnapshot())
	f.Fuzz(func(t *testing.T, b []byte) {
		batch := new(statev1.Batch)
		if proto.Unmarshal(b, batch) != nil {
			return
		}
		// Numbers and names that a random batch would hardly have.
		tamed := proto.CloneOf(batch)
		tamed.ClusterId, tamed.Previous, tamed.Index = cluster, small.Index(), small.Index()+1
		for _, d := range tamed.Deltas {
			d.Index = tamed.Index
			switch {
			case d.Node != nil:
				d.Node.Index = tamed.Index
			case d.Network != nil:
				d.Network.Index = tamed.Index
			case d.Endpoint != nil:
				d.Endpoint.Index = tamed.Index
			}
		}
		for _, batch := range []*statev1.Batch{batch, tamed} {
			r := NewReplica()
			if _, err := r.Load(bytes.NewReader(public)); err != nil {
				t.Fatal(err)
			}
			digest := digestOf(r)
			ok, err := r.Apply(batch)
			if !ok && (!bytes.Equal(copyOf(t, r), public) || digestOf(r) != digest) {
				t.Fatalf("%v left a trace", err)
			}
			if !ok {
				continue
			}
			if r.c.managers == 0 {
				continue // the managers never send that, and the snapshot is refused
			}
			again := NewReplica()
			if _, err := again.Load(bytes.NewReader(copyOf(t, r))); err != nil {
				t.Fatalf("applied, but what it writes cannot be loaded: %v", err)
			}
			if digestOf(again) != digestOf(r) {
				t.Fatal("the digests differ after loading")
			}
		}
	})
}

func digestOf(r *Replica) uint64 {
	var sum uint64
	for vni, d := range r.Digest() {
		sum += d*31 + uint64(vni)
	}
	return sum
}
