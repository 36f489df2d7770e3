package state

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/overlayd/overlayd/controlplane/api/overlayd/state/v1"
)

// ErrDamaged says that a snapshot is not what was once written.
var ErrDamaged = errors.New("the snapshot is damaged: take another copy of it, or get the state from another manager")

// maxPart is the largest part in bytes that is read. None that is written comes near it.
const maxPart = 1 << 20

// Places of the kinds of parts in a snapshot. They do not go back.
const (
	placeHeader = iota
	placeCursors
	placeSecrets
	placeNodes
	placeNetworks // and pools
	placeEndpoints
	placeRequests
	placeTrailer
)

// partReader reads the parts of a snapshot and checks that they are whole and in order.
type partReader struct {
	r     *bufio.Reader
	sum   hash.Hash
	parts uint64 // behind the header
	place int
}

func newPartReader(r io.Reader) *partReader {
	return &partReader{r: bufio.NewReaderSize(r, 64<<10), sum: sha256.New()}
}

// damaged is an error that wraps ErrDamaged and says what was seen.
func damaged(format string, args ...any) error {
	return fmt.Errorf("%s: %w", fmt.Sprintf(format, args...), ErrDamaged)
}

// raw returns the next part with its length.
func (p *partReader) raw() (part, body []byte, err error) {
	size, err := p.size()
	if err != nil {
		return nil, nil, err
	}
	part = protowire.AppendVarint(nil, size)
	start := len(part)
	part = append(part, make([]byte, size)...)
	_, err = io.ReadFull(p.r, part[start:])
	return part, part[start:], err
}

// size reads the length of the next part.
func (p *partReader) size() (uint64, error) {
	var size uint64
	for shift := 0; ; shift += 7 {
		b, err := p.r.ReadByte()
		if err != nil {
			return 0, err
		}
		size |= uint64(b&0x7f) << shift
		if size > maxPart || b >= 0x80 && shift > 21 {
			return 0, damaged("part %d is larger than any", p.parts)
		}
		if b < 0x80 {
			return size, nil
		}
	}
}

// next returns the next part, nil behind the trailer.
func (p *partReader) next() (*statev1.Snapshot, error) {
	part, body, err := p.raw()
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return nil, damaged("it ends after %d parts, without its trailer", p.parts)
	case err != nil:
		return nil, err
	}
	m := new(statev1.Snapshot)
	if err := proto.Unmarshal(body, m); err != nil {
		return nil, damaged("part %d cannot be decoded", p.parts)
	}
	place, ok := placeOf(m)
	switch {
	case !ok:
		return nil, damaged("part %d is of an unknown kind", p.parts)
	case place < p.place, (place == placeHeader) != (p.parts == 0), place == p.place && place < placeNodes && p.parts > 0:
		return nil, damaged("part %d is out of place", p.parts)
	}
	p.place = place
	if place != placeTrailer {
		p.sum.Write(part)
		p.parts++
		return m, nil
	}
	want, err := appendPart(nil, trailer(p.parts-1, p.sum))
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(part, want) {
		return nil, damaged("its checksum is wrong")
	}
	if _, err := p.r.ReadByte(); err == nil {
		return nil, damaged("it goes on behind its trailer")
	} else if !errors.Is(err, io.EOF) {
		return nil, err
	}
	return nil, nil
}

// newer is the error for a snapshot of a newer version, whose header was just read. Only a checksum that is right tells such
// a version from a damaged header, so it reads to the end, without looking into the parts.
func (p *partReader) newer(version uint32) error {
	part, body, err := p.raw()
	for err == nil {
		if _, err = p.r.Peek(1); err != nil {
			break
		}
		p.sum.Write(part)
		p.parts++
		part, body, err = p.raw()
	}
	if !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return err
	}
	last := new(statev1.Snapshot)
	if proto.Unmarshal(body, last) != nil || last.GetTrailer().GetParts() != p.parts-1 || !bytes.Equal(last.GetTrailer().GetSha256(), p.sum.Sum(nil)) {
		return damaged("its checksum is wrong")
	}
	return &VersionError{What: "the snapshot", Needs: version}
}

func placeOf(m *statev1.Snapshot) (place int, ok bool) {
	switch m.Part.(type) {
	case *statev1.Snapshot_Header:
		return placeHeader, true
	case *statev1.Snapshot_Cursors:
		return placeCursors, true
	case *statev1.Snapshot_Secrets:
		return placeSecrets, true
	case *statev1.Snapshot_Node:
		return placeNodes, true
	case *statev1.Snapshot_Network, *statev1.Snapshot_Pool:
		return placeNetworks, true
	case *statev1.Snapshot_Endpoint:
		return placeEndpoints, true
	case *statev1.Snapshot_Request:
		return placeRequests, true
	case *statev1.Snapshot_Trailer:
		return placeTrailer, true
	}
	return 0, false
}

// restored is what a snapshot holds.
type restored struct {
	*content
	header   *statev1.SnapshotHeader
	secrets  *statev1.Secrets
	cursors  bool
	requests *requests
	lastID   uint64 // of the records of this kind before; they are sorted
	pools    int
}

