package inject

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

const (
	// indexAt is where the Ethernet header names the device to leave by: behind the first two bytes of its source
	// address, which say that it is a locally administered one.
	indexAt = 8
	// skbIfindex is the offset of ifindex in struct __sk_buff (include/uapi/linux/bpf.h).
	skbIfindex = 40
)

// instructions are those of the program. It sends every packet out by the device that the packet names: the
// TAP itself, as it is, or another, with headers of the neighbour that the kernel's routes name on that device.
func instructions() asm.Instructions {
	return asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1), // where LoadAbs expects the packet
		asm.LoadMem(asm.R7, asm.R6, skbIfindex, asm.Word),
		asm.LoadAbs(indexAt, asm.Word), // a packet that ends before is dropped
		asm.JEq.Reg(asm.R0, asm.R7, "back"),
		asm.Mov.Reg(asm.R1, asm.R0),
		asm.Mov.Imm(asm.R2, 0), // no next hop stated: the kernel looks up the route
		asm.Mov.Imm(asm.R3, 0),
		asm.Mov.Imm(asm.R4, 0),
		asm.FnRedirectNeigh.Call(),
		asm.Return(),
		asm.Mov.Reg(asm.R1, asm.R7).WithSymbol("back"),
		asm.Mov.Imm(asm.R2, 0),
		asm.FnRedirect.Call(),
		asm.Return(),
	}
}

// load has the kernel verify the program and keep it.
func load() (*ebpf.Program, error) {
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "overlayd_inject", Type: ebpf.SchedCLS, License: "Apache-2.0", Instructions: instructions(),
	})
	if err != nil {
		hint := ""
		if errors.Is(err, ebpf.ErrNotSupported) {
			hint = ": this kernel has no bpf_redirect_neigh (Linux 5.10)"
		}
		return nil, fmt.Errorf("loading the BPF program, which needs CAP_BPF and CAP_NET_ADMIN%s: %w", hint, err)
	}
	return p, nil
}
