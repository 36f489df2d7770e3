package fastpath

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"sync/atomic"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/dataplane/addr"
	"github.com/overlayd/overlayd/dataplane/header"
	"github.com/overlayd/overlayd/dataplane/mtu"
)

// ErrFull means that there are as many entries as there may be.
var ErrFull = errors.New("the table of pairs is full")

// Table holds the entries that all programs look up, and their gates and counters.
type Table struct {
	port       uint16
	leave      *ebpf.Map // LeaveKey -> leaveValue
	arrive     *ebpf.Map // ArriveKey -> arriveValue
	locals     *ebpf.Map // our underlay addresses
	leaveGates gateways
	// Those of what arrives have no use for the fields on bursts.
	arriveGates gateways
	counters    memory[counter]
	spare       []Slot        // counters that no entry has
	outlets     atomic.Uint32 // last number of one
}

// Slot is the place of an entry's counters.
type Slot uint32

// Way is how the packets of a pair leave the host.
type Way struct {
	Device      int        // index of the underlay device
	Local, Peer netip.Addr // outer addresses, both of IPv4
	VNI         addr.VNI
	TTL         int
	Sources     []uint16 // outer source ports, as many as a power of two that is at most 16; flows are dealt out by frame.FlowHash
	MaxSuper    int      // longest superframe that goes out uncut, in bytes with its Ethernet header; 0 = none
}

// Same reports whether w and o are the same, their source ports aside.
func (w *Way) Same(o *Way) bool {
	return w.Device == o.Device && w.Local == o.Local && w.Peer == o.Peer && w.VNI == o.VNI && w.TTL == o.TTL && w.MaxSuper == o.MaxSuper
}

// MaxSuper returns the longest superframe that, wrapped, is a packet that a device takes which takes packets of so many bytes,
// both with their Ethernet headers.
func MaxSuper(maxPacket int) int {
	const most = 65535 + header.EthernetLen // the length that an IPv4 header can state
	return max(0, min(maxPacket, most)-encapLen)
}

// Limit is what the packets of a pair may be to need nothing done to them.
type Limit struct {
	MaxFrame int     // bytes with the Ethernet header, of a frame or of each segment of a superframe
	MSS      mtu.MSS // that a SYN may state
}

// Target is where the packets of a pair go that arrive.
type Target struct {
	Device int  // index of the TAP, or of the host's end of the relay to its sandbox
	Relay  bool // which of these
}

// Open makes the maps and finds out whether the kernel runs the programs, by wrapping and unwrapping a packet. port is that of
// VXLAN. The error says what the kernel cannot do, or this process may not do.
func Open(port uint16) (*Table, error) {
	t := &Table{port: port}
	err := t.open()
	if err == nil {
		err = t.probe()
	}
	if err != nil {
		return nil, errors.Join(err, t.Close())
	}
	return t, nil
}

func (t *Table) open() error {
	var err error
	newMap := func(name string, typ ebpf.MapType, key, value uintptr, most, flags uint32) *ebpf.Map {
		if err != nil {
			return nil
		}
		var m *ebpf.Map
		m, err = ebpf.NewMap(&ebpf.MapSpec{
			Name: name, Type: typ, KeySize: uint32(key), ValueSize: uint32(value), MaxEntries: most, Flags: flags,
		})
		return m
	}
	t.leave = newMap("overlayd_leave", ebpf.Hash, unsafe.Sizeof(LeaveKey{}), unsafe.Sizeof(leaveValue{}), maxPairs, unix.BPF_F_NO_PREALLOC)
	t.arrive = newMap("overlayd_arrive", ebpf.Hash, unsafe.Sizeof(ArriveKey{}), unsafe.Sizeof(arriveValue{}), maxPairs, unix.BPF_F_NO_PREALLOC)
	t.locals = newMap("overlayd_locals", ebpf.Hash, 4, 4, 1024, unix.BPF_F_NO_PREALLOC)
	shared := func(name string, value uintptr, most uint32) *ebpf.Map {
		return newMap(name, ebpf.Array, 4, value, most, unix.BPF_F_MMAPABLE)
	}
	t.leaveGates.m = shared("overlayd_lgates", unsafe.Sizeof(gate{}), gates)
	t.arriveGates.m = shared("overlayd_agates", unsafe.Sizeof(gate{}), gates)
	t.counters.m = shared("overlayd_counts", unsafe.Sizeof(counter{}), maxSlots)
	if err != nil {
		return fmt.Errorf("making a BPF map, which needs CAP_BPF: %w", err)
	}
	if err := errors.Join(t.leaveGates.open(gates), t.arriveGates.open(gates), t.counters.open(maxSlots)); err != nil {
		return fmt.Errorf("mapping the memory of a BPF map: %w", err)
	}
	for s := range Slot(maxSlots) {
		t.spare = append(t.spare, maxSlots-1-s)
	}
	return nil
}

