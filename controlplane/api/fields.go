package api

import (
	"fmt"
	"net"
	"net/netip"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/overlayd/overlayd/dataplane/addr"
	"github.com/overlayd/overlayd/dataplane/mtu"
)

const (
	maxName      = 63   // bytes of a name, as RFC 1123 has it for a label
	maxToken     = 256  // bytes of a join token, which has about a hundred
	maxHost      = 253  // bytes of a host name, RFC 1035 section 2.3.4
	maxInterface = 15   // bytes of the name of an interface, IFNAMSIZ without its NUL
	maxFile      = 255  // bytes of the name of a file, NAME_MAX
	maxPath      = 4095 // bytes of a path, PATH_MAX without its NUL
	maxShown     = 40   // bytes of a value that an error repeats

	minMTU  = 68    // the least that IPv4 works with, RFC 791
	minMTU6 = 1280  // the least that IPv6 works with, RFC 8200 section 5
	maxMTU  = 65485 // what fits into the largest datagram with the headers of VXLAN over IPv4
)

var (
	namePattern = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)
	idPattern   = regexp.MustCompile(`^[0-9a-f]{16}$`)
	hostPattern = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9_-]*[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9_-]*[A-Za-z0-9])?)*\.?$`)
	filePattern = regexp.MustCompile(`^[A-Za-z0-9._@:+][A-Za-z0-9._@:+-]*$`)
	pathPattern = regexp.MustCompile(`^/[A-Za-z0-9._@:+/-]+$`)
	linkPattern = regexp.MustCompile(`^[A-Za-z0-9._][A-Za-z0-9._-]*$`)
	tokenStart  = "OVLTKN-1-"
	tokenRest   = regexp.MustCompile(`^[A-Za-z0-9_-]+$`)
)

// show repeats a value in an error: quoted, and not all of a long one.
func show(s string) string {
	if len(s) > maxShown {
		return fmt.Sprintf("%+q... (%d bytes)", s[:maxShown], len(s))
	}
	return fmt.Sprintf("%+q", s)
}

func isID(s string) bool { return idPattern.MatchString(s) }

// checkName checks the name of something new; empty means that none is wanted.
func checkName(field, s string) error {
	if s == "" {
		return nil
	}
	if len(s) > maxName || !namePattern.MatchString(s) {
		return invalid(field, "%s is no name; use 1 to %d lower-case letters, digits and hyphens, with no hyphen at either end", show(s), maxName)
	}
	if isID(s) {
		return invalid(field, "%s has the form of an ID; choose a name that cannot be taken for one", show(s))
	}
	return nil
}

// checkRef checks what names something that there is.
func checkRef(field, s string) error {
	if s == "" {
		return invalid(field, "it is missing; give a name or an ID")
	}
	if len(s) > maxName || !namePattern.MatchString(s) {
		return invalid(field, "%s is neither a name nor an ID; see the listing for those that there are", show(s))
	}
	return nil
}

// checkWord checks a field that is empty or one of some words.
func checkWord(field, s string, words ...string) error {
	if s == "" || slices.Contains(words, s) {
		return nil
	}
	return invalid(field, "%s is not known; choose %s", show(s), strings.Join(words, " or "))
}

func atMost(field string, n, most int) error {
	if n > most {
		return invalid(field, "%d elements are too many; give at most %d", n, most)
	}
	return nil
}

func notTwice(field string, before []string, s string) error {
	if slices.Contains(before, s) {
		return invalid(field, "%s is there twice; give it once", s)
	}
	return nil
}

// checkToken checks the form of a join token. No error repeats any of it.
func checkToken(field, s string) error {
	const copyIt = "; copy all of what `overlayctl token show` prints on a manager"
	switch {
	case s == "":
		return invalid(field, "it is missing; give what `overlayctl token show` prints on a manager")
	case len(s) > maxToken:
		return invalid(field, "%d bytes are too many for a token"+copyIt, len(s))
	case !strings.HasPrefix(s, tokenStart):
		return invalid(field, "a token begins with %s"+copyIt, tokenStart)
	case !tokenRest.MatchString(s[len(tokenStart):]):
		return invalid(field, "it is cut short, or has characters that no token has"+copyIt)
	}
	return nil
}

// checkRemotes checks where managers are to be asked.
func checkRemotes(field string, list []string) error {
	if len(list) == 0 {
		return invalid(field, "it is missing; give the address of a manager, as in 192.0.2.1:7789")
	}
	if err := atMost(field, len(list), maxRemotes); err != nil {
		return err
	}
	for i, s := range list {
		one := element(field, i)
		host, port, err := net.SplitHostPort(s)
		if err != nil || len(s) > maxHost+len(":65535") {
			return invalid(one, "%s is not host:port; write it as in 192.0.2.1:7789 or [2001:db8::1]:7789", show(s))
		}
		// ParseUint takes no sign.
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return invalid(one, "%s has no port from 1 to 65535; write it as in 192.0.2.1:7789", show(s))
		}
		if a, err := netip.ParseAddr(host); err == nil {
			if a.IsUnspecified() || a.IsMulticast() {
				return invalid(one, "%v is not the address of a host; give that of a manager", a)
			}
		} else if len(host) > maxHost || !hostPattern.MatchString(host) {
			return invalid(one, "%s has neither an IP address nor a host name before its port; write it as in 192.0.2.1:7789", show(s))
		}
		if err := notTwice(one, list[:i], s); err != nil {
			return err
		}
	}
	return nil
}

// checkAddress returns an address that one interface can have.
func checkAddress(field, s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	switch {
	case s == "":
		return a, invalid(field, "it is empty; give an IP address, or leave the element out")
	case err != nil:
		return a, invalid(field, "%s is not an IP address; write it as in 192.0.2.1 or 2001:db8::1, without prefix length or port", show(s))
	case a.Zone() != "":
		return a, invalid(field, "%s has a zone, which means something to one host only; give an address without", show(s))
	case a.Is4In6():
		return a, invalid(field, "%s is an IPv4 address in the form of IPv6; write %v", show(s), a.Unmap())
	case a.IsUnspecified(), a.IsMulticast(), a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return a, invalid(field, "%v is not the address of one interface; give a unicast address", a)
	case a.IsLinkLocalUnicast():
		return a, invalid(field, "%v is link-local, which means something on one link only; give another address", a)
	}
	return a, nil
}

// notUnicast are the blocks that no network may reach into (RFC 6890).
var notUnicast = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"), netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("169.254.0.0/16"),
	netip.MustParsePrefix("224.0.0.0/3"), netip.MustParsePrefix("::/8"), netip.MustParsePrefix("fe80::/10"), netip.MustParsePrefix("ff00::/8"),
}

// checkSubnets returns the prefixes of a list, and writes them back in their canonical form.
func checkSubnets(field string, list []string) ([]netip.Prefix, error) {
	if err := atMost(field, len(list), maxIPs); err != nil {
		return nil, err
	}
	var out []netip.Prefix
	for i, s := range list {
		one := element(field, i)
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return nil, invalid(one, "%s is not a prefix; write it as in 10.42.0.0/24 or 2001:db8:42::/64", show(s))
		}
		if p.Addr().Is4In6() {
			return nil, invalid(one, "%s is an IPv4 address in the form of IPv6; write it as in 10.42.0.0/24", show(s))
		}
		if p != p.Masked() {
			return nil, invalid(one, "%v has bits set behind its prefix; write %v", p, p.Masked())
		}
		if p.Addr().BitLen()-p.Bits() < 2 {
			return nil, invalid(one, "%v has no room for two hosts; choose at most /%d", p, p.Addr().BitLen()-2)
		}
		for _, bad := range notUnicast {
			if p.Overlaps(bad) {
				return nil, invalid(one, "%v reaches into %v, whose addresses no host can have; choose another one", p, bad)
			}
		}
		for _, q := range out {
			if q.Addr().Is4() == p.Addr().Is4() {
				return nil, invalid(one, "%v is the second prefix of its family, after %v; give at most one of IPv4 and one of IPv6", p, q)
			}
		}
		out = append(out, p)
		list[i] = p.String()
	}
	return out, nil
}

// checkGateways returns the gateways at the places of their subnets, "" for none; nil if there are none at all.
func checkGateways(field string, list []string, subnets []netip.Prefix) ([]string, error) {
	if err := atMost(field, len(list), maxIPs); err != nil || len(list) == 0 {
		return nil, err
	}
	if len(subnets) == 0 {
		return nil, invalid(field, "there is no subnet that it could be in; give subnets too")
	}
	out := make([]string, len(subnets))
	for i, s := range list {
		one := element(field, i)
		a, err := checkAddress(one, s)
		if err != nil {
			return nil, err
		}
		at := slices.IndexFunc(subnets, func(p netip.Prefix) bool { return p.Contains(a) })
		switch {
		case at < 0:
			return nil, invalid(one, "%v is in none of the subnets; choose an address of %v", a, subnets[min(i, len(subnets)-1)])
		case out[at] != "":
			return nil, invalid(one, "%v is the second gateway in %v, after %s; give one", a, subnets[at], out[at])
		case a == subnets[at].Addr() || a.Is4() && a == lastOf(subnets[at]):
			return nil, invalid(one, "%v stands for all of %v; choose another address of it", a, subnets[at])
		}
		out[at] = a.String()
	}
	return out, nil
}

// lastOf returns the last address of an IPv4 prefix, its broadcast address.
func lastOf(p netip.Prefix) netip.Addr {
	b := p.Addr().As4()
	for i := p.Bits(); i < 32; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	return netip.AddrFrom4(b)
}

func checkVNI(field string, n uint32) error {
	if n == 0 {
		return nil
	}
	if _, err := addr.NewVNI(uint64(n)); err != nil {
		return invalid(field, "%w, or leave it out to have one chosen", err)
	}
	return nil
}

func checkMTU(field string, n uint32, subnets []netip.Prefix) error {
	if n == 0 {
		return nil
	}
	if n < minMTU || n > maxMTU {
		return invalid(field, "%d is out of range; choose from %d to %d, or leave it out to have it derived from the underlay", n, minMTU, maxMTU)
	}
	for _, p := range subnets {
		if p.Addr().Is6() && n < minMTU6 {
			return invalid(field, "%d is too small for IPv6; choose at least %d", n, minMTU6)
		}
	}
	return nil
}

// checkMSS looks at an MSS that is fixed, and has to fit into an MTU that is fixed too.
func checkMSS(field string, n, fixedMTU uint32) error {
	if n == 0 {
		return nil
	}
	if err := mtu.CheckMSS(int64(n), mtu.OverlayMTU(fixedMTU)); err != nil {
		return invalid(field, "%w", err)
	}
	return nil
}

// checkMAC returns a MAC address in its canonical form; empty stays empty.
func checkMAC(field, s string) (string, error) {
	if s == "" {
		return "", nil
	}
	m, err := addr.ParseMAC(s)
	switch {
	case err != nil:
		return "", invalid(field, "%s is not a MAC address; write six bytes as in 02:42:0a:2a:00:0a", show(s))
	case m.IsZero() || m.IsMulticast():
		return "", invalid(field, "%v is not the address of one interface; choose one whose first byte is even, such as 02:42:0a:2a:00:0a", m)
	}
	return m.String(), nil
}

// checkNetNS checks what names a network namespace: a file in /run/netns or an absolute path.
func checkNetNS(field, s string) error {
	const forms = "give a name of /run/netns, such as c1, or an absolute path, such as /proc/4711/ns/net"
	switch {
	case s == "":
		return invalid(field, "it is missing; "+forms)
	case s[0] == '/':
		if len(s) > maxPath || !pathPattern.MatchString(s) || path.Clean(s) != s {
			return invalid(field, "%s is not a plain absolute path; "+forms, show(s))
		}
	case len(s) > maxFile, !filePattern.MatchString(s), s == ".", s == "..":
		return invalid(field, "%s names no network namespace; "+forms, show(s))
	}
	return nil
}

// checkInterface checks the name of an interface that is to be made; empty means the daemon's choice.
func checkInterface(field, s string) error {
	switch {
	case s == "":
		return nil
	case len(s) > maxInterface, !linkPattern.MatchString(s), s == ".", s == "..":
		return invalid(field, "%s cannot be the name of an interface; use 1 to %d letters, digits, dots, hyphens and underscores, with no hyphen first", show(s), maxInterface)
	case s == "lo", s == "all", s == "default":
		return invalid(field, "%s has a meaning of its own to the kernel; choose another name, such as eth0", show(s))
	}
	return nil
}
