// Package apitest provides a Node and a Cluster for tests of what speaks the API: they serve what the test puts
// into them, on a real unix socket if wanted.
//
// Concurrency: a Node and a Cluster may be used by many goroutines at once. Serve runs the server in one goroutine
// ("api server") and joins it at the end of the test. Product code must not import this package.
package apitest
