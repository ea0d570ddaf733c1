package etc

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestKilledResets kills the process that carries resets out, on entering the nth
// call of each kind that changes something, for every n. Nothing that stays is
// ever gone, and the next boot comes to the same end.
func TestKilledResets(t *testing.T) {
	if root := os.Getenv("OSCTL_TEST_RESET"); root != "" {
		s := starter{root: root}
		s.carryOut()
		if len(s.report.Problems) > 0 {
			t.Fatal(s.report.Problems)
		}
		return
	}
	if testing.Short() {
		t.Skip("needs strace")
	}
	needTool(t, "strace")
	killed := 0
	for _, call := range []string{"renameat2", "unlinkat", "mkdirat", "syncfs", "fsync", "write", "utimensat"} {
		for n := 1; ; n++ {
			root := t.TempDir()
			want := orderedResets(t, root)
			if !resetUnder(t, root, call, n) {
				if n == 1 {
					t.Errorf("%s is never called: the test looks for the wrong call", call)
				}
				break
			}
			killed++
			for _, name := range []string{"data/osctl/ledger.json", "data/etc/factory/upper/hosts"} {
				if _, err := os.Stat(filepath.Join(root, name)); err != nil {
					t.Errorf("killed at %s %d: %v", call, n, err)
				}
			}
			if id, err := os.ReadFile(filepath.Join(root, "data/etc/A/upper/machine-id")); err != nil || string(id) != someID {
				t.Errorf("killed at %s %d: machine-id %q, %v", call, n, id, err)
			}
			s := starter{root: root}
			s.carryOut()
			if len(s.report.Problems) > 0 {
				t.Errorf("killed at %s %d: the next boot: %v", call, n, s.report.Problems)
			}
			wantContents(t, root, want)
		}
	}
	t.Logf("killed at %d moments", killed)
	if killed < 30 {
		t.Errorf("killed at %d moments only", killed)
	}
}

// orderedResets makes a data partition with both kinds of orders, and says what is
// to be left of it.
func orderedResets(t *testing.T, root string) map[string]string {
	t.Helper()
	write(t, root, map[string]string{
		"etc/hosts": "image", "data/osctl/ledger.json": "l", "data/containerd/x/y": "c", "data/volume": "v", "data/root/login": "r",
		"data/etc/A/upper/fstab": "broken", "data/etc/B/upper/fstab": "older", "data/etc/factory/upper/hosts": "first",
		"data/etc/A/upper/machine-id": someID, "data/etc/B/upper/machine-id": someID,
	})
	must(t, OrderFactory(filepath.Join(root, "data/osctl"), WipeApps))
	_, err := OrderReset(filepath.Join(root, "data/etc"), "A", []string{"fstab"})
	must(t, err)
	want := map[string]string{"etc/hosts": "image", "data/osctl/ledger.json": "l", "data/etc/factory/upper/hosts": "first"}
	for _, slot := range []string{"A", "B"} {
		maps.Copy(want, map[string]string{"data/etc/" + slot + "/upper/hosts": "first", "data/etc/" + slot + "/upper/machine-id": someID})
	}
	return want
}

// resetUnder carries the orders out in a process that is killed, and says whether
// it was.
func resetUnder(t *testing.T, root, call string, n int) bool {
	t.Helper()
	cmd := exec.Command("strace", "-f", "-qq", "-o", os.DevNull, "-e", "trace="+call,
		"-e", fmt.Sprintf("inject=%s:signal=KILL:when=%d", call, n), os.Args[0], "-test.run=^TestKilledResets$")
	cmd.Env = append(os.Environ(), "OSCTL_TEST_RESET="+root)
	out, err := cmd.CombinedOutput()
	if err == nil {
		return false
	}
	if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || !status.Signaled() || status.Signal() != syscall.SIGKILL {
		t.Fatalf("%v: %v\n%s", strings.Join(cmd.Args, " "), err, out)
	}
	return true
}
