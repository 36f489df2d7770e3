package main

import (
	"go/ast"
	"go/token"
	"io/fs"
	"path"
	"slices"
	"strings"
)

// Check reads the module at the root of fsys and returns what is wrong with its structure, in the
// order of paths and lines. The error says why the tree could not be read.
func Check(fsys fs.FS) ([]Finding, error) {
	t, err := load(fsys)
	if err != nil {
		return nil, err
	}
	t.checkFolders()
	for _, p := range t.packages {
		t.checkDoc(p)
	}
	for _, s := range t.sources {
		t.checkLength(s)
		if s.ast == nil {
			continue
		}
		t.checkArrows(s)
		t.checkTestKits(s)
		t.checkDecoder(s)
		t.checkGlobals(s)
		if under(s.dir, "dataplane") && !s.test && !isTestKit(s.dir) {
			t.checkOrder(s)
			t.checkPure(s)
		}
	}
	t.checkDaemon()
	return t.sorted(), nil
}

// under says whether p is dir or lies below it.
func under(p, dir string) bool { return p == dir || strings.HasPrefix(p, dir+"/") }

// top is the first element of a path.
func top(p string) string {
	first, _, _ := strings.Cut(p, "/")
	return first
}

// isTestKit says whether a package ships fakes and builders for tests: its name ends in test.
func isTestKit(dir string) bool {
	return strings.HasSuffix(path.Base(dir), "test")
}

// isDecoder says whether an import path belongs to a packet decoder for people.
func isDecoder(importPath string) bool {
	return slices.ContainsFunc(decoderPaths, func(d string) bool { return under(importPath, d) })
}

// checkFolders finds names that say nothing.
func (t *tree) checkFolders() {
	for _, dir := range t.folders {
		if badFolders[path.Base(dir)] {
			t.findings = append(t.findings, Finding{dir, 1,
				"a folder called " + path.Base(dir) + " does not say what is inside; name it after what it does, or move its content to the packages that need it"})
		}
	}
}

// checkLength finds product files that have grown over maxLines.
func (t *tree) checkLength(s *source) {
	if s.lines > maxLines && !s.test && !s.generated {
		t.report(s, s.lines, "the file has %d lines, %d are allowed; split it by subject", s.lines, maxLines)
	}
}

// checkArrows finds imports that point from a layer to one that it must not know.
func (t *tree) checkArrows(s *source) {
	from := top(s.dir)
	may, known := layers[from]
	if !known {
		t.report(s, s.line(s.ast.Name), "package %s is in none of the module's layers; move it under cmd, dataplane, controlplane, vtep or bench", s.ast.Name.Name)
		return
	}
	for _, i := range s.imports {
		if i.path == t.module {
			t.report(s, i.line, "it imports the module's root, which holds no package; import the package that is meant")
			continue
		}
		to, ok := t.local(i.path)
		if !ok || slices.Contains(may, top(to)) {
			continue
		}
		t.report(s, i.line, "%s must not import %s (%s); %s", from, top(to), i.path, arrowAdvice(from, top(to)))
	}
}

// arrowAdvice says what to do about an arrow between two layers.
func arrowAdvice(from, to string) string {
	switch {
	case from == ".ci":
		return "the checks use the standard library only"
	case from == "dataplane":
		return "pass the value in as an argument, or move this code to " + to
	case to == "bench":
		return "only cmd uses bench: move this code there, or move what it needs down"
	case to == "cmd":
		return "move what it needs from cmd to the layer that owns it"
	}
	return "join the two in cmd, by an interface declared here or by the stream of deltas"
}

// checkTestKits finds product code that uses builders and fakes for tests.
func (t *tree) checkTestKits(s *source) {
	if s.test || isTestKit(s.dir) {
		return
	}
	for _, i := range s.imports {
		if to, ok := t.local(i.path); ok && isTestKit(to) {
			t.report(s, i.line, "product code imports the test kit %s; use it from _test.go files only", to)
		}
	}
}

// checkDecoder finds packet decoders where packets must be fast.
func (t *tree) checkDecoder(s *source) {
	if s.test || isTestKit(s.dir) || !slices.ContainsFunc(decoderFree, func(dir string) bool { return under(s.dir, dir) }) {
		return
	}
	for _, i := range s.imports {
		if isDecoder(i.path) {
			t.report(s, i.line, "%s must not import %s, which allocates for each layer; use dataplane/header here, and decode for people in overlayctl", s.dir, i.path)
		}
	}
}

// checkDaemon finds packet decoders that reach the daemon through the packages that it imports.
func (t *tree) checkDaemon() {
	via := map[string]string{daemonDir: ""} // package -> the one that imports it
	for queue := []string{daemonDir}; len(queue) > 0; queue = queue[1:] {
		dir := queue[0]
		n := slices.IndexFunc(t.packages, func(p *pkg) bool { return p.dir == dir })
		if n < 0 {
			continue
		}
		for _, s := range t.packages[n].files {
			if s.test {
				continue
			}
			for _, i := range s.imports {
				if isDecoder(i.path) && !slices.ContainsFunc(decoderFree, func(free string) bool { return under(dir, free) }) {
					chain := dir
					for p := via[dir]; p != ""; p = via[p] {
						chain = p + " -> " + chain
					}
					t.report(s, i.line, "the daemon gets %s by %s; decode in a package that only overlayctl and bench import", i.path, chain)
				}
				to, ok := t.local(i.path)
				if _, seen := via[to]; ok && !seen {
					via[to] = dir
					queue = append(queue, to)
				}
			}
		}
	}
}

