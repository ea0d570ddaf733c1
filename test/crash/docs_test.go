package crash

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/kapernikov/osctl/test/need"
)

// testFunctions are the tests of the repository, by folder name and name.
func testFunctions(t *testing.T) map[string]bool {
	t.Helper()
	found := map[string]bool{}
	function := regexp.MustCompile(`(?m)^func ((?:Test|Fuzz|Benchmark)\w+)\(`)
	for _, pattern := range []string{"cmd/*/*_test.go", "pkg/*_test.go", "pkg/*/*_test.go", "test/*/*_test.go", "test/*/*/*_test.go", "images/*_test.go", "policy/*_test.go"} {
		names, err := filepath.Glob(filepath.Join(need.Top(), pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			data, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range function.FindAllSubmatch(data, -1) {
				found[filepath.Base(filepath.Dir(name))+"."+string(m[1])] = true
				found[string(m[1])] = true
			}
		}
	}
	if len(found) == 0 {
		t.Fatal("no tests are found")
	}
	return found
}

// TestDocsNameTests: a test that the documents name exists, and each of the nine
// invariants names one.
func TestDocsNameTests(t *testing.T) {
	known := testFunctions(t)
	docs, err := filepath.Glob(filepath.Join(need.Top(), "docs/*.md"))
	if err != nil {
		t.Fatal(err)
	}
	decisions, err := filepath.Glob(filepath.Join(need.Top(), "docs/decisions/*.md"))
	if err != nil {
		t.Fatal(err)
	}
	named := regexp.MustCompile("`((?:[a-z]+\\.)?(?:Test|Fuzz)[A-Z]\\w*)(…?)")
	row := regexp.MustCompile(`^\| (\d) \|`)
	seen := 0
	var invariants []int
	for _, name := range append(docs, decisions...) {
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		inTable := false
		for line := range strings.Lines(string(data)) {
			tests := named.FindAllStringSubmatch(line, -1)
			for _, m := range tests {
				// "TestSettle…" stands for several.
				if seen++; !known[m[1]] && !(m[2] != "" && anyBegins(known, m[1])) {
					t.Errorf("%s names %s, and there is no such test", filepath.Base(name), m[1])
				}
			}
			if filepath.Base(name) == "architecture.md" {
				if strings.HasPrefix(line, "#") {
					inTable = strings.HasPrefix(line, "### Invariants")
				}
				if m := row.FindStringSubmatch(line); m != nil && inTable {
					n, _ := strconv.Atoi(m[1]) //nolint:errcheck // the pattern is a digit
					invariants = append(invariants, n)
					if len(tests) == 0 {
						t.Errorf("invariant %d names no test", n)
					}
				}
			}
		}
	}
	if want := []int{1, 2, 3, 4, 5, 6, 7, 8, 9}; !slices.Equal(invariants, want) {
		t.Errorf("the table of invariants has %v, want %v", invariants, want)
	}
	if seen < 20 {
		t.Errorf("only %d tests are named: the search looks for the wrong thing", seen)
	}
}

func anyBegins(known map[string]bool, prefix string) bool {
	for name := range known {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return false
}

// TestEachFaultNamesItsTests: the table of faults has each number, and each names a
// test, or a script that is there.
func TestEachFaultNamesItsTests(t *testing.T) {
	const first, last = 28, 46
	known := testFunctions(t)
	scripts, err := filepath.Glob(filepath.Join(need.Top(), "cmd/osctl/testdata/*/*.txtar"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range scripts {
		known[strings.TrimSuffix(filepath.Base(name), ".txtar")] = true
	}
	text, err := os.ReadFile(filepath.Join(need.Top(), "docs/faults.md"))
	if err != nil {
		t.Fatal(err)
	}
	row := regexp.MustCompile(`(?m)^\| (\d+) \|.*\| ([^|]+) \|$`)
	var numbers []int
	for _, m := range row.FindAllStringSubmatch(string(text), -1) {
		n, _ := strconv.Atoi(m[1]) //nolint:errcheck // the pattern is a number
		numbers = append(numbers, n)
		tests := regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(m[2], -1)
		if len(tests) == 0 {
			t.Errorf("fault %d names no test", n)
		}
		for _, name := range tests {
			if !known[name[1]] {
				t.Errorf("fault %d names %s, and there is no such test", n, name[1])
			}
		}
	}
	var want []int
	for n := first; n <= last; n++ {
		want = append(want, n)
	}
	if !slices.Equal(numbers, want) {
		t.Errorf("the faults are %v, want %v", numbers, want)
	}
}