// Close frees everything. No program may be attached, and nobody else be using the table.
func (t *Table) Close() error {
	errs := []error{t.leaveGates.close(), t.arriveGates.close(), t.counters.close()}
	for _, m := range []*ebpf.Map{t.leave, t.arrive, t.locals} {
		if m != nil {
			errs = append(errs, m.Close())
		}
	}
	return errors.Join(errs...)
}

// SetLocals states the underlay addresses of this host, of which those of IPv4 matter.
func (t *Table) SetLocals(locals []netip.Addr) error {
	want := map[[4]byte]bool{}
	for _, a := range locals {
		if a.Is4() {
			want[a.As4()] = true
			if err := t.locals.Put(a.As4(), uint32(1)); err != nil {
				return fmt.Errorf("noting the underlay address %v: %w", a, err)
			}
		}
	}
	var key [4]byte
	var value uint32
	var gone [][4]byte
	for all := t.locals.Iterate(); all.Next(&key, &value); {
		if !want[key] {
			gone = append(gone, key)
		}
	}
	for _, k := range gone {
		if err := t.locals.Delete(k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("forgetting the underlay address %v: %w", netip.AddrFrom4(k), err)
		}
	}
	return nil
}

// NewSlot returns counters for a new entry. The error is ErrFull if there are none.
func (t *Table) NewSlot() (Slot, error) {
	if len(t.spare) == 0 {
		return 0, ErrFull
	}
	s := t.spare[len(t.spare)-1]
	t.spare = t.spare[:len(t.spare)-1]
	c := &t.counters.all[s]
	atomic.StoreUint64(&c.Frames, 0)
	atomic.StoreUint64(&c.Bytes, 0)
	atomic.StoreUint64(&c.Lost, 0)
	return s, nil
}

// FreeSlot gives counters back. The entry is gone, and for so long that no program is still using it.
func (t *Table) FreeSlot(s Slot) { t.spare = append(t.spare, s) }

// Count returns how many wire frames an entry has forwarded, their bytes, and how many were lost since the kernel
// could neither send them on nor leave them as they were.
func (t *Table) Count(s Slot) (frames, bytes, lost uint64) {
	c := &t.counters.all[s]
	return atomic.LoadUint64(&c.Frames), atomic.LoadUint64(&c.Bytes), atomic.LoadUint64(&c.Lost)
}

// SetLeave has the kernel wrap the packets of a pair from now on, or do so otherwise.
func (t *Table) SetLeave(k LeaveKey, s Slot, w *Way, l Limit) error {
	v := leaveValue{
		Slot: uint32(s), Device: uint32(w.Device),
		MaxIP: uint32(max(0, l.MaxFrame-header.EthernetLen)), MSS: uint32(l.MSS), MaxSuper: uint32(w.MaxSuper),
	}
	for i := range v.Ports {
		v.Ports[i] = swap16(w.Sources[i%len(w.Sources)])
	}
	eth := header.Ethernet(v.Header[:])
	eth.SetEtherType(header.EtherTypeIPv4)
	// Where the packet passes a relay, this tells its other end the device; else the kernel replaces it.
	v.Header[deviceAt-2] = 2
	binary.BigEndian.PutUint32(v.Header[deviceAt:], v.Device)
	ip := v.Header[header.EthernetLen:]
	ip[0] = 0x45
	ip[6] = 0x40 // DF
	ip[8] = uint8(w.TTL)
	ip[9] = header.ProtoUDP
	local, peer := w.Local.As4(), w.Peer.As4()
	copy(ip[12:], local[:])
	copy(ip[16:], peer[:])
	for i := 0; i < header.IPv4MinLen; i += 2 {
		v.Sum += uint32(binary.BigEndian.Uint16(ip[i:]))
	}
	udp := ip[header.IPv4MinLen:]
	binary.BigEndian.PutUint16(udp[2:], t.port)
	header.VXLAN(udp[header.UDPLen:]).Encode(w.VNI)
	return full(t.leave.Put(&k, &v))
}

