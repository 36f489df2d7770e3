package fastpath

import (
	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"

	"github.com/overlayd/overlayd/dataplane/frame"
	"github.com/overlayd/overlayd/dataplane/header"
)

// What the programs know of the kernel (include/uapi/linux/bpf.h): fields of struct __sk_buff, return codes, and flags of
// bpf_skb_adjust_room and bpf_redirect.
const (
	skbLen, skbPktType, skbVLAN, skbGSOSize = 0, 4, 20, 176

	next  = -1 // TCX_NEXT: whatever else is attached, and then the usual way
	shoot = 2  // TCX_DROP

	pktHost = 0 // PACKET_HOST: for this host

	roomMAC     = 1 // BPF_ADJ_ROOM_MAC
	fixedGSO    = 1 << 0
	encapIPv4   = 1 << 1
	encapUDP    = 1 << 4
	encapEther  = 1 << 6
	decapIPv6   = 1 << 8
	encapL2Bits = 56 // where the length of the inner Ethernet header goes

	redirectIngress = 1 // BPF_F_INGRESS
)

// Registers that keep their values across calls.
const (
	ctx   = asm.R6
	hash  = asm.R7
	door  = asm.R8 // the flow's gate
	entry = asm.R9 // value of the pair's entry
)

// The stack, in bytes below its top: what a program keeps. Everything lies where its alignment divides its place.
const (
	keyAt    = -48  // LeaveKey or ArriveKey
	l3At     = -88  // IPv4 or IPv6 header
	l4At     = -112 // TCP or UDP header, and an option
	indexAt  = -116 // index of a map
	packetAt = -184 // 64 bytes of headers, and 2 in front, so that what is behind Ethernet's is aligned
	protoAt  = -192 // from here on 8 bytes each
	ipLenAt  = -200 // length of the packet by its IP header
	tosAt    = -208
	l4OffAt  = -216 // where the transport header is in the packet
	hdrLenAt = -224 // and how long it is
	mssAt    = -232 // that a SYN states; 0 = it is none
	framesAt = -240
	bytesAt  = -248
	flagsAt  = -256 // of bpf_skb_adjust_room when unwrapping
	outerAt  = packetAt + 2
)

// noMSS is above any MSS that an entry admits: the SYN is for userspace.
const noMSS = 1 << 16

// The option of a SYN that states its MSS (RFC 9293, section 3.2), where every common stack has it: first.
const (
	mssOption    = 2
	mssOptionLen = 4
)

// program is a BPF program as it is written down. Jumps go by the names of places.
type program struct {
	asm.Instructions
	place string // of the next instruction
	port  uint16 // of VXLAN
}

func (p *program) add(ins ...asm.Instruction) {
	if p.place != "" {
		ins[0] = ins[0].WithSymbol(p.place)
		p.place = ""
	}
	p.Instructions = append(p.Instructions, ins...)
}

// at names the place of the next instruction.
func (p *program) at(place string) { p.place = place }

// read copies n bytes of the packet from off on to the stack, or jumps to fail where there are fewer.
func (p *program) read(off int32, to int32, n int32, fail string) {
	p.add(asm.Mov.Imm(asm.R2, off))
	p.readAt(to, n, fail)
}

// readAt is read with the offset in R2.
func (p *program) readAt(to, n int32, fail string) {
	p.add(
		asm.Mov.Reg(asm.R1, ctx),
		asm.Mov.Reg(asm.R3, asm.RFP),
		asm.Add.Imm(asm.R3, to),
		asm.Mov.Imm(asm.R4, n),
		asm.FnSkbLoadBytes.Call(),
		asm.JNE.Imm(asm.R0, 0, fail),
	)
}

// get and put move what is on the stack from and to registers; the BE forms read it in network byte order.
func (p *program) get(to asm.Register, at int16, size asm.Size) {
	p.add(asm.LoadMem(to, asm.RFP, at, size))
}

func (p *program) put(at int16, from asm.Register, size asm.Size) {
	p.add(asm.StoreMem(asm.RFP, at, from, size))
}

func (p *program) getBE(to asm.Register, at int16, size asm.Size) {
	p.get(to, at, size)
	p.add(asm.HostTo(asm.BE, to, size))
}

func (p *program) putBE(at int16, from asm.Register, size asm.Size) {
	p.add(asm.HostTo(asm.BE, from, size))
	p.put(at, from, size)
}

// set stores a number, by way of R0.
func (p *program) set(at int16, value int32, size asm.Size) {
	p.add(asm.Mov.Imm(asm.R0, value))
	p.put(at, asm.R0, size)
}

