package fastpath

import (
	"github.com/cilium/ebpf/asm"

	"github.com/overlayd/overlayd/dataplane/header"
)

// UDP that comes faster than this is better off in userspace, where many small datagrams share one send: a run of so many
// packets, each within burstGap of the one before. It ends with a pause of burstEnd, in which what was on the slow way arrives.
const (
	burstGap = 50_000  // nanoseconds
	burstEnd = 500_000 // nanoseconds
	burstRun = 32
)

// leaving writes the program that sees what the kernel gives to a TAP. What it knows it wraps and sends on: out by the
// underlay device that its entry names, or, from a sandbox, to the device relay.
func (t *Table) leaving(outlet uint32, relay int) *program {
	const eth, from = keyAt + 4, keyAt + 20
	p := &program{port: t.port}
	p.add(
		asm.Mov.Reg(ctx, asm.R1),
		asm.LoadMem(asm.R1, ctx, skbVLAN, asm.Word),
		asm.JNE.Imm(asm.R1, 0, "pass"),
	)
	p.read(0, eth, header.EthernetLen, "pass")
	p.set(keyAt, int32(outlet), asm.Word)
	p.set(eth+header.EthernetLen, 0, asm.Half)
	p.inner(header.EthernetLen, eth, from, true, "pass")
	p.gate(t.leaveGates.m, "pass")

	// From here on, what goes the slow way is counted.
	p.get(asm.R1, ipLenAt, asm.DWord)
	p.add(
		asm.Add.Imm(asm.R1, header.EthernetLen),
		asm.LoadMem(asm.R2, ctx, skbLen, asm.Word),
		asm.JNE.Reg(asm.R1, asm.R2, "slow"),
	)
	p.burst()
	p.look(t.leave, keyAt, "slow")
	p.add(asm.Mov.Reg(entry, asm.R0))
	p.open("slow")
	p.fits(header.EthernetLen, true, "slow")
	p.room(encapLen, fixedGSO|encapIPv4|encapUDP|encapEther|header.EthernetLen<<encapL2Bits, "slow")
	p.wrap()
	p.store(outerAt, header.EthernetLen+encapLen)
	p.count(t.counters.m)
	if relay == 0 {
		p.add(asm.LoadMem(asm.R1, entry, valueDevice, asm.Word))
		p.sendOut()
	} else {
		p.add(
			asm.Mov.Imm(asm.R1, int32(relay)),
			asm.Mov.Imm(asm.R2, 0),
			asm.FnRedirect.Call(),
			asm.Return(),
		)
	}
	p.spoilt(t.counters.m)

	p.at("slow")
	p.add(asm.Mov.Imm(asm.R1, 1), asm.AddAtomic.Mem(door, asm.R1, asm.DWord, gateSlow))
	p.at("pass")
	p.add(asm.Mov.Imm(asm.R0, next), asm.Return())
	return p
}

// burst leaves UDP that comes in quick succession to userspace.
func (p *program) burst() {
	p.get(asm.R1, protoAt, asm.DWord)
	p.add(
		asm.JNE.Imm(asm.R1, int32(header.ProtoUDP), "steady"),
		asm.FnKtimeGetNs.Call(),
		asm.LoadMem(asm.R1, door, gateLast, asm.DWord),
		asm.StoreMem(door, gateLast, asm.R0, asm.DWord),
		asm.Sub.Reg(asm.R0, asm.R1),
		asm.LoadMem(asm.R2, door, gateRun, asm.DWord),
		asm.JLT.Imm(asm.R0, burstGap, "quick"),
		asm.JLT.Imm(asm.R0, burstEnd, "judge"),
		asm.Mov.Imm(asm.R2, -1),
	)
	p.at("quick")
	p.add(
		asm.Add.Imm(asm.R2, 1),
		asm.StoreMem(door, gateRun, asm.R2, asm.DWord),
	)
	p.at("judge")
	p.add(asm.JGE.Imm(asm.R2, burstRun, "slow"))
	p.at("steady")
}

// room makes the packet longer or shorter behind its Ethernet header, or jumps to fail, the packet untouched.
func (p *program) room(by int32, flags int64, fail string) {
	p.add(asm.LoadImm(asm.R4, flags, asm.DWord))
	p.roomAs(by, fail)
}

// roomAs is room with the flags in R4.
func (p *program) roomAs(by int32, fail string) {
	p.add(
		asm.Mov.Reg(asm.R1, ctx),
		asm.Mov.Imm(asm.R2, by),
		asm.Mov.Imm(asm.R3, roomMAC),
		asm.FnSkbAdjustRoom.Call(),
		asm.JNE.Imm(asm.R0, 0, fail),
	)
}