// readSnapshot reads a snapshot to its end. A public one has nothing in it that is for managers only; one that is not has
// all of it, if there is a cluster.
func readSnapshot(r io.Reader, public bool) (*restored, error) {
	var alloc *allocator
	if !public {
		alloc = newAllocator()
	}
	out := &restored{content: newContent(alloc), requests: newRequests()}
	p := newPartReader(r)
	for {
		place := p.place
		m, err := p.next()
		if err != nil {
			return nil, err
		}
		if m == nil {
			break
		}
		if p.place != place {
			out.lastID = 0
		}
		if bad := out.add(m, p.place); bad != nil {
			return nil, damaged("part %d: %v", p.parts-1, bad)
		}
		if v := out.header.Version; v > RulesVersion {
			return nil, p.newer(v)
		}
		if public && (p.place == placeCursors || p.place == placeSecrets || p.place == placeRequests) {
			return nil, damaged("part %d is for managers only", p.parts-1)
		}
	}
	return out, out.complete(public)
}

// complete checks what can be seen only at the end.
func (x *restored) complete(public bool) error {
	switch {
	case x.clusterID == "" && (x.nodes.Len() > 0 || x.networks.Len() > 0 || x.secrets != nil || x.index > 0):
		return damaged("it names no cluster")
	case x.clusterID != "" && x.managers == 0:
		return damaged("it has no manager")
	case public:
		return nil
	case !x.cursors:
		return fmt.Errorf("it is a public snapshot, which lacks what managers need: use a snapshot or a backup of a manager")
	case x.clusterID != "" && x.secrets == nil:
		return damaged("it has no secrets")
	case x.pools != x.networks.Len():
		return damaged("it has %d pools for %d networks", x.pools, x.networks.Len())
	}
	return nil
}

// add makes a part of the snapshot part of the content.
func (x *restored) add(m *statev1.Snapshot, place int) error {
	switch part := m.Part.(type) {
	case *statev1.Snapshot_Header:
		return x.addHeader(part.Header)
	case *statev1.Snapshot_Cursors:
		x.cursors = true
		if x.alloc == nil {
			return nil // refused by the caller
		}
		return x.alloc.restoreCursors(part.Cursors).under("cursors").err()
	case *statev1.Snapshot_Secrets:
		if bad := checkAllSecrets(part.Secrets); bad != nil {
			return bad.under("secrets").err()
		}
		if part.Secrets.Index > x.header.Index {
			return errors.New("secrets.index: it is behind that of the snapshot")
		}
		x.secrets = mergeSecrets(nil, part.Secrets, part.Secrets.Index)
		return nil
	case *statev1.Snapshot_Node:
		n, bad := parseNode(part.Node)
		if bad == nil {
			bad = x.nodeConflict(n)
		}
		if bad != nil {
			return bad.under("node").err()
		}
		x.putNode(n)
		return x.ordered("node", n.id, n.msg.Index)
	case *statev1.Snapshot_Network:
		n, bad := parseNetwork(part.Network)
		if bad == nil {
			bad = x.networkConflict(n)
		}
		if bad != nil {
			return bad.under("network").err()
		}
		x.putNetwork(n)
		return x.ordered("network", n.id, n.msg.Index)
	case *statev1.Snapshot_Pool:
		if id, _ := idOf(part.Pool.GetNetwork()); x.alloc == nil || id != x.lastID {
			return errors.New("pool.network: it is not that of the network before it")
		}
		x.pools++
		return x.alloc.restorePool(part.Pool).under("pool").err()
	case *statev1.Snapshot_Endpoint:
		e, bad := parseEndpoint(part.Endpoint)
		if bad == nil {
			bad = x.whole(e)
		}
		if bad != nil {
			return bad.under("endpoint").err()
		}
		x.putEndpoint(e)
		return x.ordered("endpoint", e.id, e.index)
	case *statev1.Snapshot_Request:
		return x.requests.restore(part.Request).under("request").err()
	}
	return fmt.Errorf("unknown kind at place %d", place)
}

func (x *restored) addHeader(h *statev1.SnapshotHeader) error {
	x.header = h
	if h.Version > RulesVersion {
		return nil // said by the caller, and nothing else about it
	}
	if h.ClusterId != "" {
		if _, bad := parseID("cluster_id", h.ClusterId); bad != nil {
			return bad.under("header").err()
		}
	}
	if h.Version == 0 || h.Previous > h.Index {
		return errors.New("header: its version or its indexes cannot be")
	}
	x.clusterID, x.index = h.ClusterId, h.Previous
	return nil
}

// ordered checks that records come sorted by ID, each once, and that none is newer than the snapshot.
func (x *restored) ordered(what string, id, index uint64) error {
	if id <= x.lastID {
		return fmt.Errorf("%s.id: %s is out of order", what, formatID(id))
	}
	if index > x.index {
		return fmt.Errorf("%s.index: %d is newer than the snapshot, which is of %d", what, index, x.index)
	}
	x.lastID = id
	return nil
}

// Restore replaces the whole state by that of a snapshot that Store.Snapshot wrote. It reads r to its end. If it returns
// an error, such as ErrDamaged or a *VersionError, the state is as before. Copies that follow this Store have to take a
// PublicSnapshot: what leads from the old state to the new one is not known.
func (s *Store) Restore(r io.Reader) error {
	x, err := readSnapshot(r, false)
	if err != nil {
		return fmt.Errorf("restore the state from a snapshot: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.c, s.applied, s.secrets, s.requests, s.ring = x.content, x.header.Index, x.secrets, x.requests, ring{}
	return nil
}
