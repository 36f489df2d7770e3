// Package linktest gives tests network namespaces and what is to be done in them. Everything ends with the test that
// asked for it, also when it fails.
//
// A test that is in a namespace keeps its thread for itself; what it starts runs elsewhere, unless that is a process.
//
// The package starts no goroutines. It imports nothing of this module, so that package link can use it too, and
// product code must not import it. Linux only.
package linktest
