package docs_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Every test that the pages on threats name exists in the package that it names.
func TestThreatsAreTested(t *testing.T) {
	for _, page := range []string{"trust.md", "threat-model.md"} {
		cited := regexp.MustCompile("`([a-z]+)\\.(Test[A-Za-z0-9]+)`").FindAllStringSubmatch(section(t, read(t, page), "Threats"), -1)
		if len(cited) < 15 {
			t.Errorf("%s: only %d tests are named", page, len(cited))
		}
		exist(t, cited)
	}
}

// exist holds that there are tests, each as all, package, name.
func exist(t *testing.T, cited [][]string) {
	t.Helper()
	for _, c := range cited {
		dir := filepath.Join("../pkg", c[1])
		switch c[1] {
		case "osctl":
			dir = "../cmd/osctl"
		case "hostile", "planted":
			dir = "../test/" + c[1]
		}
		files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
		if err != nil {
			t.Fatal(err)
		}
		found := false
		for _, name := range files {
			text, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			found = found || strings.Contains(string(text), "\nfunc "+c[2]+"(t *testing.T)")
		}
		if !found {
			t.Errorf("%s has no %s", dir, c[2])
		}
	}
}
