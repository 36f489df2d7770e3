// Package identity says who is who in a cluster: the cluster's certificate authority, the keys and certificates
// of nodes, the tokens by which hosts join, and the TLS configurations that hold all of them to it.
//
// A node is known by its certificate. Its ID, role and cluster stand there as one URI (RFC 5280, section 4.2.1.6),
// overlayd://CLUSTER/ROLE/NODE, and nowhere else: host names and addresses prove nothing here. Everything is
// ECDSA on P-256 (FIPS 186-5) and TLS 1.3 (RFC 8446). Sessions are not resumed, so that every connection is
// checked against what is true at that moment.
//
// A Token names the authority by its digest, so that a host which has nothing but the token knows the cluster
// before it sends the secret. A manager compares that secret in constant time.
//
// A certificate proves what was true when it was issued. Whether its node is a member still, and has that role
// still, is for the caller to ask the state.
//
// Keys and secrets are not printed: Authority, Key, Credentials, Current and Token say only what may be known,
// whatever the verb. fmt cannot ask a value in an unexported field of a foreign struct for its text, so that a
// Token must not be printed as part of one.
//
// The package starts no goroutines. All types are safe for use by several. It imports statev1, for the roles, and
// nothing else of this module, least of all consensus, gossip and state, which it meets in controlplane.
package identity
