package fastpath

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"

	"github.com/overlayd/overlayd/dataplane/addr"
	"github.com/overlayd/overlayd/dataplane/checksum"
	"github.com/overlayd/overlayd/dataplane/header"
)

// redirected is what programs return that have sent a packet on (TC_ACT_REDIRECT).
const redirected = 7

// probe wraps a packet and unwraps it again, by running the programs without any device.
func (t *Table) probe() error {
	const vni, ttl, source = addr.VNI(42), 64, 50000
	here, there := netip.AddrFrom4([4]byte{192, 0, 2, 1}), netip.AddrFrom4([4]byte{192, 0, 2, 2})
	frame := echo()
	k, _, ok := t.Leaving(0, frame)
	if !ok {
		return errors.New("the packet to try it with is none")
	}
	slot, err := t.NewSlot()
	if err != nil {
		return err
	}
	defer t.FreeSlot(slot)
	limit := Limit{MaxFrame: len(frame)}
	if err := t.SetLeave(k, slot, &Way{Device: 1, Local: here, Peer: there, VNI: vni, TTL: ttl, Sources: []uint16{source}}, limit); err != nil {
		return fmt.Errorf("adding an entry: %w", err)
	}
	defer func() { _ = t.UnsetLeave(k) }()
	wrapped, err := try(t.leaving(0, 0), "overlayd_leave", frame, encapLen)
	if err != nil {
		return fmt.Errorf("wrapping a packet: %w", err)
	}
	at := header.EthernetLen + outerLen
	if !bytes.Equal(wrapped[at:], frame) || checksum.Checksum(wrapped[header.EthernetLen:header.EthernetLen+header.IPv4MinLen]) != 0 {
		return fmt.Errorf("wrapping a packet came to %x", wrapped)
	}

	if err := t.SetLocals([]netip.Addr{there}); err != nil {
		return err
	}
	defer func() { _ = t.SetLocals(nil) }()
	back, ok := t.Arriving(here, there, wrapped[header.EthernetLen+header.IPv4MinLen+header.UDPLen:])
	if !ok {
		return errors.New("the packet to try it with is none")
	}
	if err := t.SetArrive(back, slot, Target{Device: 1}, limit); err != nil {
		return fmt.Errorf("adding an entry: %w", err)
	}
	defer func() { _ = t.UnsetArrive(back) }()
	unwrapped, err := try(t.arriving(), "overlayd_arrive", wrapped, -encapLen)
	if err != nil {
		return fmt.Errorf("unwrapping a packet: %w", err)
	}
	if !bytes.Equal(unwrapped, frame) {
		return fmt.Errorf("unwrapping a packet came to %x", unwrapped)
	}
	if n, _, _ := t.Count(slot); n != 2 {
		return fmt.Errorf("2 packets were counted as %d", n)
	}
	return nil
}

// try runs a program on a packet that is to grow by so many bytes, and returns what became of it.
func try(p *program, name string, packet []byte, grow int) ([]byte, error) {
	prog, err := p.load(name)
	if err != nil {
		return nil, fmt.Errorf("loading the BPF program %s, which needs CAP_BPF and CAP_NET_ADMIN: %w", name, err)
	}
	defer prog.Close()
	run := ebpf.RunOptions{Data: packet, DataOut: make([]byte, len(packet)+encapLen)}
	verdict, err := prog.Run(&run)
	if err != nil {
		return nil, fmt.Errorf("running the BPF program %s: %w", name, err)
	}
	if verdict != redirected || len(run.DataOut) != len(packet)+grow {
		return nil, fmt.Errorf("the BPF program %s returned %d, and %d bytes of %d", name, int32(verdict), len(run.DataOut), len(packet))
	}
	return run.DataOut, nil
}

// echo returns a frame with an ICMP echo request.
func echo() []byte {
	b := make([]byte, header.EthernetLen+header.IPv4MinLen+header.UDPLen)
	eth := header.Ethernet(b)
	copy(b, []byte{2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1})
	eth.SetEtherType(header.EtherTypeIPv4)
	ip := b[header.EthernetLen:]
	ip[0], ip[8], ip[9] = 0x45, 64, header.ProtoICMP
	binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)))
	copy(ip[12:], []byte{198, 51, 100, 1, 198, 51, 100, 2})
	ip[header.IPv4MinLen] = header.ICMPEcho
	return b
}
