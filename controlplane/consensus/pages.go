package consensus

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"io"
)

// The layout of a bbolt file, as of its format version 2. Integers are in the byte order of the host. The file
// consists of pages; pages 0 and 1 are meta pages, which transactions write in turn; the others form B+ trees, one
// a bucket, with the buckets in the tree of the root.
const (
	pageHeader  = 16 // id 8, flags 2, count 2, overflow 4
	elementSize = 16 // branch: pos 4, ksize 4, pgid 8; leaf: flags 4, pos 4, ksize 4, vsize 4
	bucketSize  = 16 // root pgid 8, sequence 8

	flagBranch = 0x01
	flagLeaf   = 0x02
	flagMeta   = 0x04

	leafIsBucket = 0x01

	metaMagic   = 0xED0CDAED
	metaVersion = 2
	metaSize    = 64 // magic 4, version 4, page size 4, flags 4, root 16, freelist 8, high water mark 8, txid 8, checksum 8

	noFreelist = ^uint64(0)
	maxDepth   = 64 // of a tree; a real one has less than ten levels
)

var order = binary.NativeEndian

// meta is the content of a meta page.
type meta struct {
	pageSize uint32
	root     uint64 // page of the root bucket
	freelist uint64
	high     uint64 // pages from here on are not in use
	txid     uint64
}

func parseMeta(page []byte) (meta, error) {
	if order.Uint16(page[8:]) != flagMeta {
		return meta{}, fmt.Errorf("it is no meta page")
	}
	b := page[pageHeader : pageHeader+metaSize]
	switch {
	case order.Uint32(b) != metaMagic:
		return meta{}, fmt.Errorf("it does not start as one of bbolt")
	case order.Uint32(b[4:]) != metaVersion:
		return meta{}, fmt.Errorf("it has format version %d, not %d", order.Uint32(b[4:]), metaVersion)
	}
	h := fnv.New64a()
	_, _ = h.Write(b[:metaSize-8])
	if h.Sum64() != order.Uint64(b[metaSize-8:]) {
		return meta{}, fmt.Errorf("its checksum is wrong")
	}
	return meta{
		pageSize: order.Uint32(b[8:]),
		root:     order.Uint64(b[16:]),
		freelist: order.Uint64(b[32:]),
		high:     order.Uint64(b[40:]),
		txid:     order.Uint64(b[48:]),
	}, nil
}

// pages checks a bbolt file without bbolt.
type pages struct {
	file    io.ReaderAt
	size    int64
	meta    meta
	seen    map[uint64]bool     // pages that a tree uses
	buckets map[string][][]byte // keys of each bucket that is not the log, by its name
}

// checkPages finds out whether bbolt can use a file without trouble: bbolt trusts what it reads, and where it does not,
// it panics, partly on goroutines of its own. Both meta pages have to be good. If the newer one is not, bbolt takes
// the older one and thereby silently forgets its last transaction, which may have been a vote or an entry that
// this node has confirmed. A file is empty if it was made and nothing was ever written to it.
func checkPages(file io.ReaderAt, size int64) (empty bool, err error) {
	p := &pages{file: file, size: size, seen: map[uint64]bool{}, buckets: map[string][][]byte{}}
	if err := p.readMeta(); err != nil {
		return false, err
	}
	if p.meta.freelist != noFreelist && p.meta.txid > 1 { // a new file has an empty one
		return false, fmt.Errorf("it holds a free list, which overlayd never writes")
	}
	if err := p.tree(p.meta.root, bounds{}, 0, p.rootElement); err != nil {
		return false, err
	}
	return len(p.buckets) == 0, p.checkBuckets()
}

