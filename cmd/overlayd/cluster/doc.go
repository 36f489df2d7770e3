// Package cluster joins the control plane of a host to its VTEP, and is what the local API serves of both.
//
// A Follower brings to the VTEP what the control plane knows: at which addresses the other hosts may be reached, and the keys
// that seal path probes between them. A network is there as long as this host has endpoints on
// it, with the other hosts that have some as its peers and their endpoints in its tables. It also remembers, in a file,
// which interfaces were attached on this host, so that a restarted daemon finds them again. Addresses keeps it true at
// which addresses the others look for this host. A Service answers the requests of operators.
//
// Follower.Run takes the updates of the control plane in order. Another goroutine, tidy, which ends with it, tries again what
// failed and tells the managers what they have to know: nothing that they take long to answer holds an update up.
// Addresses.Run looks at the addresses of the host when something of its network changes, and every half minute, and proposes
// others if they have changed.
// The other methods may be called by any number of goroutines; a mutex of the Follower serialises all changes of the VTEP.
package cluster
