package daemon

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// BuildApp builds the program of package app and returns a folder that is a
// container's root file system with nothing but /app. It skips in short mode.
func BuildApp(t testing.TB) string {
	t.Helper()
	if testing.Short() {
		t.Skip("needs a real containerd")
	}
	root := t.TempDir()
	cmd := exec.Command("go", "build", "-ldflags=-s -w", "-o", filepath.Join(root, "app"), "github.com/kapernikov/osctl/test/daemon/app")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("building the container's program: %v\n%s", err, out)
	}
	return root
}
