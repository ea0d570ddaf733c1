package status

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kapernikov/osctl/pkg/health"
)

// progress is a gate of five minutes, after one, that waits for one of two checks.
func progress() health.Progress {
	return health.Progress{
		Started: time.Unix(60, 0).UTC(), Elapsed: time.Minute, Deadline: 5 * time.Minute, Steady: 30 * time.Second,
		Checks: []health.Check{
			{Name: "systemd", Required: true, OK: true},
			{Name: "default/web", Required: true, Seen: "no task", Expected: "running"},
			{Name: "probe", Seen: "refused", Expected: "200"}, // wanted: it decides nothing
		},
	}
}

// TestGateAt: what is left is counted on from the note, and never below nothing.
func TestGateAt(t *testing.T) {
	soak := func(n int) *int { return &n }
	held := 10 * time.Second
	for name, c := range map[string]struct {
		held     *time.Duration
		passed   time.Duration
		left     int
		soakLeft *int
	}{
		"at once":             {nil, 0, 240, nil},
		"rounded up":          {nil, 1500 * time.Millisecond, 239, nil},
		"overdue":             {nil, time.Hour, 0, nil},
		"soaking":             {&held, 8 * time.Second, 232, soak(12)},
		"soaked":              {&held, time.Minute, 180, soak(0)},
		"a clock that is odd": {nil, -time.Hour, 240, nil},
	} {
		p := progress()
		p.Held = c.held
		got := gateNote{p, time.Hour}.at(time.Hour + c.passed)
		want := &Gate{
			Started: p.Started, SecondsLeft: c.left, SoakSecondsLeft: c.soakLeft, Checks: 2,
			Waiting: []Awaited{{Name: "default/web", Seen: "no task", Expected: "running"}},
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

// TestGateEndsAtItsDeadline: what soaks for longer than there is time is not said to
// take longer.
func TestGateEndsAtItsDeadline(t *testing.T) {
	p, held := progress(), 10*time.Second
	p.Elapsed, p.Held = p.Deadline-5*time.Second, &held
	if g := (gateNote{p, 0}).at(0); g.SecondsLeft != 5 || *g.SoakSecondsLeft != 5 {
		t.Errorf("%d s are left, %d of the soak, want 5 and 5", g.SecondsLeft, *g.SoakSecondsLeft)
	}
}

// TestGateIsRead: a gate is there from its first note to its end.
func TestGateIsRead(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run")
	reads := func(when string, want bool) {
		t.Helper()
		g, err := ReadGate(dir)
		if err != nil || (g != nil) != want {
			t.Errorf("%s: read %+v, %v, want one: %t", when, g, err, want)
		}
	}
	reads("before", false)
	n := NoteGate(dir)
	if err := n.Note(progress()); err != nil {
		t.Fatal(err)
	}
	reads("while it runs", true)
	// A second gate is not kept beside it, and does not end it.
	second := NoteGate(dir)
	other := progress()
	other.Checks = nil
	if err := second.Note(other); err != nil {
		t.Fatal(err)
	}
	if g, err := ReadGate(dir); err != nil || g == nil || g.Checks != 2 {
		t.Errorf("with a second gate: read %+v, %v", g, err)
	}
	if err := second.End(); err != nil {
		t.Fatal(err)
	}
	reads("after the second gate", true)
	if err := n.End(); err != nil {
		t.Fatal(err)
	}
	reads("after its end", false)
	// Now the second one is.
	if err := second.Note(other); err != nil {
		t.Fatal(err)
	}
	reads("when the second gate goes on", true)
	if err := second.End(); err != nil {
		t.Fatal(err)
	}
}

// TestGateIsReadFromAnotherProcess: the lock tells processes apart, and dies with its
// holder, whatever that left behind.
func TestGateIsReadFromAnotherProcess(t *testing.T) {
	if dir := os.Getenv("STATUS_TEST_GATE"); dir != "" {
		if err := NoteGate(dir).Note(progress()); err != nil {
			t.Fatal(err)
		}
		os.Stdout.WriteString("noted\n") //nolint:errcheck // the parent waits for it
		select {}
	}
	dir := t.TempDir()
	child := exec.Command(os.Args[0], "-test.run", "^TestGateIsReadFromAnotherProcess$") // #nosec this test
	child.Env = append(os.Environ(), "STATUS_TEST_GATE="+dir)
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 6)); err != nil {
		t.Fatal(err)
	}
	if g, err := ReadGate(dir); err != nil || g == nil {
		t.Errorf("while it lives: read %+v, %v", g, err)
	}
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = child.Wait() // it was killed
	if _, err := os.Stat(filepath.Join(dir, gateFile)); err != nil {
		t.Fatalf("it left nothing behind: %v", err)
	}
	if g, err := ReadGate(dir); err != nil || g != nil {
		t.Errorf("after it was killed: read %+v, %v", g, err)
	}
}

// TestGateThatCannotBeRead is a problem of the snapshot, and no gate.
func TestGateThatCannotBeRead(t *testing.T) {
	s := sources(t)
	s.RuntimeDir = t.TempDir()
	n := NoteGate(s.RuntimeDir)
	if err := n.Note(progress()); err != nil {
		t.Fatal(err)
	}
	if shot := Take(t.Context(), s); shot.Gate == nil || len(shot.Problems) != 0 {
		t.Errorf("the gate is %+v, problems %q", shot.Gate, shot.Problems)
	}
	if err := os.WriteFile(filepath.Join(s.RuntimeDir, gateFile), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	shot := Take(t.Context(), s)
	if shot.Gate != nil || len(shot.Problems) != 1 {
		t.Errorf("the gate is %+v, problems %q", shot.Gate, shot.Problems)
	}
}