// SetArrive has the kernel unwrap the packets of a pair from now on, or do so otherwise.
func (t *Table) SetArrive(k ArriveKey, s Slot, to Target, l Limit) error {
	v := arriveValue{
		Slot: uint32(s), Device: uint32(to.Device),
		MaxIP: uint32(max(0, l.MaxFrame-header.EthernetLen)), MSS: uint32(l.MSS),
	}
	if to.Relay {
		v.Relay = 1
	}
	return full(t.arrive.Put(&k, &v))
}

func full(err error) error {
	if errors.Is(err, unix.E2BIG) {
		return ErrFull
	}
	return err
}

// UnsetLeave leaves the packets of a pair to userspace again.
func (t *Table) UnsetLeave(k LeaveKey) error { return absent(t.leave.Delete(&k)) }

// UnsetArrive leaves the packets of a pair to userspace again.
func (t *Table) UnsetArrive(k ArriveKey) error { return absent(t.arrive.Delete(&k)) }

func absent(err error) error {
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil
	}
	return err
}

// LeftDone notes that a packet is dealt with for which Leaving said ok.
func (t *Table) LeftDone(hash uint32) { atomic.AddUint64(&t.leaveGates.all[gateOf(hash)].done, 1) }

// ArrivedDone notes that a message is dealt with, a datagram or a train of them, that came to the VXLAN port of a local
// IPv4 address. It returns a number that is the same for all messages from there.
func (t *Table) ArrivedDone(outer netip.Addr, port uint16, message []byte) uint32 {
	hash := outerHash(outer, port)
	// What is shorter the program does not look at, and what is no frame it does not count.
	if len(message) >= header.VXLANLen+header.EthernetLen && header.VXLAN(message).ValidVNI() {
		atomic.AddUint64(&t.arriveGates.all[gateOf(hash)].done, uint64(len(message)))
	}
	return hash
}

// Settle opens the gates that have been waiting since the last call for what will not come any more: packets that the
// kernel has dropped between a program and userspace. It reports whether gates are closed still. It is to be called a few
// times a second, by one goroutine; what is on the slow way for longer than that may be overtaken.
func (t *Table) Settle() (closed bool) {
	leave, arrive := t.leaveGates.settle(), t.arriveGates.settle()
	return leave || arrive
}

// memory is an array that programs and this process share.
type memory[T any] struct {
	m   *ebpf.Map
	mem []byte
	all []T
}

func (m *memory[T]) open(n int) error {
	var one T
	var err error
	// The kernel maps whole pages.
	if m.mem, err = unix.Mmap(m.m.FD(), 0, n*int(unsafe.Sizeof(one)), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		return err
	}
	m.all = unsafe.Slice((*T)(unsafe.Pointer(&m.mem[0])), n)
	return nil
}

func (m *memory[T]) close() error {
	var errs []error
	if m.mem != nil {
		errs = append(errs, unix.Munmap(m.mem))
	}
	if m.m != nil {
		errs = append(errs, m.m.Close())
	}
	m.mem, m.all, m.m = nil, nil, nil
	return errors.Join(errs...)
}

// gateways are the gates of one direction.
type gateways struct {
	memory[gate]
	seen [gates]uint64 // what each had let by to userspace when settle last looked
	lag  [gates]uint64 // what of that had not been dealt with
	same [gates]uint8  // in how many looks in a row before that was as much
}

// steady is how often in a row settle finds the same lag at a gate through which traffic goes on, until that is what was lost:
// what is really under way changes all the time.
const steady = 3

func (g *gateways) settle() (closed bool) {
	for i := range g.all {
		done, slow := atomic.LoadUint64(&g.all[i].done), atomic.LoadUint64(&g.all[i].slow)
		lag := slow - done
		if lag != g.lag[i] {
			g.lag[i], g.same[i] = lag, 0
		}
		switch {
		case lag == 0:
		case slow == g.seen[i] || int64(lag) < 0 || g.same[i] == steady:
			// Lost on the way; or more was dealt with than the program saw: what passed before it was attached, and
			// superframes that the kernel has cut. If something is dealt with meanwhile, it is added all the same.
			atomic.AddUint64(&g.all[i].done, lag)
		default:
			g.same[i]++
			closed = true
		}
		g.seen[i] = slow
	}
	return closed
}

// swap16 turns a number in host byte order into one in network byte order, and back.
func swap16(n uint16) uint16 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], n)
	return binary.NativeEndian.Uint16(b[:])
}
