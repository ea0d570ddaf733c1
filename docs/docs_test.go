// Package docs_test holds the documents to the code and to each other.
package docs_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kapernikov/osctl/pkg/config"
	"github.com/kapernikov/osctl/pkg/osimage"
)

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// rows are the rows of all tables of a text, by their first cell, without
// backquotes.
func rows(text string) map[string][]string {
	found := map[string][]string{}
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if !strings.HasPrefix(line, "| ") || !strings.HasSuffix(line, "|") {
			continue
		}
		// \| is a bar within a cell.
		cells := strings.Split(strings.ReplaceAll(strings.Trim(line, "|"), `\|`, "\x00"), "|")
		for i := range cells {
			cells[i] = strings.TrimSpace(strings.ReplaceAll(cells[i], "\x00", "|"))
		}
		found[strings.ReplaceAll(cells[0], "`", "")] = cells
	}
	return found
}

// section is the text under a heading of the second level.
func section(t *testing.T, text, heading string) string {
	t.Helper()
	_, after, ok := strings.Cut(text, "\n## "+heading+"\n")
	if !ok {
		t.Fatalf("there is no heading %q", heading)
	}
	before, _, _ := strings.Cut(after, "\n## ")
	return before
}

// pages are all documents of the repository.
func pages(t *testing.T) []string {
	t.Helper()
	var list []string
	for _, top := range []string{"../README.md", "../CONTRIBUTING.md", "../CHANGELOG.md", "../policy", "../docs"} {
		err := filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
			if err == nil && !d.IsDir() && strings.HasSuffix(path, ".md") {
				list = append(list, path)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return list
}

var (
	link    = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	heading = regexp.MustCompile(`(?m)^#+ (.*)$`)
	fence   = regexp.MustCompile("(?s)\n```.*?\n```")
)

// anchors are the names that GitHub gives to the headings of a page.
func anchors(text string) map[string]bool {
	found := map[string]bool{}
	for _, m := range heading.FindAllStringSubmatch(fence.ReplaceAllString("\n"+text, ""), -1) {
		name := strings.Map(func(r rune) rune {
			switch {
			case r == ' ':
				return '-'
			case strings.ContainsRune("-_abcdefghijklmnopqrstuvwxyz0123456789", r):
				return r
			}
			return -1
		}, strings.ToLower(m[1]))
		found[name] = true
	}
	return found
}

func TestLinks(t *testing.T) {
	links := 0
	linked := map[string]bool{}
	for _, page := range pages(t) {
		text := read(t, page)
		for _, m := range link.FindAllStringSubmatch(fence.ReplaceAllString(text, ""), -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			links++
			path, anchor, _ := strings.Cut(m[1], "#")
			target := page
			if path != "" {
				target = filepath.Join(filepath.Dir(page), path)
			}
			linked[filepath.Clean(target)] = true
			info, err := os.Stat(target)
			if err != nil {
				t.Errorf("%s links to %s: %v", page, m[1], err)
			} else if anchor != "" && !info.IsDir() && !anchors(read(t, target))[anchor] {
				t.Errorf("%s links to %s, and there is no such heading", page, m[1])
			}
		}
	}
	if links < 50 {
		t.Errorf("only %d links were found", links)
	}
	for _, page := range pages(t) {
		if strings.HasPrefix(page, "../docs/") && !linked[page] {
			t.Errorf("no page links to %s", page)
		}
	}
}

// program parses the files of cmd/osctl, by their names.
func program(t *testing.T) map[string]*ast.File {
	t.Helper()
	names, err := filepath.Glob("../cmd/osctl/*.go")
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]*ast.File{}
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		files[filepath.Base(name)] = file
	}
	return files
}

// TestNamedTests holds that the tests which the documents name exist.
func TestNamedTests(t *testing.T) {
	named := regexp.MustCompile("`([a-z]+)\\.(Test[A-Za-z0-9]+)`")
	sources := map[string]string{}
	found := 0
	for _, page := range pages(t) {
		for _, m := range named.FindAllStringSubmatch(read(t, page), -1) {
			found++
			pkg, test := m[1], m[2]
			if _, known := sources[pkg]; !known {
				for _, top := range []string{"", "pkg", "cmd", "test"} {
					files, err := filepath.Glob(filepath.Join("..", top, pkg, "*_test.go"))
					if err != nil {
						t.Fatal(err)
					}
					for _, file := range files {
						sources[pkg] += read(t, file)
					}
				}
			}
			if !strings.Contains(sources[pkg], "\nfunc "+test+"(t ") {
				t.Errorf("%s: there is no test %s.%s", page, pkg, test)
			}
		}
	}
	if found < 40 {
		t.Errorf("only %d tests are named", found)
	}
}

func TestExitCodes(t *testing.T) {
	want := map[string]bool{}
	ast.Inspect(program(t)["exit.go"], func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if ok && strings.HasPrefix(spec.Names[0].Name, "exit") && len(spec.Values) == 1 {
			if value, ok := spec.Values[0].(*ast.BasicLit); ok {
				want[value.Value] = true
			}
		}
		return true
	})
	got := map[string]bool{}
	for cell := range rows(section(t, read(t, "cli.md"), "Exit codes")) {
		if _, err := strconv.Atoi(cell); err == nil {
			got[cell] = true
		}
	}
	if diff := cmp.Diff(want, got); diff != "" || len(want) < 9 {
		t.Errorf("exit codes (-exit.go +cli.md), %d of them:\n%s", len(want), diff)
	}
}

