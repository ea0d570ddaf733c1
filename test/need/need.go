// Package need says what a test needs. A machine that lacks it skips the test;
// in CI (CI=true) the lack is a failure, so that no check is lost in silence.
package need

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"
)

// Long skips a test in the fast part ("make check", go test -short).
func Long(t testing.TB) {
	t.Helper()
	if testing.Short() {
		t.Skip("left to make test: needs tools, root or time")
	}
}

// Root skips a test for an ordinary user.
func Root(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		lack(t, "root")
	}
}

// Tool returns the path of a program: from the cache of the project's own
// builds, or from PATH.
func Tool(t testing.TB, name string) string {
	t.Helper()
	if path := filepath.Join(Cache(), "tools", "bin", name); exists(path) {
		return path
	}
	path, err := exec.LookPath(name)
	if err != nil {
		lack(t, name+" (make deps)")
	}
	return path
}

// Cache is the folder of what is slow to make: $OSCTL_CACHE, or .cache at the
// top of the repository.
func Cache() string {
	if dir := os.Getenv("OSCTL_CACHE"); dir != "" {
		return dir
	}
	return filepath.Join(Top(), ".cache")
}

// Top is the top of the repository.
func Top() string {
	_, file, _, ok := runtime.Caller(0)
	if !ok {
		panic("need: the test binary has no source positions")
	}
	return filepath.Dir(filepath.Dir(filepath.Dir(file)))
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func lack(t testing.TB, what string) {
	t.Helper()
	if os.Getenv("CI") != "" {
		t.Fatalf("needs %s, and CI skips nothing", what)
	}
	t.Skipf("needs %s", what)
}
