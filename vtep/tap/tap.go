package tap

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/dataplane/frame"
	"github.com/overlayd/overlayd/dataplane/header"
)

// Queue is one queue of a TAP.
type Queue interface {
	// FD returns the descriptor to wait on: it can be read from when there is a frame.
	FD() int

	// Read fills frames with what the kernel has, and returns how many. It does not block when FD can be read
	// from; where there is nothing the error is unix.EAGAIN. The memory of the frames belongs to the queue,
	// may be written by the caller, and is valid until the next Read of any queue of the same reader.
	Read(frames []frame.Frame) (int, error)

	// Write gives the kernel one frame, or superframe, made of the pieces in order. It does not block and
	// does not keep the pieces. offload must ask for nothing that the device's Offload does not have. The
	// error is a unix.Errno: EIO when the interface is down. Write must not be called by two goroutines at
	// once.
	Write(offload *header.VirtioNet, pieces [][]byte) error
}

// Config says how to open a TAP.
type Config struct {
	Name   string // of the interface, at most 15 bytes
	Queues int    // wanted; fewer are opened where the kernel cannot do so many
	// Readers is how many goroutines read the queues: queue i belongs to reader i modulo Readers. The queues
	// of one reader share the memory into which they read. 0 = each queue has a reader of its own.
	Readers int
	VNet    bool // use the virtio-net header; otherwise the water backend, which has one queue
	TSO     bool // ask for TCP superframes
	USO     bool // ask for UDP superframes; needs TSO
}

// Offload says what a device takes in Write, and gives in Read.
type Offload struct {
	Checksum bool
	TSO      bool
	USO      bool
}

// Device is an open TAP. It exists as long as it is open: closing it removes the interface.
type Device struct {
	Name    string
	Backend string // "vnet" or "water"
	Offload Offload
	Queues  []Queue
	// Missing tells why something that was asked for is not there, by the names "uso", "tso", "multiqueue" and
	// "steering".
	Missing map[string]error

	closers []func() error
}

// ErrNoDevice means that the TUN/TAP driver is not there.
var ErrNoDevice = errors.New("/dev/net/tun cannot be opened")

// MaxQueues is how many queues the driver gives a device (MAX_TAP_QUEUES in its source).
const MaxQueues = 256

const devTun = "/dev/net/tun"

// maxFrame is the largest frame that a TAP delivers: the largest IP packet behind two VLAN tags, rounded up.
const maxFrame = 65536 + 64

// Open makes the TAP that c describes. It fails if an interface of that name exists, so that nobody's
// interface is taken over.
func Open(c Config) (*Device, error) {
	if err := ValidName(c.Name); err != nil {
		return nil, fmt.Errorf("opening TAP %q: %w", c.Name, err)
	}
	if c.VNet {
		return openVNet(c)
	}
	return openWater(c)
}

// ValidName refuses what the kernel would not call an interface (dev_valid_name), and what it would take for a
// pattern and call the interface something else.
func ValidName(name string) error {
	switch {
	case len(name) == 0 || len(name) >= unix.IFNAMSIZ:
		return fmt.Errorf("the name must have 1 to %d bytes", unix.IFNAMSIZ-1)
	case name == ".", name == "..", strings.ContainsAny(name, "/:% \t\n\v\f\r\x00"):
		return errors.New("the name must not be . or .. and not contain /, :, %, NUL or white space")
	}
	return nil
}

// Close removes the interface. No Read or Write may be under way.
func (d *Device) Close() error {
	var errs []error
	for _, c := range d.closers {
		errs = append(errs, c())
	}
	d.closers = nil
	return errors.Join(errs...)
}

// openError explains why the driver could not be opened.
func openError(err error) error {
	switch {
	case errors.Is(err, os.ErrNotExist), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return fmt.Errorf("%w: %v: load the driver (modprobe tun) or give the container the device", ErrNoDevice, err)
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("%w: %v: run as root, or let this user read and write it", ErrNoDevice, err)
	}
	return fmt.Errorf("%w: %v", ErrNoDevice, err)
}

// createError explains why the interface could not be made. The owner of a taken name is for the caller to
// find out; the error wraps the errno.
func createError(name string, err error) error {
	switch {
	case errors.Is(err, unix.EBUSY), errors.Is(err, unix.EEXIST):
		return fmt.Errorf("creating TAP %s: the name is taken: %w", name, err)
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("creating TAP %s: CAP_NET_ADMIN is missing: run as root or grant it: %w", name, err)
	case errors.Is(err, unix.EINVAL):
		return fmt.Errorf("creating TAP %s: the name is not valid or belongs to an interface that is no TAP: %w", name, err)
	}
	return fmt.Errorf("creating TAP %s: %w", name, err)
}
