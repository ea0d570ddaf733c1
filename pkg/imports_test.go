package pkg_test

import (
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/kapernikov/osctl/"

// entry is one line of the table in docs/architecture.md: a package's rank and
// the packages of this repository that it may import, all of a lower rank.
type entry struct {
	rank int
	may  []string
}

// table is the architecture. A new package enters it with its one job, or does
// not exist.
var table = map[string]entry{
	"osimage":    {0, nil},
	"progress":   {0, nil},
	"atomicfile": {0, nil},
	"grubenv":    {0, nil},
	"disk":       {0, nil},
	"device":     {0, nil},
	"health":     {0, nil},
	"config":     {0, nil},
	"clock":      {0, nil},
	"slot":       {1, []string{"disk", "device", "progress"}},
	"ledger":     {1, []string{"osimage", "atomicfile", "device", "health"}},
	"fetch":      {1, []string{"osimage", "progress"}},
	"trust":      {1, []string{"osimage"}},
	"channel":    {1, []string{"osimage"}},
	"artifact":   {1, []string{"device", "osimage", "progress"}},
	"publish":    {1, []string{"osimage", "progress"}},
	"workload":   {1, []string{"health"}},
	"lease":      {1, []string{"device", "health"}},
	"probe":      {1, []string{"health"}},
	"etc":        {1, []string{"disk", "device", "atomicfile"}},
	"boot":       {2, []string{"grubenv", "slot", "device"}},
	"admit":      {2, []string{"osimage", "trust"}},
	"proof":      {2, []string{"osimage", "atomicfile", "device", "progress", "slot", "trust"}},
	"rehearsal":  {2, []string{"etc"}},
	"assemble":   {2, []string{"osimage", "progress"}},
	"upgrade":    {3, []string{"osimage", "trust", "admit", "assemble", "channel", "slot", "boot", "device", "health", "ledger", "progress", "proof"}},
	"rescue":     {4, []string{"admit", "boot", "device", "disk", "ledger", "progress", "proof", "slot", "trust", "upgrade"}},
	"install":    {3, []string{"disk", "device", "progress"}},
	"announce":   {4, []string{"atomicfile", "device", "health", "ledger", "status"}},
	"status":     {3, []string{"atomicfile", "boot", "clock", "device", "ledger", "health"}},
}

// owners holds the libraries that only the named packages may import.
var owners = map[string][]string{
	"github.com/containerd/containerd/v2":    {"fetch", "lease", "workload", "rehearsal"},
	"github.com/sigstore/":                   {"trust", "publish"},
	"github.com/godbus/":                     {"health"},
	"github.com/diskfs/":                     {"disk", "install"},
	"github.com/goccy/go-yaml":               {"config"},
	"github.com/google/go-containerregistry": {"fetch", "publish", "trust"},
	"github.com/spf13/cobra":                 nil, // cmd/osctl only
}

func TestImportTable(t *testing.T) {
	files := 0
	err := filepath.WalkDir(".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(name, ".go") || filepath.Dir(name) == "." {
			return err
		}
		files++
		checkFile(t, name)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if files == 0 {
		t.Fatal("no Go files found: the test checked nothing")
	}
}

func checkFile(t *testing.T, name string) {
	pkg := filepath.ToSlash(filepath.Dir(name))
	row, known := table[pkg]
	if !known {
		t.Errorf("%s: package %s is not in the table", name, pkg)
		return
	}
	file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ImportsOnly)
	if err != nil {
		t.Error(err)
		return
	}
	isTest := strings.HasSuffix(name, "_test.go")
	for _, spec := range file.Imports {
		path, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			t.Error(err)
			continue
		}
		if inner, ok := strings.CutPrefix(path, module+"pkg/"); ok && inner != pkg && !isTest {
			if !slices.Contains(row.may, inner) {
				t.Errorf("%s: package %s may not import %s", name, pkg, inner)
			}
		}
		if strings.HasPrefix(path, module+"cmd/") {
			t.Errorf("%s: a library may not import %s", name, path)
		}
		for library, allowed := range owners {
			if strings.HasPrefix(path, library) && !slices.Contains(allowed, pkg) && !isTest {
				t.Errorf("%s: only %v may import %s", name, allowed, path)
			}
		}
	}
}

func TestTableRanks(t *testing.T) {
	for name, row := range table {
		for _, inner := range row.may {
			if got, ok := table[inner]; !ok || got.rank >= row.rank {
				t.Errorf("%s (rank %d) may not import %s (rank %d, known %t)", name, row.rank, inner, got.rank, ok)
			}
		}
	}
}
