package pkg_test

import (
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// TestArchitecturePage holds docs/architecture.md to the tables of this package.
func TestArchitecturePage(t *testing.T) {
	page, err := os.ReadFile("../docs/architecture.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(page), "\n## Packages\n")
	section, _, _ = strings.Cut(section, "\n## ")
	packages, libraries := map[string]bool{}, map[string]bool{}
	for line := range strings.Lines(section) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		name := strings.Trim(cells[min(1, len(cells)-1)], "`")
		if rank, err := strconv.Atoi(cells[0]); err == nil && len(cells) == 4 && !strings.HasPrefix(name, "cmd/") {
			packages[name] = true
			row, known := table[name]
			if !known || row.rank != rank || !sameNames(names(cells[3]), row.may) {
				t.Errorf("the page says %s has rank %d and may import %v, the table %+v (known %t)", name, rank, names(cells[3]), row, known)
			}
		}
		if library := strings.Trim(cells[0], "`"); strings.HasPrefix(library, "github.com/") && len(cells) == 2 {
			libraries[library] = true
			allowed, known := owners[library]
			if allowed == nil {
				allowed = []string{"cmd/osctl"}
			}
			if !known || !sameNames(names(cells[1]), allowed) {
				t.Errorf("the page says %v own %s, the table %v (known %t)", names(cells[1]), library, allowed, known)
			}
		}
	}
	if len(packages) != len(table) || len(libraries) != len(owners) {
		t.Errorf("the page has %d packages and %d libraries, the tables %d and %d", len(packages), len(libraries), len(table), len(owners))
	}
}

// names are the words in backquotes.
func names(cell string) []string {
	var list []string
	for _, m := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(cell, -1) {
		list = append(list, m[1])
	}
	return list
}

func sameNames(a, b []string) bool {
	return slices.Equal(slices.Sorted(slices.Values(a)), slices.Sorted(slices.Values(b)))
}
