package tap

import (
	"errors"
	"fmt"
	"net"
	"os"

	"github.com/songgao/water"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/dataplane/frame"
	"github.com/overlayd/overlayd/dataplane/header"
)

// waterQueue moves one plain frame a call.
type waterQueue struct {
	dev *water.Interface
	fd  int
	mem []byte
	out []byte
}

func openWater(c Config) (*Device, error) {
	// The library attaches to an interface that exists, so look first. Whoever makes one in between has it
	// opened twice, which the driver refuses as busy. /sys would show the namespace that it was mounted in,
	// which need not be this one.
	if _, err := net.InterfaceByName(c.Name); err == nil {
		return nil, createError(c.Name, unix.EEXIST)
	}
	dev, err := water.New(water.Config{
		DeviceType:             water.TAP,
		PlatformSpecificParams: water.PlatformSpecificParams{Name: c.Name},
	})
	if err != nil {
		// The library wraps the errors of ioctl, and those of open it returns bare.
		var ioctl *os.SyscallError
		if errors.As(err, &ioctl) {
			return nil, createError(c.Name, ioctl.Err)
		}
		return nil, openError(err)
	}
	file, ok := dev.ReadWriteCloser.(*os.File)
	if !ok {
		return nil, errors.Join(fmt.Errorf("opening TAP %s: water gave a %T, which cannot be waited for", c.Name, dev.ReadWriteCloser), dev.Close())
	}
	q := &waterQueue{
		dev: dev,
		mem: make([]byte, frame.Headroom+maxFrame),
		out: make([]byte, 0, maxFrame),
	}
	raw, err := file.SyscallConn()
	if err == nil {
		err = raw.Control(func(fd uintptr) {
			q.fd = int(fd)
			unix.CloseOnExec(q.fd) // a child that inherits it would keep the interface alive
		})
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("opening TAP %s: %w", c.Name, err), dev.Close())
	}
	return &Device{Name: c.Name, Backend: "water", Queues: []Queue{q}, closers: []func() error{dev.Close}}, nil
}

func (q *waterQueue) FD() int { return q.fd }

func (q *waterQueue) Read(frames []frame.Frame) (int, error) {
	n, err := q.dev.Read(q.mem[frame.Headroom:])
	if err != nil {
		return 0, err
	}
	frames[0] = frame.Frame{Buf: q.mem[:frame.Headroom+n]}
	return 1, nil
}

func (q *waterQueue) Write(_ *header.VirtioNet, pieces [][]byte) error {
	f := pieces[0]
	if len(pieces) > 1 {
		q.out = q.out[:0]
		for _, p := range pieces {
			q.out = append(q.out, p...)
		}
		f = q.out
	}
	if _, err := q.dev.Write(f); err != nil {
		return errnoOf(err)
	}
	return nil
}

// errnoOf finds the number of an error. It is apart from Write, which would else allocate for it each time.
func errnoOf(err error) error {
	var errno unix.Errno
	if errors.As(err, &errno) {
		return errno
	}
	return unix.EIO
}
