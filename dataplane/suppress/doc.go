// Package suppress answers ARP requests and IPv6 neighbor solicitations from the neighbour table, so that they
// need not be flooded to every VTEP of the network.
//
// It answers only what the owner of the address would be sure to answer in the same way. Whatever else there is
// goes on to the network as it is: not to answer costs a flooded frame, a wrong answer cuts a station off. In
// particular it leaves alone
//
//   - requests to one station: they ask whether that station is still there, which no table knows
//     (RFC 1122, section 2.3.2.1; RFC 4861, section 7.3);
//   - announcements, which are for all to hear (RFC 5227, section 2.3);
//   - whoever asks for an address that is its own by the table, so that duplicate address detection (RFC 5227,
//     section 2.1; RFC 4862, section 5.4) meets the answers of the real network only. It does hear from the
//     table that an address belongs to someone else;
//   - solicitations for a link-local address. Routers are known by theirs, and an answer has to say whether it
//     comes from a router: a wrong "no" would strike it off the asker's list (RFC 4861, section 7.2.5).
//
// Announce makes what a station that takes over an address tells its neighbours.
//
// Answer and Announce are pure functions that do not allocate, safe for concurrent use. There are no goroutines. The
// package imports dataplane/addr, checksum, fdb and header of this module, and nothing from outside dataplane.
package suppress