// move copies n bytes within the stack, 4 at a time and then 2.
func (p *program) move(to, from int16, n int16) {
	for n >= 4 {
		p.get(asm.R1, from, asm.Word)
		p.put(to, asm.R1, asm.Word)
		to, from, n = to+4, from+4, n-4
	}
	if n > 0 {
		p.get(asm.R1, from, asm.Half)
		p.put(to, asm.R1, asm.Half)
	}
}

// mix folds w into the hash, as mix does in Go. It uses R1, and w may be R0.
func (p *program) mix(w asm.Register) {
	p.add(
		asm.Xor.Reg(hash, w),
		asm.LoadImm(asm.R1, int64(factor), asm.DWord),
		asm.Mul.Reg(hash, asm.R1),
		asm.Mov.Reg(asm.R1, hash),
		asm.RSh.Imm(asm.R1, 32),
		asm.Xor.Reg(hash, asm.R1),
	)
}

// factor is a variable, as a constant of its size is no int64.
var factor = frame.HashFactor

// look looks up the key on the stack and jumps to fail if m has it not. R0 is the value.
func (p *program) look(m *ebpf.Map, key int32, fail string) {
	p.add(
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, key),
		asm.LoadMapPtr(asm.R1, m.FD()),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, fail),
	)
}

// gate finds the gate of the hash. Where there is none, which cannot be, it jumps to fail.
func (p *program) gate(m *ebpf.Map, fail string) {
	p.add(
		asm.Mov.Reg32(asm.R1, hash),
		asm.RSh.Imm32(asm.R1, 4),
		asm.And.Imm32(asm.R1, gates-1),
	)
	p.put(indexAt, asm.R1, asm.Word)
	p.look(m, indexAt, fail)
	p.add(asm.Mov.Reg(door, asm.R0))
}

// open jumps to fail if something of the flow is still on the slow way.
func (p *program) open(fail string) {
	p.add(
		asm.LoadMem(asm.R1, door, gateSlow, asm.DWord),
		asm.LoadMem(asm.R2, door, gateDone, asm.DWord),
		asm.JNE.Reg(asm.R1, asm.R2, fail),
	)
}

