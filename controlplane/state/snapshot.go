package state

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"

	"github.com/google/btree"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/overlayd/overlayd/controlplane/api/overlayd/state/v1"
)

// Frozen is the state at one moment. What is applied later does not show in it. It shares memory with the state that it
// was taken from, and keeps it until it is released or out of use.
type Frozen struct {
	header    *statev1.SnapshotHeader
	cursors   *statev1.Cursors // nil in a public snapshot, as pools, secrets and requests
	secrets   *statev1.Secrets
	nodes     *btree.BTreeG[*node]
	networks  *btree.BTreeG[*network]
	pools     []*statev1.Pool
	endpoints *btree.BTreeG[*endpoint]
	requests  []*statev1.AppliedRequest
}

// freeze takes what every node may know, with the index that a public snapshot has. The lock must be held for writing:
// a tree that is cloned is changed, although not in what it holds.
func (c *content) freeze() *Frozen {
	return &Frozen{
		header:    &statev1.SnapshotHeader{Version: RulesVersion, ClusterId: c.clusterID, Index: c.index, Previous: c.index},
		nodes:     c.nodes.Clone(),
		networks:  c.networks.Clone(),
		endpoints: c.byID.Clone(),
	}
}

// Snapshot takes the whole state, for other managers and for backups. It has the secrets of the cluster in it. It takes
// time for the networks and the requests that are remembered, but not for the endpoints.
func (s *Store) Snapshot() *Frozen {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.c.freeze()
	f.header.Index = s.applied
	f.cursors, f.pools = s.c.alloc.cursors()
	f.secrets = s.secrets
	f.requests = s.requests.all()
	return f
}

// PublicSnapshot takes what every node may know, for Replica.Load. Stores and replicas at the same Index write the same
// bytes.
func (s *Store) PublicSnapshot() *Frozen {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.c.freeze()
}

// Release lets go of the memory that is shared with the state. WriteTo fails afterwards.
func (f *Frozen) Release() { *f = Frozen{} }

// WriteTo writes the snapshot as length-delimited statev1.Snapshot messages, one record at a time; give it a writer with
// a buffer. The header is first, then cursors, secrets, nodes, networks each with its pool, endpoints, requests, and
// the trailer with the checksum. It returns the number of bytes written.
func (f *Frozen) WriteTo(w io.Writer) (int64, error) {
	if f.header == nil {
		return 0, errors.New("write a snapshot of the state: it was released; take another one")
	}
	p := &partWriter{w: w, sum: sha256.New()}
	p.write(&statev1.Snapshot{Part: &statev1.Snapshot_Header{Header: f.header}})
	p.parts = 0 // the header does not count
	if f.cursors != nil {
		p.write(&statev1.Snapshot{Part: &statev1.Snapshot_Cursors{Cursors: f.cursors}})
	}
	if f.secrets != nil {
		p.write(&statev1.Snapshot{Part: &statev1.Snapshot_Secrets{Secrets: f.secrets}})
	}
	f.nodes.Ascend(func(n *node) bool {
		return p.write(&statev1.Snapshot{Part: &statev1.Snapshot_Node{Node: n.msg}})
	})
	i := 0
	f.networks.Ascend(func(n *network) bool {
		ok := p.write(&statev1.Snapshot{Part: &statev1.Snapshot_Network{Network: n.msg}})
		if ok && f.pools != nil {
			ok = p.write(&statev1.Snapshot{Part: &statev1.Snapshot_Pool{Pool: f.pools[i]}})
			i++
		}
		return ok
	})
	f.endpoints.Ascend(func(e *endpoint) bool {
		return p.write(&statev1.Snapshot{Part: &statev1.Snapshot_Endpoint{Endpoint: e.message()}})
	})
	for _, r := range f.requests {
		p.write(&statev1.Snapshot{Part: &statev1.Snapshot_Request{Request: r}})
	}
	p.write(trailer(p.parts, p.sum))
	if p.err != nil {
		return p.n, fmt.Errorf("write a snapshot of the state: %w", p.err)
	}
	return p.n, nil
}

// trailer is the last part of a snapshot, behind so many others with this checksum.
func trailer(parts uint64, sum hash.Hash) *statev1.Snapshot {
	return &statev1.Snapshot{Part: &statev1.Snapshot_Trailer{Trailer: &statev1.SnapshotTrailer{Parts: parts, Sha256: sum.Sum(nil)}}}
}

// partWriter writes parts until there is an error.
type partWriter struct {
	w       io.Writer
	sum     hash.Hash
	parts   uint64
	n       int64
	scratch []byte
	err     error
}

// write reports whether there is no error yet.
func (p *partWriter) write(m *statev1.Snapshot) bool {
	if p.err != nil {
		return false
	}
	if p.scratch, p.err = appendPart(p.scratch[:0], m); p.err != nil {
		return false
	}
	p.sum.Write(p.scratch)
	n, err := p.w.Write(p.scratch)
	p.n += int64(n)
	p.parts++
	p.err = err
	return err == nil
}

// appendPart appends a part with its length. The encoding depends on nothing but the message.
func appendPart(b []byte, m *statev1.Snapshot) ([]byte, error) {
	opts := proto.MarshalOptions{Deterministic: true}
	b = protowire.AppendVarint(b, uint64(opts.Size(m)))
	opts.UseCachedSize = true
	return opts.MarshalAppend(b, m)
}
