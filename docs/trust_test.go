package docs_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Every test that trust.md names exists in the package that it names.
func TestThreatsAreTested(t *testing.T) {
	cited := regexp.MustCompile("`([a-z]+)\\.(Test[A-Za-z0-9]+)`").FindAllStringSubmatch(section(t, read(t, "trust.md"), "Threats"), -1)
	if len(cited) < 15 {
		t.Errorf("only %d tests are named", len(cited))
	}
	for _, c := range cited {
		dir := filepath.Join("../pkg", c[1])
		switch c[1] {
		case "osctl":
			dir = "../cmd/osctl"
		case "hostile":
			dir = "../test/hostile"
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
