// Package apitest provides a Node for tests of what speaks the API: it serves what the test puts into it, on a
// real unix socket if wanted.
//
// Concurrency: a Node may be used by many goroutines at once. Serve runs the server in one goroutine
// ("api server") and joins it at the end of the test. Product code must not import this package.
package apitest