func (p *pages) readMeta() error {
	const smallest = 4096 // of the page sizes of Linux
	head := make([]byte, smallest)
	if n, err := p.file.ReadAt(head, 0); err != nil {
		return fmt.Errorf("only %d bytes of its first page can be read: %w", n, err)
	}
	m0, err := parseMeta(head)
	if err != nil {
		return fmt.Errorf("meta page 0: %w", err)
	}
	if s := m0.pageSize; s < smallest || s > 1<<16 || s&(s-1) != 0 {
		return fmt.Errorf("meta page 0: a page size of %d bytes is not possible", s)
	}
	if n, err := p.file.ReadAt(head, int64(m0.pageSize)); err != nil {
		return fmt.Errorf("only %d bytes of its second page can be read: %w", n, err)
	}
	m1, err := parseMeta(head)
	if err != nil {
		return fmt.Errorf("meta page 1: %w", err)
	}
	p.meta = m0
	if m1.txid > m0.txid {
		p.meta = m1
	}
	if m0.pageSize != m1.pageSize || m0.txid+1 != m1.txid && m1.txid+1 != m0.txid {
		return fmt.Errorf("its meta pages do not belong together (transactions %d and %d)", m0.txid, m1.txid)
	}
	if have := p.size / int64(p.meta.pageSize); p.meta.high > uint64(have) {
		return fmt.Errorf("it is cut off: %d pages are in use, %d are there", p.meta.high, have)
	}
	return nil
}

// bounds are what the keys of a subtree have to keep: min <= key < max; nil = no bound.
type bounds struct{ min, max []byte }

func (b bounds) check(key []byte) error {
	if b.min != nil && bytes.Compare(key, b.min) < 0 || b.max != nil && bytes.Compare(key, b.max) >= 0 {
		return fmt.Errorf("key %x does not belong there", key)
	}
	return nil
}

// tree checks the tree below a page and calls leaf for each of its elements.
func (p *pages) tree(id uint64, within bounds, depth int, leaf func(flags uint32, key, value []byte) error) error {
	if depth > maxDepth {
		return fmt.Errorf("page %d: the tree is too deep", id)
	}
	page, err := p.read(id)
	if err != nil {
		return err
	}
	if err := p.elements(page, within, depth, leaf); err != nil {
		return fmt.Errorf("page %d: %w", id, err)
	}
	return nil
}

// read returns a page with those that continue it, and notes that they are in use.
func (p *pages) read(id uint64) ([]byte, error) {
	if id < 2 || id >= p.meta.high {
		return nil, fmt.Errorf("page %d is referred to, but the file has pages 2 to %d", id, p.meta.high-1)
	}
	size := int64(p.meta.pageSize)
	head := make([]byte, pageHeader)
	if _, err := p.file.ReadAt(head, int64(id)*size); err != nil {
		return nil, fmt.Errorf("page %d: %w", id, err)
	}
	if got := order.Uint64(head); got != id {
		return nil, fmt.Errorf("page %d says that it is page %d", id, got)
	}
	more := uint64(order.Uint32(head[12:]))
	if more >= p.meta.high-id {
		return nil, fmt.Errorf("page %d: its %d further pages are not all there", id, more)
	}
	for i := id; i <= id+more; i++ {
		if p.seen[i] {
			return nil, fmt.Errorf("page %d is used twice", i)
		}
		p.seen[i] = true
	}
	page := make([]byte, int64(1+more)*size)
	if _, err := p.file.ReadAt(page, int64(id)*size); err != nil {
		return nil, fmt.Errorf("page %d: %w", id, err)
	}
	return page, nil
}

