package addr

import (
	"fmt"
	"strconv"
)

// VNI is a VXLAN network identifier: an unsigned number of 24 bits (RFC 7348, section 5). A value of
// this type that came from NewVNI or ParseVNI is in range.
type VNI uint32

// MaxVNI is the largest VNI, 2^24-1.
const MaxVNI VNI = 1<<24 - 1

// NewVNI checks that n fits in 24 bits and is not 0, which several implementations treat as "none".
func NewVNI(n uint64) (VNI, error) {
	if n == 0 || n > uint64(MaxVNI) {
		return 0, fmt.Errorf("VNI %d is out of range: choose a number from 1 to %d (24 bits, RFC 7348)", n, MaxVNI)
	}
	return VNI(n), nil
}

// ParseVNI reads a VNI in decimal.
func ParseVNI(s string) (VNI, error) {
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("VNI %q is not a number: choose a number from 1 to %d", s, MaxVNI)
	}
	return NewVNI(n)
}

func (v VNI) String() string { return strconv.FormatUint(uint64(v), 10) }
