// Command layout checks the structure of the module: which package may import which, how packages
// are documented, and what product code must not hold. It prints one line a finding,
//
//	path:line: what is wrong; what to do
//
// and exits 1 if there is any, 2 if the tree could not be read. `make lint` runs it; by hand:
//
//	go run ./.ci/layout [module folder]
//
// The rules are data, in rules.go. They are read off the source of every file, whatever its build
// constraints, so that a wrong import in a file for another system is found too.
//
// It lives under .ci because a leading dot keeps a package out of `./...`: it is built, tested and
// shipped with nothing of the product, no product package can import it by an oversight, and the
// top-level folders stay the ones of the design. The price is that tools must be given its path by
// name, which the Makefile does.
//
// It must import nothing but the standard library: it has to run on a tree whose packages do not
// compile. There are no goroutines.
package main
