package fastpath

import (
	"github.com/cilium/ebpf/asm"

	"github.com/overlayd/overlayd/dataplane/header"
)

// arriving writes the program that sees what comes in from an underlay device. What it knows it unwraps and gives to the
// TAP, as if that had sent it up, or to the relay of a sandbox.
func (t *Table) arriving() *program {
	const (
		ip    = outerAt + header.EthernetLen
		udp   = ip + header.IPv4MinLen
		vxlan = udp + header.UDPLen
		all   = header.EthernetLen + encapLen

		eth, from = keyAt + 12, keyAt + 28
	)
	p := &program{port: t.port}
	p.add(
		asm.Mov.Reg(ctx, asm.R1),
		asm.LoadMem(asm.R1, ctx, skbPktType, asm.Word),
		asm.JNE.Imm(asm.R1, pktHost, "pass"),
		asm.LoadMem(asm.R1, ctx, skbVLAN, asm.Word),
		asm.JNE.Imm(asm.R1, 0, "pass"),
	)
	p.read(0, outerAt, all, "pass")
	p.getBE(asm.R1, outerAt+12, asm.Half)
	p.add(asm.JNE.Imm(asm.R1, int32(header.EtherTypeIPv4), "pass"))
	p.get(asm.R1, ip, asm.Byte)
	p.add(asm.JNE.Imm(asm.R1, 0x45, "pass"))
	p.getBE(asm.R1, ip+6, asm.Half)
	p.add(asm.JSet.Imm(asm.R1, fragment4, "pass"))
	p.get(asm.R1, ip+9, asm.Byte)
	p.add(asm.JNE.Imm(asm.R1, int32(header.ProtoUDP), "pass"))
	p.getBE(asm.R1, udp+2, asm.Half)
	p.add(asm.JNE.Imm(asm.R1, int32(t.port), "pass"))
	p.get(asm.R1, ip+16, asm.Word)
	p.put(indexAt, asm.R1, asm.Word)
	p.look(t.locals, indexAt, "pass")
	p.add(asm.Mov.Imm(hash, 1))
	p.getBE(asm.R0, ip+12, asm.Word)
	p.mix(asm.R0)
	p.getBE(asm.R0, udp, asm.Half)
	p.mix(asm.R0)
	p.gate(t.arriveGates.m, "pass")
	// What the kernel drops before anybody could read it.
	p.get(asm.R1, ip, asm.Half)
	for i := int16(2); i < header.IPv4MinLen; i += 2 {
		p.get(asm.R2, ip+i, asm.Half)
		p.add(asm.Add.Reg(asm.R1, asm.R2))
	}
	p.fold(asm.R1, asm.R2)
	p.add(asm.JNE.Imm(asm.R1, 0xffff, "pass"))
	// What is no frame, such as a probe of the path, and may be overtaken.
	p.getBE(asm.R1, vxlan, asm.Word)
	p.add(asm.JSet.Imm(asm.R1, int32(header.VXLANFlagVNI)<<24, "frame"), asm.Ja.Label("pass"))

	// From here on, what goes the slow way is counted.
	p.at("frame")
	p.add(asm.JNE.Imm(asm.R1, int32(header.VXLANFlagVNI)<<24, "slow"))
	p.get(asm.R1, vxlan+7, asm.Byte)
	p.add(asm.JNE.Imm(asm.R1, 0, "slow"))

	p.move(keyAt, vxlan+4, 4)
	p.move(keyAt+4, ip+12, 8) // both addresses
	p.move(eth, outerAt+header.EthernetLen+outerLen, header.EthernetLen)
	p.set(eth+header.EthernetLen, 0, asm.Half)
	p.inner(all, eth, from, false, "slow")

	// One frame, all of which is there and nothing else. The outer length is that of each segment, or of none at all, in a
	// superframe.
	p.get(asm.R3, ipLenAt, asm.DWord)
	p.getBE(asm.R1, ip+2, asm.Half)
	p.add(
		asm.LoadMem(asm.R2, ctx, skbLen, asm.Word),
		asm.Sub.Imm(asm.R2, header.EthernetLen),
		asm.JNE.Reg(asm.R1, asm.R2, "slow"),
		asm.Sub.Imm(asm.R2, all-header.EthernetLen),
		asm.JNE.Reg(asm.R2, asm.R3, "slow"),
		asm.LoadMem(asm.R1, ctx, skbGSOSize, asm.Word),
		asm.JNE.Imm(asm.R1, 0, "whole"),
		asm.Add.Imm(asm.R3, encapLen-header.IPv4MinLen),
	)
	p.getBE(asm.R1, udp+4, asm.Half)
	p.add(asm.JNE.Reg(asm.R1, asm.R3, "slow"))
	p.at("whole")
	// Where the outer ECN field changes nothing about the inner one (RFC 6040, figure 4).
	p.get(asm.R1, ip+1, asm.Byte)
	p.get(asm.R2, tosAt, asm.DWord)
	p.add(
		asm.And.Imm(asm.R1, int32(header.ECNMask)),
		asm.And.Imm(asm.R2, int32(header.ECNMask)),
		asm.JEq.Imm(asm.R1, int32(header.ECNNotECT), "unmarked"),
		asm.JNE.Reg(asm.R1, asm.R2, "slow"),
	)
	p.at("unmarked")
	p.look(t.arrive, keyAt, "slow")
	p.add(asm.Mov.Reg(entry, asm.R0))
	p.open("slow")
	p.fits(all, false, "slow")
	p.get(asm.R4, flagsAt, asm.DWord)
	p.roomAs(-encapLen, "slow")
	p.store(eth, header.EthernetLen)
	p.count(t.counters.m)
	p.add(
		asm.LoadMem(asm.R1, entry, valueDevice, asm.Word),
		asm.LoadMem(asm.R3, entry, valueRelay, asm.Word),
		asm.JNE.Imm(asm.R3, 0, "relay"),
		asm.Mov.Imm(asm.R2, redirectIngress),
		asm.FnRedirect.Call(),
		asm.Return(),
	)
	p.at("relay")
	p.add(
		asm.Mov.Imm(asm.R2, 0),
		asm.FnRedirectPeer.Call(),
		asm.Return(),
	)
	p.spoilt(t.counters.m)

	p.at("slow")
	p.add(
		asm.LoadMem(asm.R1, ctx, skbLen, asm.Word),
		asm.Sub.Imm(asm.R1, header.EthernetLen+header.IPv4MinLen+header.UDPLen),
		asm.AddAtomic.Mem(door, asm.R1, asm.DWord, gateSlow),
	)
	p.at("pass")
	p.add(asm.Mov.Imm(asm.R0, next), asm.Return())
	return p
}

// downlink writes the program at a relay's end in the sandbox. It gives every packet to the TAP, as if that had sent it up.
func downlink(tap int) *program {
	p := new(program)
	p.add(
		asm.Mov.Imm(asm.R1, int32(tap)),
		asm.Mov.Imm(asm.R2, redirectIngress),
		asm.FnRedirect.Call(),
		asm.Return(),
	)
	return p
}
