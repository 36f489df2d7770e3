// Package wire is the one TCP port on which nodes talk to each other: a TLS 1.3 listener that hands each connection to
// the protocol that both ends agreed on (ALPN, RFC 7301), and the way to call such a port.
//
// It gives a connection away only when its handshake is over and Config.Check had no objection. What strangers can
// occupy until then is bounded: the time and the bytes of a handshake, the number of handshakes at once, and the
// connections without a certificate, for each source and in all. Where a bound on all is reached, the oldest gives
// way: an honest handshake is short, one that is held open is not.
//
// Goroutines. accept is Listener.Run itself. handshake is one for each connection until it is handed over or refused.
// stop waits for the end of Run's context. Run joins them all. attempt is one for each address that First tries: it ends when
// its call does, which First's return asks for but does not wait for. A connection that was handed over belongs to whoever
// accepted it.
//
// A Listener is safe for use by several goroutines. The package does not know what a certificate says: it must not
// import identity, nor anything else of this module.
package wire
