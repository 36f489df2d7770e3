package mtu

import "fmt"

// MinMSS is the smallest MSS that may be fixed for a network, in bytes. The standards set none: any host takes packets of
// 576 bytes (RFC 791, section 3.1), which makes 536 of TCP where nothing is said (RFC 879; RFC 9293, section 3.7.1), and
// the narrowest link of 68 bytes (RFC 791, section 3.2) leaves 28. But Linux takes an option that says less than 88
// for 88 (TCP_MIN_MSS), so that less would be stated and not be kept.
const MinMSS MSS = 88

// CheckMSS looks at an MSS in bytes that an operator fixes for a network. If the MTU of that is fixed too, and not 0, a
// full segment over IPv4 has to fit into it. The error says what to do and not what it is about.
func CheckMSS(mss int64, fixed OverlayMTU) error {
	most := MSSOf(OverlayMTU(maxPacket-Overhead(IPv4, 0)), IPv4) // which has the smaller overhead
	if mss < int64(MinMSS) || mss > int64(most) {
		return fmt.Errorf("%d is out of range: choose from %d to %d, or leave it out to have it follow what each path leaves", mss, MinMSS, most)
	}
	if fits := MSSOf(fixed, IPv4); fixed != 0 && mss > int64(fits) {
		return fmt.Errorf("%d does not fit: an mtu of %d leaves %d at most; choose that or less, or leave it out", mss, fixed, fits)
	}
	return nil
}