// TestFlags compares the flags that cmd/osctl defines with those that cli.md
// has in its tables and examples.
func TestFlags(t *testing.T) {
	defined := map[string]bool{}
	for _, file := range program(t) {
		ast.Inspect(file, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok || len(call.Args) < 3 {
				return true
			}
			method, ok := call.Fun.(*ast.SelectorExpr)
			name, isText := call.Args[1].(*ast.BasicLit)
			if ok && isText && (strings.HasSuffix(method.Sel.Name, "Var") || strings.HasSuffix(method.Sel.Name, "VarP")) {
				defined[strings.Trim(name.Value, `"`)] = true
			}
			return true
		})
	}
	described := map[string]bool{}
	for _, m := range regexp.MustCompile("--([a-z][a-z-]+)").FindAllStringSubmatch(read(t, "cli.md"), -1) {
		described[m[1]] = true
	}
	delete(described, "help")
	if diff := cmp.Diff(defined, described); diff != "" || len(defined) < 25 {
		t.Errorf("flags (-cmd/osctl +cli.md), %d of them:\n%s", len(defined), diff)
	}
}

// TestKeys compares the keys of osctl.yaml and their defaults with the table in
// configuration.md.
func TestKeys(t *testing.T) {
	want := map[string]string{}
	keys(reflect.ValueOf(config.Defaults()), "", want)
	got := map[string]string{}
	for name, cells := range rows(section(t, read(t, "configuration.md"), "osctl.yaml")) {
		if name == "key" || strings.HasPrefix(name, "---") {
			continue
		}
		value := strings.Trim(cells[1], "`")
		// Without backquotes these are words, not values.
		if slices.Contains([]string{"required", "none", "empty"}, cells[1]) {
			value = ""
		}
		for one := range strings.SplitSeq(name, ", ") {
			got[one] = value
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("keys and defaults (-config.go +configuration.md):\n%s", diff)
	}
}

// keys collects the keys of a struct and their values as YAML has them.
func keys(v reflect.Value, prefix string, into map[string]string) {
	for i := range v.NumField() {
		name, field := prefix+v.Type().Field(i).Tag.Get("yaml"), v.Field(i)
		switch value := field.Interface().(type) {
		case config.Duration:
			text := time.Duration(value).String()
			into[name] = strings.TrimSuffix(text, "m0s")
			if into[name] != text {
				into[name] += "m"
			}
		case []string:
			into[name] = ""
			if len(value) > 0 {
				into[name] = "[" + strings.Join(value, ", ") + "]"
			}
		default:
			if field.Kind() == reflect.Struct {
				keys(field, name+".", into)
			} else {
				into[name] = fmt.Sprint(value)
			}
		}
	}
}

// TestArtifactExample parses the example of the specification with the parser
// that machines use: it is one artifact, with these very digests.
func TestArtifactExample(t *testing.T) {
	page := read(t, "artifact-format.md")
	var blocks [][]byte
	for _, m := range regexp.MustCompile("(?s)\n```json\n(.*?)\n```").FindAllStringSubmatch(section(t, page, "Example"), -1) {
		var compact bytes.Buffer
		if err := json.Compact(&compact, []byte(m[1])); err != nil {
			t.Fatal(err)
		}
		blocks = append(blocks, compact.Bytes())
	}
	if len(blocks) != 2 {
		t.Fatalf("%d blocks of JSON, want manifest and config", len(blocks))
	}
	d := digest.FromBytes(blocks[0])
	if !strings.Contains(page, "digest  "+d.String()) {
		t.Errorf("the manifest has the digest %s, which the page does not show", d)
	}
	img, err := osimage.Parse(ocispec.Descriptor{Digest: d}, blocks[0], blocks[1])
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{len(blocks[0]), len(blocks[1])} {
		if !strings.Contains(page, fmt.Sprintf(" %d bytes as stored", n)) {
			t.Errorf("the page does not say that one of them has %d bytes", n)
		}
	}
	if img.Config().Product != "gateway" || img.CompressedSize() == 0 {
		t.Errorf("the example is %+v", img.Config())
	}
}

func TestArtifactFields(t *testing.T) {
	page := read(t, "artifact-format.md")
	want := map[string]bool{}
	for _, typ := range []reflect.Type{reflect.TypeFor[osimage.Config](), reflect.TypeFor[osimage.Rootfs]()} {
		for i := range typ.NumField() {
			name, option, _ := strings.Cut(typ.Field(i).Tag.Get("json"), ",")
			want[name] = option == ""
		}
	}
	got := map[string]bool{}
	for name, cells := range rows(section(t, page, "Config")) {
		if len(cells) == 4 && name != "field" && !strings.HasPrefix(name, "---") {
			got[name] = cells[2] == "yes"
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("fields and whether they are required (-Go +page):\n%s", diff)
	}
	types := rows(section(t, page, "Media types"))
	for _, name := range []string{
		osimage.ArtifactType, osimage.MediaTypeConfig, osimage.MediaTypePack, osimage.MediaTypeIndex, osimage.MediaTypeDelta,
	} {
		if types[name] == nil {
			t.Errorf("the page lacks the media type %s; it has %v", name, slices.Collect(maps.Keys(types)))
		}
	}
	for _, limit := range []int64{osimage.MaxManifest, osimage.MaxConfig, osimage.MaxPack, osimage.MaxImage, osimage.SegmentSize, osimage.MaxPayload} {
		if !strings.Contains(page, strconv.FormatInt(limit, 10)) {
			t.Errorf("the page lacks the limit %d", limit)
		}
	}
}
