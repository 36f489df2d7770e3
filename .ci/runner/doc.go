// Command runner runs `go test` several times and holds it to account for what did not run.
//
//	go run ./.ci/runner [-strict] -- 'ARGS OF GO TEST' ['ARGS OF GO TEST' ...]
//
// Each argument is one pass: what would follow `go test` on the command line, split at spaces. The
// passes run one after another, all of them, also when one fails. What is printed is what `go test`
// prints: one line a package, and the output of tests that failed.
//
// A test counts as left out if it skipped itself in every pass that it was part of; a test of
// allocations that skips under the race detector but runs without has run. What was left out is
// said in one line at the end. With -strict it is listed test by test and is a failure: a test that
// has quietly stopped running protects nothing. So is a pass in which no test ran at all.
//
// The exit code is 0 if all is well, 1 if a test failed or (with -strict) was left out, 2 if the
// arguments are wrong. On SIGINT or SIGTERM, go test is interrupted too and given time to let tests
// clean up.
//
// Goroutines: none beyond those of os/exec and os/signal. It must import nothing but the standard
// library. It lives under .ci for the reason given in .ci/layout.
package main
