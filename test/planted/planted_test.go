package planted

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/kapernikov/osctl/test/need"
)

// fault is one check that is switched off, and the test that must notice.
type fault struct {
	name     string
	file     string // below pkg; a script is "../" and its path in the checkout
	old, new string // old is there exactly once
	tests    string // package and names: "trust TestA TestB"; each must turn red
	rare     bool   // only built with OSCTL_EXHAUSTIVE; else, as all in make check, it must only apply
}

// TestPlantedFaults builds each fault and runs the tests that must turn red. That they
// are green without it is for those tests to say. Without OSCTL_EXHAUSTIVE=1 the faults
// that are marked as rare are left out.
func TestPlantedFaults(t *testing.T) {
	noteSources(t)
	list := faults()
	if len(list) < 12 {
		t.Fatalf("only %d faults", len(list))
	}
	list = append(list, daemonFaults()...)
	exhaustive := os.Getenv("OSCTL_EXHAUSTIVE") != ""
	for _, f := range list {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			if testing.Short() || f.rare && !exhaustive {
				f.applies(t)
				return
			}
			f.turnsRed(t)
		})
	}
}

// most is the address space in KiB that tests with a fault may take: without a check
// they may read without an end.
const most = "16777216"

func pattern(tests []string) string { return "^(" + strings.Join(tests, "|") + ")$" }

// turnsRed builds the package's tests with the fault, and runs those that are named.
func (f fault) turnsRed(t *testing.T) {
	words := strings.Fields(f.tests)
	pkg, tests := words[0], words[1:]
	binary, dir := f.build(t, pkg)
	cmd := exec.CommandContext(t.Context(), "/bin/sh", "-c", `ulimit -v "$1" && shift && exec "$@"`, "sh", most,
		binary, "-test.run", pattern(tests), "-test.short="+strconv.FormatBool(!f.daemons() && !slices.Contains(toolPackages(), pkg)), "-test.timeout", "8m")
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	switch {
	case err == nil:
		t.Fatalf("nothing noticed:\n%s", tail(out))
	case strings.Contains(string(out), "panic: test timed out"), !strings.Contains(string(out), "--- FAIL: "):
		// A hang may be the machine's and not the fault's, and so may a lack of memory.
		t.Fatalf("the tests did not end by themselves: %v\n%s", err, tail(out))
	}
	for _, name := range tests {
		if !strings.Contains(string(out), "--- FAIL: "+name+" ") {
			t.Errorf("%s did not notice: %v\n%s", name, err, tail(out))
		}
	}
}

// daemons reports whether the tests that must notice need real daemons.
func (f fault) daemons() bool {
	return slices.ContainsFunc(slices.Concat(daemonFaults(), askedFaults()), func(other fault) bool { return other == f })
}

// applies reads the file and holds that the fault fits.
func (f fault) applies(t *testing.T) (path, source string) {
	t.Helper()
	path = filepath.Join(need.Top(), "pkg", filepath.FromSlash(f.file))
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(data), f.old); n != 1 || f.old == f.new {
		t.Fatalf("%s has %q %d times, want once: adapt the fault to the code", f.file, f.old, n)
	}
	return path, string(data)
}

// build compiles the tests of a package with the fault in one file, and says where
// they have to run.
func (f fault) build(t *testing.T, pkg string) (binary, dir string) {
	t.Helper()
	path, source := f.applies(t)
	scratch := t.TempDir()
	dir, binary = filepath.Join(need.Top(), "pkg", pkg), filepath.Join(scratch, "tests")
	text := strings.Replace(source, f.old, f.new, 1)
	// Without symbols for a debugger the linker is done in half the time.
	args := []string{"test", "-c", "-vet=off", "-ldflags=-s -w", "-o", binary}
	if strings.HasSuffix(path, ".go") {
		args = append(args, "-overlay", overlay(t, scratch, path, text))
	} else {
		dir = checkout(t, pkg, path, text)
	}
	cmd := exec.CommandContext(t.Context(), "go", append(args, "./pkg/"+pkg)...)
	cmd.Dir = need.Top()
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("the fault does not compile: %v\n%s", err, tail(out))
	}
	return binary, dir
}

// overlay tells the go command to read a text in the place of a file.
func overlay(t *testing.T, scratch, path, text string) string {
	t.Helper()
	changed, list := filepath.Join(scratch, "changed.go"), filepath.Join(scratch, "overlay.json")
	replace, err := json.Marshal(map[string]map[string]string{"Replace": {path: changed}})
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string]string{changed: text, list: string(replace)} {
		if err := os.WriteFile(name, []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return list
}

// tail is the end of what a command said.
func tail(out []byte) string {
	if len(out) > 3000 {
		out = out[len(out)-3000:]
	}
	return string(out)
}

// noteSources reads all that may change the outcome: go test keeps the result of a
// test only as long as the files are the same that it read.
func noteSources(t *testing.T) {
	t.Helper()
	files := 0
	for _, pattern := range []string{"go.mod", "pkg/*/*.go", "test/*/*.go", "images/grub-boot.cfg", "images/rootfs/usr/lib/osctl/boot/grub.cfg"} {
		names, err := filepath.Glob(filepath.Join(need.Top(), pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			if _, err := os.ReadFile(name); err != nil {
				t.Fatal(err)
			}
			files++
		}
	}
	if files < 50 {
		t.Fatalf("only %d sources were found", files)
	}
}
