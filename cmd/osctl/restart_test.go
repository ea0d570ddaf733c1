package main

import (
	"context"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// TestRestart: each step towards a reboot is taken when the one before was refused,
// hung, or led to nothing, and none after one that the machine obeys.
func TestRestart(t *testing.T) {
	const none = time.Duration(0)
	soft, hard, hardest := "reboot", "--force reboot", "--force --force reboot"
	for name, c := range map[string]struct {
		does  string // the fake systemctl, after it has noted its arguments
		grace time.Duration
		steps []string
		err   string // all of these words; empty for none
	}{
		"accepted":                     {"", none, []string{soft}, ""},
		"refused":                      {`[ "$*" != reboot ]`, none, []string{soft, hard}, ""},
		"refused twice":                {`[ "$2" = --force ]`, none, []string{soft, hard, hardest}, ""},
		"refused always":               {"false", none, []string{soft, hard, hardest}, "systemctl reboot: exit status 1|systemctl --force --force reboot: exit status 1"},
		"hangs":                        {`[ "$*" != reboot ] || exec sleep 60`, none, []string{soft, hard}, ""},
		"hangs with a child":           {`[ "$*" != reboot ] || { sleep 3 & wait; }`, none, []string{soft, hard}, ""},
		"hangs always":                 {"exec sleep 60", none, []string{soft, hard, hardest}, "systemctl reboot: no answer after 500ms"},
		"accepted and not obeyed":      {"", time.Millisecond, []string{soft, hard, hardest}, "systemctl --force reboot: the machine still runs 1ms later"},
		"obeyed":                       {"kill -TERM $PPID", time.Minute, []string{soft}, ""},
		"obeyed before it is answered": {"kill -TERM $PPID; sleep 0.1; echo answered >>\"$0.log\"", time.Minute, []string{soft, "answered"}, ""},
		"obeyed at the second step":    {`[ "$*" = reboot ] || kill -TERM $PPID`, 100 * time.Millisecond, []string{soft, hard}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			fake := filepath.Join(t.TempDir(), "systemctl")
			script := "#!/bin/sh\necho \"$*\" >>\"$0.log\"\n" + c.does + "\n"
			if err := os.WriteFile(fake, []byte(script), 0o755); err != nil { // #nosec it is run
				t.Fatal(err)
			}
			t.Setenv("PATH", filepath.Dir(fake)+":"+os.Getenv("PATH"))
			ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
			defer stop()
			err := restart(ctx, 500*time.Millisecond, c.grace)
			log, readErr := os.ReadFile(fake + ".log")
			if readErr != nil {
				t.Fatal(readErr)
			}
			if diff := cmp.Diff(c.steps, strings.Split(strings.TrimSpace(string(log)), "\n")); diff != "" {
				t.Errorf("steps (-want +got):\n%s", diff)
			}
			if (err != nil) != (c.err != "") {
				t.Errorf("error %v, want %q", err, c.err)
			}
			for _, words := range strings.Split(c.err, "|") {
				if err != nil && !strings.Contains(err.Error(), words) {
					t.Errorf("error %v, want %q in it", err, words)
				}
			}
		})
	}
}