// inner looks at the frame whose IP header is at off and whose Ethernet header is at eth on the stack. It notes what there is
// to know, the source address at from, and jumps to other with what is not TCP, UDP or an echo in a plain packet.
func (p *program) inner(off int32, eth, from int16, hashed bool, other string) {
	mix := func(at int16, size asm.Size) {
		if hashed {
			p.getBE(asm.R0, at, size)
			p.mix(asm.R0)
		}
	}
	seed := func() { // with the protocol in R1
		p.put(protoAt, asm.R1, asm.DWord)
		if hashed {
			p.add(asm.Mov.Reg(hash, asm.R1), asm.Add.Imm(hash, 1))
		}
	}
	p.getBE(asm.R1, eth+12, asm.Half)
	p.add(asm.JEq.Imm(asm.R1, int32(header.EtherTypeIPv6), "ipv6"), asm.JNE.Imm(asm.R1, int32(header.EtherTypeIPv4), other))

	p.read(off, l3At, header.IPv4MinLen, other)
	p.get(asm.R1, l3At, asm.Byte)
	p.add(asm.JNE.Imm(asm.R1, 0x45, other))
	p.getBE(asm.R1, l3At+6, asm.Half)
	p.add(asm.JSet.Imm(asm.R1, fragment4, other))
	p.get(asm.R1, l3At+9, asm.Byte)
	seed()
	if hashed { // both addresses at once, as they are not aligned for that
		p.getBE(asm.R0, l3At+12, asm.Word)
		p.getBE(asm.R1, l3At+16, asm.Word)
		p.add(asm.LSh.Imm(asm.R0, 32), asm.Or.Reg(asm.R0, asm.R1))
		p.mix(asm.R0)
	}
	p.move(from, l3At+12, 4)
	for i := int16(4); i < 16; i += 4 {
		p.set(from+i, 0, asm.Word)
	}
	p.getBE(asm.R1, l3At+2, asm.Half)
	p.put(ipLenAt, asm.R1, asm.DWord)
	p.get(asm.R1, l3At+1, asm.Byte)
	p.put(tosAt, asm.R1, asm.DWord)
	p.set(l4OffAt, off+header.IPv4MinLen, asm.DWord)
	p.set(flagsAt, fixedGSO, asm.DWord)
	p.add(asm.Ja.Label("transport"))

	p.at("ipv6")
	p.read(off, l3At, header.IPv6Len, other)
	p.getBE(asm.R1, l3At, asm.Half)
	p.add(asm.Mov.Reg(asm.R2, asm.R1), asm.RSh.Imm(asm.R2, 12), asm.JNE.Imm(asm.R2, 6, other))
	p.add(asm.RSh.Imm(asm.R1, 4), asm.And.Imm(asm.R1, 0xff))
	p.put(tosAt, asm.R1, asm.DWord)
	p.get(asm.R1, l3At+6, asm.Byte)
	seed()
	for i := int16(8); i < header.IPv6Len; i += 8 {
		mix(l3At+i, asm.DWord)
	}
	p.move(from, l3At+8, 16)
	p.getBE(asm.R1, l3At+4, asm.Half)
	p.add(asm.Add.Imm(asm.R1, header.IPv6Len))
	p.put(ipLenAt, asm.R1, asm.DWord)
	p.set(l4OffAt, off+header.IPv6Len, asm.DWord)
	p.set(flagsAt, fixedGSO|decapIPv6, asm.DWord)

	p.at("transport")
	p.set(mssAt, 0, asm.DWord)
	p.get(asm.R1, protoAt, asm.DWord)
	p.get(asm.R2, l4OffAt, asm.DWord) // where readAt wants it
	p.add(
		asm.JEq.Imm(asm.R1, int32(header.ProtoTCP), "tcp"),
		asm.JEq.Imm(asm.R1, int32(header.ProtoUDP), "udp"),
		asm.JEq.Imm(asm.R1, int32(header.ProtoICMP), "icmp"),
		asm.JNE.Imm(asm.R1, int32(header.ProtoICMPv6), other),
	)
	p.readAt(l4At, 2, other)
	p.get(asm.R1, l4At, asm.Byte)
	p.add(
		asm.JEq.Imm(asm.R1, int32(header.ICMPv6Echo), "echo"),
		asm.JEq.Imm(asm.R1, int32(header.ICMPv6EchoReply), "echo"),
		asm.Ja.Label(other),
	)
	p.at("icmp")
	p.readAt(l4At, 2, other)
	p.get(asm.R1, l4At, asm.Byte)
	p.add(
		asm.JEq.Imm(asm.R1, int32(header.ICMPEcho), "echo"),
		asm.JNE.Imm(asm.R1, int32(header.ICMPEchoReply), other),
	)
	p.at("echo")
	p.set(hdrLenAt, 0, asm.DWord)
	p.add(asm.Ja.Label("looked"))

	p.at("udp")
	p.readAt(l4At, header.UDPLen, other)
	p.getBE(asm.R1, l4At+2, asm.Half)
	for _, port := range []uint16{p.port, dhcp4, dhcp6} {
		p.add(asm.JEq.Imm(asm.R1, int32(port), other))
	}
	mix(l4At, asm.Word)
	p.set(hdrLenAt, header.UDPLen, asm.DWord)
	p.add(asm.Ja.Label("looked"))

	p.at("tcp")
	p.readAt(l4At, header.TCPMinLen, other)
	mix(l4At, asm.Word)
	p.get(asm.R1, l4At+12, asm.Byte)
	p.add(asm.RSh.Imm(asm.R1, 4), asm.LSh.Imm(asm.R1, 2))
	p.add(asm.JLT.Imm(asm.R1, header.TCPMinLen, other))
	p.put(hdrLenAt, asm.R1, asm.DWord)
	p.get(asm.R1, l4At+13, asm.Byte)
	p.add(asm.And.Imm(asm.R1, int32(header.TCPSyn)), asm.JEq.Imm(asm.R1, 0, "looked"))
	// A SYN that states its MSS first may go if that is small enough. What is on the stack behind the header is not set yet.
	p.set(mssAt, noMSS, asm.DWord)
	p.get(asm.R1, hdrLenAt, asm.DWord)
	p.add(asm.JLT.Imm(asm.R1, header.TCPMinLen+mssOptionLen, "looked"))
	p.get(asm.R2, l4OffAt, asm.DWord)
	p.add(asm.Add.Imm(asm.R2, header.TCPMinLen))
	p.readAt(l4At+header.TCPMinLen, mssOptionLen, "looked")
	p.getBE(asm.R1, l4At+header.TCPMinLen, asm.Half)
	p.add(asm.JNE.Imm(asm.R1, mssOption<<8|mssOptionLen, "looked"))
	p.getBE(asm.R1, l4At+header.TCPMinLen+2, asm.Half)
	p.put(mssAt, asm.R1, asm.DWord)
	p.at("looked")
}

