package crash

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kapernikov/osctl/test/crash/record"
	"github.com/kapernikov/osctl/test/need"
)

// changing are the system calls that change something or make it durable.
var changing = []string{"pwrite64", "write", "fsync", "syncfs", "ftruncate", "fchmod", "fchmodat", "fchownat",
	"renameat", "renameat2", "mkdirat", "unlinkat", "symlinkat", "linkat", "mknodat", "lsetxattr", "copy_file_range", "fadvise64"}

// fault is what happens to one system call.
type fault struct{ name, inject string }

func faults() []fault {
	return []fault{{"EIO", "error=EIO"}, {"kill -9", "signal=KILL"}}
}

// TestEachSystemCall makes each system call of the real program fail with EIO, and
// kills the program at each. strace counts the calls of each thread by itself, so
// what is met is the nth call of one of them.
func TestEachSystemCall(t *testing.T) {
	s := newSite(t)
	every := 1
	if !exhaustive() {
		every = 11
	}
	list := operations(s)
	rows := make([][]string, len(list))
	t.Cleanup(func() {
		t.Logf("%-34s %-8s %6s %8s %8s %8s %8s %8s", "operation", "fault", "met", "bricked", "wrong", "lost", "invar.", "not conv")
		for _, row := range slices.Concat(rows...) {
			t.Log(row)
		}
	})
	for i, o := range list {
		if strings.HasPrefix(o.name, "repair of a ") {
			continue
		}
		t.Run(o.name, func(t *testing.T) {
			t.Parallel()
			own := s.beside(t, fmt.Sprintf("calls%d", i))
			j, o := newJudge(own, t), operations(own)[i]
			r := j.record(&o)
			for _, f := range faults() {
				met, y := j.injectAll(t, &o, r, f, every, i)
				rows[i] = append(rows[i], fmt.Sprintf("%-34s %-8s %6d %8d %8d %8d %8d %8d", o.name, f.name, met, y.failures[errBricked],
					y.failures[errWrongSlot], y.failures[errLostUpdate], y.failures[errInvariant], y.failures[errNotConverged]))
				if met == 0 && exhaustive() {
					t.Errorf("%s: no system call was met", o.name)
				}
			}
		})
	}
}

// injectAll plants a fault at every so manieth system call of an operation, and
// returns at how many of them it happened.
func (j *judge) injectAll(t *testing.T, o *operation, r *recording, f fault, every, turn int) (met int, y tally) {
	t.Helper()
	y.failures = map[error]int{}
	for _, call := range changing {
		for n := 1; ; n++ {
			if turn++; turn%every != 0 {
				if n > r.count(call) {
					break
				}
				continue
			}
			hit, err := j.inject(o, r, f, call, n)
			if err != nil {
				y.fail(t, fmt.Sprintf("%s, %s at %s %d", o.name, f.name, call, n), err)
			}
			if !hit {
				break
			}
			met++
		}
	}
	return met, y
}

// count is the number of recorded calls of one kind.
func (r *recording) count(call string) int {
	n := 0
	for _, o := range r.log.Ops {
		if strings.HasPrefix(o.Text, call+" ") {
			n++
		}
	}
	return n
}

// inject runs an operation with a fault at one system call, and reports whether the
// call was reached.
func (j *judge) inject(o *operation, r *recording, f fault, call string, n int) (hit bool, err error) {
	dir, err := os.MkdirTemp(j.fast, "fault")
	if err != nil {
		return false, err
	}
	defer os.RemoveAll(dir) //nolint:errcheck // below the test's folder
	m := machine{j.site, dir}
	m.fixed()
	if err := r.world.Put(r.log.Base, dir); err != nil {
		return false, err
	}
	if o.red {
		m.gateIsRed()
	}
	trace := m.path("trace")
	cmd := m.command(o.on, o.args...)
	// What follows a verdict may take a minute each time (upgrade.Hooks), and does where the
	// fault meets a question to containerd: gRPC leaves a write that failed to whoever reads
	// the connection, and that one has nothing to tell.
	ctx, cancel := context.WithTimeout(j.t.Context(), 3*time.Minute)
	defer cancel()
	traced := exec.CommandContext(ctx, need.Tool(j.t, "strace"), append([]string{"-f", "-qq", "-o", trace, "-e", "trace=" + call,
		"-e", fmt.Sprintf("inject=%s:%s:when=%d", call, f.inject, n)}, cmd.Args...)...)
	traced.Dir, traced.SysProcAttr, traced.Env = cmd.Dir, cmd.SysProcAttr, append(os.Environ(), "GOMAXPROCS=1")
	out, failed := traced.CombinedOutput()
	log, err := os.ReadFile(trace)
	if err != nil {
		return false, err
	}
	hit = strings.Contains(string(log), "(INJECTED)") || strings.Contains(string(log), "killed by SIGKILL")
	if ctx.Err() != nil {
		return hit, fmt.Errorf("%w: the command does not end: %s", errNotConverged, out)
	}
	return hit, j.afterFault(o, r, m, failed, string(out))
}

// afterFault judges what the fault left, and runs the command again.
func (j *judge) afterFault(o *operation, r *recording, m machine, failed error, out string) error {
	if strings.Contains(out, "panic:") || strings.Contains(out, "fatal error:") && !strings.Contains(out, "netpollBreak") {
		return fmt.Errorf("%w: osctl broke down: %s", errInvariant, out)
	}
	w, s, err := record.Read(m.dir, j.pool, roots()...)
	if err != nil {
		return err
	}
	v, err := j.state(o, r, w, s, failed == nil)
	if v.booted == fallbackA && o.after == committedB && (strings.Contains(out, "rolled back: slot B: ") || strings.Contains(out, "ok=false")) {
		// The fault met a question of the gate's to systemd or containerd, and without an
		// answer a trial fails. What says so may have met a fault itself.
		other := *o
		other.after, o = fallbackA, &other
		v, err = j.state(o, r, w, s, failed == nil)
	}
	if err != nil {
		return fmt.Errorf("%w: %v: %s", err, failed, out)
	}
	if v.booted != o.after || failed != nil && o.always {
		if result := m.run(o.on, o.args...); result.code != 0 {
			return fmt.Errorf("%w: the same command again: %v", errNotConverged, result)
		}
		if v.booted, err = j.bootMachine(m); err != nil {
			return err
		}
		if v.booted != o.after {
			return fmt.Errorf("%w: after the same command again GRUB boots %v", errNotConverged, v.booted)
		}
	}
	if !o.always {
		return nil
	}
	for slot, want := range o.image {
		if got, err := m.release(j, slot); err != nil || got != want {
			return fmt.Errorf("%w: slot %s holds %q, not %s, %w", errNotConverged, slot, got, want, err)
		}
	}
	var left []string
	for _, pattern := range []string{"data/osctl/.*", "data/osctl/slots/.*", "data/etc/.*", "data/etc/*/.*"} {
		names, _ := filepath.Glob(m.path(pattern)) //nolint:errcheck // the pattern is right
		left = append(left, names...)
	}
	if len(left) > 0 {
		return fmt.Errorf("%w: left behind: %v", errNotConverged, left)
	}
	return nil
}
