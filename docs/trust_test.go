package docs_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strconv"
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

// Each row of the list of faults that a registry or a key can cause is in the table and
// in the suite, by its number, and so is each accident that somebody else had.
func TestFaultsAreTested(t *testing.T) {
	page := read(t, "hostile-registry.md")
	list, accidents := section(t, page, "The list of faults"), section(t, page, "Known accidents")
	names := regexp.MustCompile("`([a-z]+)\\.(Test[A-Za-z0-9]+)`")
	exist(t, names.FindAllStringSubmatch(list+accidents, -1))
	cases := ""
	files, err := filepath.Glob("../test/hostile/*_test.go")
	if err != nil || len(files) == 0 {
		t.Fatalf("the suite has the files %q, %v", files, err)
	}
	for _, name := range files {
		cases += read(t, name)
	}
	table := rows(list)
	for row := 1; row <= 27; row++ {
		number := strconv.Itoa(row)
		if cells := table[number]; len(cells) != 4 || cells[2] != "yes" {
			t.Errorf("row %d: the table has %q", row, cells)
		}
		if !strings.Contains(cases, "\t\t{\""+number+" ") && !strings.Contains(cases, "t.Run(\""+number+" ") {
			t.Errorf("row %d: the suite has no case of that number", row)
		}
	}
	for _, accident := range []string{
		"CVE-2020-25860", "CVE-2026-34155", "GHSA-wfqx-gjrf-g28r", "CVE-2022-36056", "CVE-2026-22703", "GHSA-fx35-mq7g-6g98", "#9552", "#8570",
	} {
		found := false
		for name, cells := range rows(accidents) {
			found = found || strings.Contains(name, accident) && len(cells) == 3 && names.MatchString(cells[2])
		}
		if !found {
			t.Errorf("no test is named for %s", accident)
		}
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