// checkOrder finds imports inside dataplane that do not point downward.
func (t *tree) checkOrder(s *source) {
	from := step(s.dir)
	own, known := dataplaneOrder[from]
	if !known {
		t.report(s, s.line(s.ast.Name), "%s has no place in the order of dataplane; give it one in dataplaneOrder of .ci/layout/rules.go", s.dir)
		return
	}
	for _, i := range s.imports {
		to, ok := t.local(i.path)
		if !ok || !under(to, "dataplane") || isTestKit(to) || step(to) == from {
			continue
		}
		if other, known := dataplaneOrder[step(to)]; known && other >= own {
			t.report(s, i.line, "%s must not import %s, which is not below it; move the shared part down, or join the two in dataplane/forward", s.dir, to)
		}
	}
}

// step is the name under which a package of dataplane stands in dataplaneOrder.
func step(dir string) string { return top(strings.TrimPrefix(dir, "dataplane/")) }

// checkPure finds what ties dataplane to an operating system, a clock or a scheduler.
func (t *tree) checkPure(s *source) {
	for _, i := range s.imports {
		t.checkPureImport(s, i)
	}
	ast.Inspect(s.ast, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.GoStmt:
			t.report(s, s.line(n), "dataplane must not start goroutines; return, and let vtep own the goroutine")
		case *ast.SelectorExpr:
			t.checkPureName(s, n)
		}
		return true
	})
}

// checkPureImport looks at one import of dataplane's product code.
func (t *tree) checkPureImport(s *source, i imported) {
	if _, ok := t.local(i.path); ok || i.path == t.module || isDecoder(i.path) {
		return // looked at elsewhere
	}
	for _, a := range pureAllow {
		if a.path == i.path && (a.dir == "" || a.dir == s.dir) {
			if a.names != nil && i.name == "." {
				t.report(s, i.line, "a dot import of %s hides what is used of it; import it by name", i.path)
			}
			return
		}
	}
	if i.path == "time" && i.name == "." {
		t.report(s, i.line, "a dot import of time hides whether a clock is read; import it by name")
	}
	if strings.Contains(top(i.path), ".") {
		t.report(s, i.line, "dataplane must not import %s: only the standard library and golang.org/x/sys/cpu; move this code to vtep, or to a test", i.path)
		return
	}
	for deny, advice := range pureDeny {
		if under(i.path, deny) {
			t.report(s, i.line, "dataplane must not import %s: it runs without system calls, clocks and logs; %s", i.path, advice)
		}
	}
}

// checkPureName looks at the use of a name of package time, or of a package allowed in part.
func (t *tree) checkPureName(s *source, n *ast.SelectorExpr) {
	x, ok := n.X.(*ast.Ident)
	if !ok {
		return
	}
	k := slices.IndexFunc(s.imports, func(i imported) bool { return i.name == x.Name })
	if k < 0 {
		return
	}
	used := s.imports[k].path
	if used == "time" && clockNames[n.Sel.Name] {
		t.report(s, s.line(n), "dataplane must not use the clock (time.%s); let the caller pass the time in", n.Sel.Name)
	}
	for _, a := range pureAllow {
		if a.path == used && a.dir == s.dir && a.names != nil && !a.names[n.Sel.Name] {
			t.report(s, s.line(n), "dataplane must not use %s.%s: %s", used, n.Sel.Name, pureDeny[used])
		}
	}
}

// checkGlobals finds what runs or changes behind the back of a package's users.
func (t *tree) checkGlobals(s *source) {
	if s.test || s.generated {
		return
	}
	for _, d := range s.ast.Decls {
		switch d := d.(type) {
		case *ast.FuncDecl:
			if d.Recv == nil && d.Name.Name == "init" {
				t.report(s, s.line(d), "init() runs before anyone has asked for it; do this in a constructor or in main, or let a sync.OnceValue do it at first use")
			}
		case *ast.GenDecl:
			if d.Tok == token.VAR {
				t.checkVars(s, d)
			}
		}
	}
}

// checkVars finds exported variables that any importer could change.
func (t *tree) checkVars(s *source, d *ast.GenDecl) {
	for _, spec := range d.Specs {
		v, ok := spec.(*ast.ValueSpec)
		if !ok {
			continue
		}
		for _, name := range v.Names {
			if !name.IsExported() || strings.HasPrefix(name.Name, "Err") || fixedVars[s.dir+"."+name.Name] {
				continue
			}
			t.report(s, s.line(name), "any importer can change the exported variable %s; make it a constant or a function, or do not export it", name.Name)
		}
	}
}

// checkDoc finds packages that do not say, in doc.go and only there, what they are.
func (t *tree) checkDoc(p *pkg) {
	want := "Package " + p.name
	if p.name == "main" {
		want = "Command " + path.Base(p.dir)
	}
	var doc *source
	for _, s := range p.files {
		if path.Base(s.path) == "doc.go" {
			doc = s
			continue
		}
		if s.ast.Doc.Text() == "" {
			continue
		}
		advice := "move it to doc.go, or put a blank line between it and the package clause"
		if s.generated {
			advice = "put a blank line below the comment in the file that it is generated from"
		}
		t.report(s, s.line(s.ast.Doc), "a second package comment; %s", advice)
	}
	if doc == nil {
		t.report(p.files[0], 1, "the package has no doc.go; write %s/doc.go that begins `// %s `", p.dir, want)
		return
	}
	switch text := doc.ast.Doc.Text(); {
	case text == "":
		t.report(doc, doc.line(doc.ast.Name), "doc.go has no package comment; begin it with `// %s `", want)
	case !strings.HasPrefix(text, want+" ") && !strings.HasPrefix(text, want+"\n"):
		t.report(doc, doc.line(doc.ast.Doc), "the package comment must begin with `// %s `, for godoc's index; reword its first sentence", want)
	}
}
