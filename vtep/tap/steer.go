package tap

import (
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/dataplane/header"
)

// Offsets into a frame without VLAN tags, which the kernel keeps beside it.
const (
	typeAt   = header.EthernetLen - 2
	ipAt     = header.EthernetLen
	ports4At = ipAt // behind an IPv4 header as long as it says
	ports6At = ipAt + header.IPv6Len
)

// steer has the kernel choose the queue of a frame by its flow alone: its addresses and, of TCP and UDP, its ports.
// Without, the kernel sends a flow by the queue to which the flow's other direction was last written, which is one
// queue a worker. Then a frame waits behind those of all others. The program holds for all queues of the device.
func steer(fd int) error {
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "overlayd_steer", Type: ebpf.SocketFilter, License: "Apache-2.0", Instructions: steering(),
	})
	if err != nil {
		return fmt.Errorf("loading the BPF program that deals flows out to queues, which needs CAP_BPF: %w", err)
	}
	defer p.Close() // the device keeps it
	if err := unix.IoctlSetPointerInt(fd, unix.TUNSETSTEERINGEBPF, p.FD()); err != nil {
		return fmt.Errorf("setting the BPF program that deals flows out to queues: %w", err)
	}
	return nil
}

// steering returns the program, whose result the kernel takes modulo the number of queues. Fragments have no ports, as
// only the first of them could, and other frames than IPv4 and IPv6 all go by one queue. A read beyond the end of a frame ends
// the program with 0.
func steering() asm.Instructions {
	const sum, next, factor = asm.R7, asm.R8, asm.R9
	// mix takes R0 up into the sum.
	mix := asm.Instructions{asm.Xor.Reg32(sum, asm.R0), asm.Mul.Reg32(sum, factor)}
	load := func(at int32) asm.Instructions {
		return append(asm.Instructions{asm.LoadAbs(at, asm.Word)}, mix...)
	}
	var p asm.Instructions
	p = append(p,
		asm.Mov.Reg(asm.R6, asm.R1), // where LoadAbs expects the packet
		asm.Mov.Imm32(sum, 0),
		asm.LoadImm(factor, 0x9e3779b1, asm.DWord), // 2^32 over the golden ratio, made odd: all bits depend on those below
		asm.LoadAbs(typeAt, asm.Half),
		asm.JEq.Imm(asm.R0, int32(header.EtherTypeIPv6), "ipv6"),
		asm.JNE.Imm(asm.R0, int32(header.EtherTypeIPv4), "done"),
	)
	p = append(p, load(ipAt+12)...)
	p = append(p, load(ipAt+16)...)
	p = append(p,
		asm.LoadAbs(ipAt+6, asm.Half),
		asm.JSet.Imm(asm.R0, 0x3fff, "done"), // more fragments, or an offset
		asm.LoadAbs(ipAt, asm.Byte),
		asm.And.Imm(asm.R0, 0x0f),
		asm.LSh.Imm(asm.R0, 2),
		asm.Mov.Reg(next, asm.R0),
		asm.LoadAbs(ipAt+9, asm.Byte),
		asm.JEq.Imm(asm.R0, int32(header.ProtoTCP), "ports4"),
		asm.JNE.Imm(asm.R0, int32(header.ProtoUDP), "done"),
		asm.LoadInd(asm.R0, next, ports4At, asm.Word).WithSymbol("ports4"),
		asm.Ja.Label("last"),
		asm.LoadAbs(ipAt+16, asm.Word).WithSymbol("ipv6"),
	)
	p = append(p, mix...)
	for _, at := range []int32{20, 32, 36} { // with 16, the halves of both addresses that tell hosts of a subnet apart
		p = append(p, load(ipAt+at)...)
	}
	p = append(p,
		asm.LoadAbs(ipAt+6, asm.Byte),
		asm.JEq.Imm(asm.R0, int32(header.ProtoTCP), "ports6"),
		asm.JNE.Imm(asm.R0, int32(header.ProtoUDP), "done"),
		asm.LoadAbs(ports6At, asm.Word).WithSymbol("ports6"),
	)
	last := mix
	last[0] = last[0].WithSymbol("last")
	p = append(p, last...)
	return append(p,
		// The high bits depend on all others.
		asm.Mov.Reg32(asm.R0, sum).WithSymbol("done"),
		asm.RSh.Imm32(asm.R0, 16),
		asm.Return(),
	)
}
