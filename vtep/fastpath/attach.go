package fastpath

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// Hook is a program that is attached to a device. It goes with the process, at the latest.
type Hook struct {
	prog *ebpf.Program
	link link.Link
}

// Close detaches the program.
func (h *Hook) Close() error {
	var errs []error
	if h.link != nil {
		errs = append(errs, h.link.Close())
	}
	if h.prog != nil {
		errs = append(errs, h.prog.Close())
	}
	h.link, h.prog = nil, nil
	return errors.Join(errs...)
}

// Attached reports whether the device is still there. One with its index may be another.
func (h *Hook) Attached() bool {
	info, err := h.link.Info()
	if err != nil || info.TCX() == nil {
		return false
	}
	return info.TCX().Ifindex != 0
}

// NewOutlet returns a number for a TAP, which is in the keys of what leaves there. It is not 0, and no other is the same.
func (t *Table) NewOutlet() uint32 { return t.outlets.Add(1) }

// AttachTAP lets what the kernel gives to the TAP with this index, known by the number outlet, leave by the fast path. relay
// is the index of the device that leads out of the sandbox in which the TAP is, or 0. The calling thread is in the TAP's
// network namespace.
func (t *Table) AttachTAP(outlet uint32, index, relay int) (*Hook, error) {
	return attach(t.leaving(outlet, relay), "overlayd_leave", index, ebpf.AttachTCXEgress)
}

// AttachUnderlay lets what comes in by an underlay device arrive by the fast path. The calling thread is in the network
// namespace of the host.
func (t *Table) AttachUnderlay(index int) (*Hook, error) {
	return attach(t.arriving(), "overlayd_arrive", index, ebpf.AttachTCXIngress)
}

// AttachUplink sends on what comes by a relay to its end on the host, in whose network namespace the calling thread is.
func AttachUplink(index int) (*Hook, error) {
	return attach(uplink(), "overlayd_uplink", index, ebpf.AttachTCXIngress)
}

// AttachDownlink gives what comes by a relay to its end in the sandbox to the TAP there. The calling thread is in the
// sandbox.
func AttachDownlink(index, tap int) (*Hook, error) {
	return attach(downlink(tap), "overlayd_down", index, ebpf.AttachTCXIngress)
}

func attach(p *program, name string, index int, at ebpf.AttachType) (*Hook, error) {
	prog, err := p.load(name)
	if err != nil {
		return nil, fmt.Errorf("loading the BPF program %s, which needs CAP_BPF and CAP_NET_ADMIN: %w", name, err)
	}
	l, err := link.AttachTCX(link.TCXOptions{Interface: index, Program: prog, Attach: at})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("attaching the BPF program %s to the device with index %d (tcx, Linux 6.6): %w", name, index, err), prog.Close())
	}
	return &Hook{prog: prog, link: l}, nil
}