// store writes n bytes of the stack to the beginning of the packet.
func (p *program) store(from, n int32) {
	p.add(
		asm.Mov.Reg(asm.R1, ctx),
		asm.Mov.Imm(asm.R2, 0),
		asm.Mov.Reg(asm.R3, asm.RFP),
		asm.Add.Imm(asm.R3, from),
		asm.Mov.Imm(asm.R4, n),
		asm.Mov.Imm(asm.R5, 0),
		asm.FnSkbStoreBytes.Call(),
		asm.JNE.Imm(asm.R0, 0, "lost"),
	)
}

// wrap makes the outer headers on the stack: those of the entry, with what differs from packet to packet.
func (p *program) wrap() {
	const ip, udp = outerAt + header.EthernetLen, outerAt + header.EthernetLen + header.IPv4MinLen
	p.add(asm.LoadMem(asm.R1, entry, valueHeader, asm.Half))
	p.put(outerAt, asm.R1, asm.Half)
	for i := int16(2); i < header.EthernetLen+outerLen; i += 4 {
		p.add(asm.LoadMem(asm.R1, entry, valueHeader+i, asm.Word))
		p.put(outerAt+i, asm.R1, asm.Word)
	}
	p.move(outerAt+header.EthernetLen+outerLen, keyAt+4, header.EthernetLen)

	// The ECN field of the inner packet (RFC 6040, section 4.1).
	p.get(asm.R2, tosAt, asm.DWord)
	p.add(asm.And.Imm(asm.R2, int32(header.ECNMask)))
	p.put(ip+1, asm.R2, asm.Byte)
	p.get(asm.R3, ipLenAt, asm.DWord)
	p.add(asm.Add.Imm(asm.R3, encapLen)) // of the outer packet
	// RFC 1071, with what the entry has summed up before.
	p.add(
		asm.LoadMem(asm.R1, entry, valueSum, asm.Word),
		asm.Add.Reg(asm.R1, asm.R2),
		asm.Add.Reg(asm.R1, asm.R3),
	)
	p.fold(asm.R1, asm.R2)
	p.add(asm.Xor.Imm(asm.R1, 0xffff))
	p.putBE(ip+10, asm.R1, asm.Half)
	p.add(asm.Mov.Reg(asm.R1, asm.R3))
	p.putBE(ip+2, asm.R1, asm.Half)
	p.add(asm.Sub.Imm(asm.R3, header.IPv4MinLen))
	p.putBE(udp+4, asm.R3, asm.Half)
	// One of the ports, which are in network byte order.
	p.add(
		asm.Mov.Reg(asm.R1, hash),
		asm.And.Imm(asm.R1, maxPorts-1),
		asm.LSh.Imm(asm.R1, 1),
		asm.Mov.Reg(asm.R2, entry),
		asm.Add.Reg(asm.R2, asm.R1),
		asm.LoadMem(asm.R1, asm.R2, valuePorts, asm.Half),
	)
	p.put(udp, asm.R1, asm.Half)
}

// fold adds the carries of an internet checksum of few words, with a register to spare.
func (p *program) fold(sum, spare asm.Register) {
	for range 2 {
		p.add(
			asm.Mov.Reg(spare, sum),
			asm.RSh.Imm(spare, 16),
			asm.And.Imm(sum, 0xffff),
			asm.Add.Reg(sum, spare),
		)
	}
}

// sendOut ends the program by sending the packet out by the device whose index is in R1, to the next hop that the kernel's
// routes name there. If we stated the next hop, the kernel would keep the route of the inner packet with the outer one, and
// ask for the next hop's address inside the overlay where it is not known.
func (p *program) sendOut() {
	p.add(
		asm.Mov.Imm(asm.R2, 0),
		asm.Mov.Imm(asm.R3, 0),
		asm.Mov.Imm(asm.R4, 0),
		asm.FnRedirectNeigh.Call(),
		asm.Return(),
	)
}

// uplink writes the program at the host's end of a relay. It sends every packet out by the device that the packet names in
// its source address.
func uplink() *program {
	p := new(program)
	p.add(asm.Mov.Reg(ctx, asm.R1))
	p.read(deviceAt, indexAt, 4, "gone")
	p.getBE(asm.R1, indexAt, asm.Word)
	p.sendOut()
	p.at("gone")
	p.add(asm.Mov.Imm(asm.R0, shoot), asm.Return())
	return p
}

// deviceAt is where the Ethernet header of a packet on a relay names the device to leave by: behind the first two bytes of
// its source address, which say that it is a locally administered one.
const deviceAt = 8
