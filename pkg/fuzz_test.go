package pkg_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"strings"
	"testing"
)

// Each parser of what comes from outside has a fuzz target, and each target has a seed
// outside of any loop, so that no empty list can leave it without one.
func TestFuzzTargetsHaveSeeds(t *testing.T) {
	seeds := map[string]int{}
	for _, dir := range []string{"*", "../cmd/*", "../test/*", "../test/*/*"} {
		files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range files {
			file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			for _, decl := range file.Decls {
				if f, ok := decl.(*ast.FuncDecl); ok && f.Recv == nil && strings.HasPrefix(f.Name.Name, "Fuzz") {
					seeds[filepath.Base(filepath.Dir(name))+"."+f.Name.Name] = seedsOf(f.Body)
				}
			}
		}
	}
	for target, n := range seeds {
		if n == 0 {
			t.Errorf("%s has no seed outside of a loop", target)
		}
	}
	for what, target := range map[string]string{
		"config of an image": "osimage.FuzzConfig", "configuration": "config.FuzzLoad", "index": "fetch.FuzzIndex", "archive": "fetch.FuzzArchive",
		"manifest": "osimage.FuzzParse", "policy": "config.FuzzPolicy", "what the gate expects": "config.FuzzHealth", "greenboot.conf": "probe.FuzzDisabled", "statement": "osimage.FuzzParseStatement", "bundle": "trust.FuzzBundle",
		"manifest of signatures": "osimage.FuzzSignatureLayers", "signature payload": "trust.FuzzVerify", "env": "grubenv.FuzzParse",
		"labels of a container": "workload.FuzzDeclare", "health check of nerdctl": "workload.FuzzHealthCheck", "hosts of a container": "workload.FuzzHosts", "reference": "fetch.FuzzReference", "ledger": "ledger.FuzzParse", "record": "proof.FuzzParse", "pack": "assemble.FuzzSegments",
	} {
		if _, ok := seeds[target]; !ok {
			t.Errorf("%s: there is no %s", what, target)
		}
	}
}

// seedsOf counts the calls of f.Add that run whenever the target does.
func seedsOf(body *ast.BlockStmt) int {
	n := 0
	for _, s := range body.List {
		expr, ok := s.(*ast.ExprStmt)
		if !ok {
			continue
		}
		call, ok := expr.X.(*ast.CallExpr)
		if !ok {
			continue
		}
		if method, ok := call.Fun.(*ast.SelectorExpr); ok && method.Sel.Name == "Add" {
			n++
		}
	}
	return n
}
