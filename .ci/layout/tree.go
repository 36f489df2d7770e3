package main

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/scanner"
	"go/token"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Finding is one thing that is wrong, at one place.
type Finding struct {
	Path string // relative to the module, slashes
	Line int    // from 1
	Text string // what is wrong; what to do
}

func (f Finding) String() string { return fmt.Sprintf("%s:%d: %s", f.Path, f.Line, f.Text) }

// tree is a module as the checks see it.
type tree struct {
	module   string // module path
	folders  []string
	packages []*pkg // by folder
	sources  []*source
	findings []Finding
}

// pkg is the Go files of one folder, external tests among them.
type pkg struct {
	dir   string
	name  string // without the _test of an external test package
	files []*source
}

// source is one .go or .s file.
type source struct {
	path      string
	dir       string
	lines     int
	test      bool // *_test.go
	generated bool
	fset      *token.FileSet
	ast       *ast.File // nil for assembly
	imports   []imported
}

// imported is one import declaration.
type imported struct {
	path string
	name string // as written in front of a selector; "." and "_" as declared
	line int
}

// generatedLine is the mark of https://go.dev/s/generatedcode.
var generatedLine = regexp.MustCompile(`(?m)^// Code generated .* DO NOT EDIT\.\r?$`)

// report adds a finding at a position of s.
func (t *tree) report(s *source, line int, format string, args ...any) {
	t.findings = append(t.findings, Finding{s.path, line, fmt.Sprintf(format, args...)})
}

// local cuts the module path off an import path. ok is false for imports from elsewhere.
func (t *tree) local(importPath string) (dir string, ok bool) {
	return strings.CutPrefix(importPath, t.module+"/")
}

// line is the line of a node of s.
func (s *source) line(n ast.Node) int { return s.fset.Position(n.Pos()).Line }

// load reads and parses the module at the root of fsys. A file that does not parse is a finding,
// not an error, so that the rest is checked all the same.
func load(fsys fs.FS) (*tree, error) {
	mod, err := fs.ReadFile(fsys, "go.mod")
	if err != nil {
		return nil, fmt.Errorf("reading the module's path: %w; run it in the module's folder or name that folder", err)
	}
	m := regexp.MustCompile(`(?m)^module\s+(\S+)`).FindSubmatch(mod)
	if m == nil {
		return nil, errors.New("go.mod has no module line; add one")
	}
	t := &tree{module: strings.Trim(string(m[1]), `"`)}
	err = fs.WalkDir(fsys, ".", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return fmt.Errorf("reading %s: %w", p, err)
		}
		if d.IsDir() {
			if skipFolder(p) {
				return fs.SkipDir
			}
			t.folders = append(t.folders, p)
			return nil
		}
		if ext := path.Ext(p); ext != ".go" && ext != ".s" || !d.Type().IsRegular() {
			return nil
		}
		text, err := fs.ReadFile(fsys, p)
		if err != nil {
			return fmt.Errorf("reading %s: %w", p, err)
		}
		t.add(p, text)
		return nil
	})
	return t, err
}

// skipFolder says which folders hold none of the module's packages. Those are the ones that the go
// command passes over too, this program's own home aside.
func skipFolder(p string) bool {
	base := path.Base(p)
	switch {
	case p == "." || p == ".ci":
		return false
	case p == "bin":
		return true
	}
	return base == "vendor" || base == "testdata" || base[0] == '.' || base[0] == '_'
}

// add parses one file into the tree.
func (t *tree) add(p string, text []byte) {
	s := &source{path: p, dir: path.Dir(p), lines: bytes.Count(text, []byte("\n"))}
	if len(text) > 0 && text[len(text)-1] != '\n' {
		s.lines++
	}
	s.test = strings.HasSuffix(p, "_test.go")
	t.sources = append(t.sources, s)
	if path.Ext(p) == ".s" {
		s.generated = generatedLine.Match(text)
		return
	}
	s.fset = token.NewFileSet()
	file, err := parser.ParseFile(s.fset, p, text, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		line := 1
		if list := (scanner.ErrorList)(nil); errors.As(err, &list) && len(list) > 0 {
			line, err = list[0].Pos.Line, errors.New(list[0].Msg)
		}
		t.report(s, line, "it does not parse: %v; correct the syntax", err)
		return
	}
	s.ast, s.generated = file, ast.IsGenerated(file)
	for _, spec := range file.Imports {
		importPath, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			continue // the parser has looked at it already
		}
		name := path.Base(importPath)
		if spec.Name != nil {
			name = spec.Name.Name
		}
		s.imports = append(s.imports, imported{importPath, name, s.line(spec)})
	}
	t.into(s)
}

// into puts a parsed file into its package.
func (t *tree) into(s *source) {
	name := s.ast.Name.Name
	if s.test {
		name = strings.TrimSuffix(name, "_test")
	}
	i := slices.IndexFunc(t.packages, func(p *pkg) bool { return p.dir == s.dir })
	if i < 0 {
		t.packages = append(t.packages, &pkg{dir: s.dir, name: name})
		i = len(t.packages) - 1
	}
	p := t.packages[i]
	p.files = append(p.files, s)
}

// sorted returns the findings in the order of the tree.
func (t *tree) sorted() []Finding {
	slices.SortStableFunc(t.findings, func(a, b Finding) int {
		return cmp.Or(strings.Compare(a.Path, b.Path), cmp.Compare(a.Line, b.Line))
	})
	return t.findings
}
