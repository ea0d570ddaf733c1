package health_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/kapernikov/osctl/pkg/health"
	"github.com/kapernikov/osctl/test/gate"
	"github.com/kapernikov/osctl/test/need"
)

// wildClock is what time.Now does in the tests of TestClockThatIsSet: the wall clock is
// set every second, to 1970, to 2099 and back. The monotonic clock goes on. (In a bubble
// of testing/synctest there is none, so no test of those is among them.)
const wildClock = `
	switch mono / 1e9 % 3 {
	case 0:
		sec = 1
	case 1:
		sec = 4070908800
	}
`

// TestClockThatIsSet runs tests of the gate, those with real daemons among them, with the
// library's clock exchanged: a machine that starts in 1970 learns the time during the gate,
// and somebody may set it to 2099. No verdict and no time of the gate is another.
func TestClockThatIsSet(t *testing.T) {
	need.Long(t)
	const begin = "func Now() Time {\n\tsec, nsec, mono := runtimeNow()\n"
	root, err := exec.CommandContext(t.Context(), "go", "env", "GOROOT").Output()
	if err != nil {
		t.Fatal(err)
	}
	library := filepath.Join(strings.TrimSpace(string(root)), "src", "time", "time.go")
	source, err := os.ReadFile(library)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Count(string(source), begin) != 1 {
		t.Fatalf("time.Now begins otherwise in %s: adapt wildClock", runtime.Version())
	}
	dir := t.TempDir()
	changed, overlay, binary := filepath.Join(dir, "time.go"), filepath.Join(dir, "overlay.json"), filepath.Join(dir, "tests")
	replace, err := json.Marshal(map[string]map[string]string{"Replace": {library: changed}})
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string]string{changed: strings.Replace(string(source), begin, begin+wildClock, 1), overlay: string(replace)} {
		if err := os.WriteFile(name, []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := exec.CommandContext(t.Context(), "go", "test", "-c", "-vet=off", "-overlay", overlay, "-o", binary, ".").CombinedOutput(); err != nil {
		t.Fatalf("building the tests: %v\n%s", err, out)
	}
	tests := []string{"TestWildClock", "TestDeadContainerd", "TestMuteSystemd", "TestGateDoesNotWaitForItself"}
	cmd := exec.CommandContext(t.Context(), binary, "-test.v", "-test.run", "^("+strings.Join(tests, "|")+")$")
	cmd.Env = append(os.Environ(), "OSCTL_TEST_WILD_CLOCK=1")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("with a clock that is set: %v\n%s", err, out)
	}
	for _, name := range tests {
		if !strings.Contains(string(out), "--- PASS: "+name+" ") {
			t.Errorf("%s did not run:\n%s", name, out)
		}
	}
}

// TestWildClock is a part of TestClockThatIsSet: a soak over several years, and a deadline.
func TestWildClock(t *testing.T) {
	if os.Getenv("OSCTL_TEST_WILD_CLOCK") == "" {
		t.Skip("a part of TestClockThatIsSet")
	}
	seen := map[int]bool{}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for !seen[1970] || !seen[2099] || len(seen) < 3 {
			seen[time.Now().UTC().Year()] = true
			runtime.Gosched()
		}
	}()
	web := health.Workload{Namespace: "default", ID: "1", Name: "web"}
	o := health.Options{Systemd: &gate.Systemd{}, Containers: &gate.Containers{}, Deadline: time.Minute, Steady: 3 * time.Second}
	if r := health.Run(t.Context(), o); !r.Green || r.Duration < o.Steady || r.Duration > o.Deadline {
		t.Errorf("green %t after %v, want it after the soak: %s", r.Green, r.Duration, r.Reason())
	}
	o.Deadline, o.Steady, o.Baseline.Workloads = 3*time.Second, time.Second, []health.Workload{web}
	if r := health.Run(t.Context(), o); r.Green || r.Duration < o.Deadline || !strings.Contains(r.Reason(), "default/web: no such container") {
		t.Errorf("green %t after %v, want red at the deadline: %s", r.Green, r.Duration, r.Reason())
	}
	<-done
}