// elements checks what a page holds. The page may lie inside of a value: then it has no pages below it.
func (p *pages) elements(page []byte, within bounds, depth int, leaf func(uint32, []byte, []byte) error) error {
	flags, count := order.Uint16(page[8:]), int(order.Uint16(page[10:]))
	if flags != flagLeaf && flags != flagBranch {
		return fmt.Errorf("its type %#x is not possible", flags)
	}
	if pageHeader+count*elementSize > len(page) {
		return fmt.Errorf("%d elements do not fit", count)
	}
	if flags == flagBranch && count == 0 {
		return fmt.Errorf("it has nothing below it")
	}
	type element struct {
		flags      uint32
		child      uint64
		key, value []byte
	}
	all := make([]element, count)
	for i := range all {
		at := pageHeader + i*elementSize
		e := page[at:]
		var pos, klen, vlen uint32
		if flags == flagLeaf {
			all[i].flags, pos, klen, vlen = order.Uint32(e), order.Uint32(e[4:]), order.Uint32(e[8:]), order.Uint32(e[12:])
		} else {
			pos, klen = order.Uint32(e), order.Uint32(e[4:])
			all[i].child = order.Uint64(e[8:])
		}
		from := uint64(at) + uint64(pos)
		if klen == 0 || from+uint64(klen)+uint64(vlen) > uint64(len(page)) {
			return fmt.Errorf("element %d reaches over its end", i)
		}
		all[i].key = page[from : from+uint64(klen)]
		all[i].value = page[from+uint64(klen) : from+uint64(klen)+uint64(vlen)]
		if i > 0 && bytes.Compare(all[i-1].key, all[i].key) >= 0 {
			return fmt.Errorf("its keys are not in order at element %d", i)
		}
		if err := within.check(all[i].key); err != nil && (flags == flagLeaf || i > 0) {
			return err
		}
	}
	for i, e := range all {
		if flags == flagLeaf {
			if err := leaf(e.flags, e.key, e.value); err != nil {
				return err
			}
			continue
		}
		if depth < 0 {
			return fmt.Errorf("a bucket inside of a page has pages below it")
		}
		below := bounds{min: e.key, max: within.max}
		if i == 0 {
			below.min = within.min // bbolt does not keep the first key of a branch up to date
		}
		if i+1 < len(all) {
			below.max = all[i+1].key
		}
		if err := p.tree(e.child, below, depth+1, leaf); err != nil {
			return err
		}
	}
	return nil
}

// rootElement checks a bucket.
func (p *pages) rootElement(flags uint32, name, value []byte) error {
	if flags != leafIsBucket {
		return fmt.Errorf("%q is no bucket", name)
	}
	if len(value) < bucketSize {
		return fmt.Errorf("the bucket %q has only %d bytes", name, len(value))
	}
	keys := [][]byte{}
	take := func(flags uint32, key, _ []byte) error {
		if flags != 0 {
			return fmt.Errorf("there is a bucket in the bucket %q", name)
		}
		if string(name) != logBucket {
			keys = append(keys, bytes.Clone(key))
		} else if len(key) != 8 {
			return fmt.Errorf("the key %x is no index", key)
		}
		return nil
	}
	root := order.Uint64(value)
	var err error
	if root == 0 {
		inline := value[bucketSize:]
		if len(inline) < pageHeader {
			return fmt.Errorf("the bucket %q is cut off", name)
		}
		err = p.elements(inline, bounds{}, -1, take)
	} else {
		err = p.tree(root, bounds{}, 0, take)
	}
	p.buckets[string(name)] = keys
	return err
}

// checkBuckets looks for what has vanished: both buckets are made in one transaction, and a term is always there
// before an entry or a vote.
func (p *pages) checkBuckets() error {
	_, logs := p.buckets[logBucket]
	conf, stable := p.buckets[stableBucket]
	switch {
	case !logs && !stable && len(p.buckets) == 0 && p.meta.txid <= 2:
		return nil // it was made, and then the power failed
	case !logs || !stable || len(p.buckets) != 2:
		return fmt.Errorf("it does not hold the buckets %q and %q", logBucket, stableBucket)
	}
	have := map[string]bool{}
	for _, k := range conf {
		switch string(k) {
		case keyTerm, keyVoteTerm, keyVoteFor:
			have[string(k)] = true
		default:
			return fmt.Errorf("the key %q is none that Raft uses", k)
		}
	}
	if have[keyVoteFor] && !have[keyVoteTerm] || (have[keyVoteTerm] || have[keyVoteFor]) && !have[keyTerm] {
		return fmt.Errorf("the term or the vote of this node is missing")
	}
	return nil
}