// fits jumps to fail with what is longer than the entry admits, superframes as a whole too if that is limited, or a SYN
// that states too much. It works out how many frames there are, and their bytes. off is where the IP header is.
func (p *program) fits(off int32, limited bool, fail string) {
	p.get(asm.R1, mssAt, asm.DWord)
	p.add(
		asm.LoadMem(asm.R2, entry, valueMSS, asm.Word),
		asm.JGT.Reg(asm.R1, asm.R2, fail),
		asm.LoadMem(asm.R4, entry, valueMaxIP, asm.Word),
		asm.LoadMem(asm.R1, ctx, skbGSOSize, asm.Word),
		asm.JNE.Imm(asm.R1, 0, "super"),
	)
	p.get(asm.R3, ipLenAt, asm.DWord)
	p.add(asm.JGT.Reg(asm.R3, asm.R4, fail), asm.Add.Imm(asm.R3, header.EthernetLen))
	p.set(framesAt, 1, asm.DWord)
	p.put(bytesAt, asm.R3, asm.DWord)
	p.add(asm.Ja.Label("fits"))

	// Only superframes of TCP are forwarded whole. R1 has the payload of each segment.
	p.at("super")
	p.get(asm.R2, protoAt, asm.DWord)
	p.add(asm.JNE.Imm(asm.R2, int32(header.ProtoTCP), fail))
	p.get(asm.R5, l4OffAt, asm.DWord)
	p.get(asm.R2, hdrLenAt, asm.DWord)
	p.add(
		asm.Add.Reg(asm.R5, asm.R2),
		asm.Sub.Imm(asm.R5, off), // headers of IP and TCP
		asm.Mov.Reg(asm.R2, asm.R5),
		asm.Add.Reg(asm.R2, asm.R1),
		asm.JGT.Reg(asm.R2, asm.R4, fail),
	)
	p.get(asm.R3, ipLenAt, asm.DWord)
	if limited {
		p.add(
			asm.LoadMem(asm.R2, entry, valueMaxSuper, asm.Word),
			asm.Mov.Reg(asm.R4, asm.R3),
			asm.Add.Imm(asm.R4, header.EthernetLen),
			asm.JGT.Reg(asm.R4, asm.R2, fail),
		)
	}
	p.add(
		asm.JLE.Reg(asm.R3, asm.R5, fail),
		asm.Sub.Reg(asm.R3, asm.R5), // payload
		asm.Mov.Reg(asm.R2, asm.R3),
		asm.Add.Reg(asm.R2, asm.R1),
		asm.Sub.Imm(asm.R2, 1),
		asm.Div.Reg(asm.R2, asm.R1), // segments
		asm.Add.Imm(asm.R5, header.EthernetLen),
		asm.Mul.Reg(asm.R5, asm.R2),
		asm.Add.Reg(asm.R5, asm.R3),
	)
	p.put(framesAt, asm.R2, asm.DWord)
	p.put(bytesAt, asm.R5, asm.DWord)
	p.at("fits")
}

// count adds to the counters of the entry.
func (p *program) count(m *ebpf.Map) {
	p.add(asm.LoadMem(asm.R1, entry, valueSlot, asm.Word))
	p.put(indexAt, asm.R1, asm.Word)
	p.look(m, indexAt, "counted")
	p.get(asm.R1, framesAt, asm.DWord)
	p.get(asm.R2, bytesAt, asm.DWord)
	p.add(asm.AddAtomic.Mem(asm.R0, asm.R1, asm.DWord, counterFrames), asm.AddAtomic.Mem(asm.R0, asm.R2, asm.DWord, counterBytes))
	p.at("counted")
}

// spoilt writes down, at the place lost, the end of a packet that has been changed and cannot be sent on.
func (p *program) spoilt(counters *ebpf.Map) {
	p.at("lost")
	p.add(asm.LoadMem(asm.R1, entry, valueSlot, asm.Word))
	p.put(indexAt, asm.R1, asm.Word)
	p.look(counters, indexAt, "gone")
	p.get(asm.R1, framesAt, asm.DWord)
	p.add(asm.AddAtomic.Mem(asm.R0, asm.R1, asm.DWord, counterLost))
	p.at("gone")
	p.add(asm.Mov.Imm(asm.R0, shoot), asm.Return())
}

// load has the kernel verify the program and keep it.
func (p *program) load(name string) (*ebpf.Program, error) {
	return ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: name, Type: ebpf.SchedCLS, License: "Apache-2.0", Instructions: p.Instructions,
	})
}
