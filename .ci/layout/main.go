package main

import (
	"fmt"
	"io"
	"io/fs"
	"os"
)

func main() {
	root := "."
	switch len(os.Args) {
	case 1:
	case 2:
		root = os.Args[1]
	default:
		fmt.Fprintln(os.Stderr, "layout: too many arguments; usage: go run ./.ci/layout [module folder]")
		os.Exit(2)
	}
	os.Exit(run(os.DirFS(root), os.Stdout, os.Stderr))
}

// run checks the module at the root of fsys, writes its findings to out, and returns the exit code.
func run(fsys fs.FS, out, errs io.Writer) int {
	findings, err := Check(fsys)
	if err != nil {
		fmt.Fprintf(errs, "layout: %v\n", err)
		return 2
	}
	for _, f := range findings {
		fmt.Fprintln(out, f)
	}
	if len(findings) > 0 {
		fmt.Fprintf(errs, "layout: %d finding(s); the rules and their reasons are in .ci/layout/rules.go\n", len(findings))
		return 1
	}
	return 0
}
