package probe

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kapernikov/osctl/test/need"
)

// marks makes the processes of one command recognizable by their command lines.
var marks atomic.Int64

// rig is a command under test: a script that says when it has got far enough.
type rig struct {
	*testing.T
	runner *Runner
	mark   string // part of the command line of what it leaves running
	fifo   string
}

// onBoth runs a test with control groups and without.
func onBoth(t *testing.T, test func(r rig)) {
	for name, make := range map[string]func(t *testing.T) *Runner{
		"with a group": func(t *testing.T) *Runner {
			need.Root(t)
			r := NewRunner()
			if r.groups == "" {
				t.Fatal("no control groups can be made here")
			}
			return r
		},
		"without": func(*testing.T) *Runner { return WithoutGroups() },
	} {
		t.Run(name, func(t *testing.T) {
			r := rig{T: t, runner: make(t), fifo: filepath.Join(t.TempDir(), "ready")}
			r.mark = fmt.Sprintf("7%05d%03d", os.Getpid()%100000, marks.Add(1))
			if err := unix.Mkfifo(r.fifo, 0o600); err != nil {
				t.Fatal(err)
			}
			test(r)
			for pid, line := range r.alive() {
				t.Errorf("still there: %s", line)
				if err := unix.Kill(pid, unix.SIGKILL); err != nil {
					t.Error(err)
				}
			}
			if r.runner.groups == "" {
				return
			}
			dirs, err := filepath.Glob(filepath.Join(r.runner.groups, fmt.Sprintf("%s%d.*", groupPrefix, os.Getpid())))
			if err != nil || len(dirs) > 0 {
				t.Errorf("control groups are left: %v, %v", dirs, err)
			}
			for _, dir := range dirs {
				left := &group{dir: dir}
				left.end(0)
				left.close()
			}
		})
	}
}

// script is a command of a shell. SLEEP is a process that never ends, UP waits until the
// last one in the background has become one, and ready says that all is as it should be.
func (r rig) script(text string) Command {
	text = strings.NewReplacer("SLEEP", "sleep "+r.mark, "UP", "until read -r name < /proc/$!/comm && [ $name = sleep ]; do :; done").Replace(text)
	text = "ready() { echo > " + r.fifo + "; }\n" + text
	return Command{Args: []string{"/bin/sh", "-c", text}}
}

// runs runs a script until it ends, or is ended when it is ready.
func (r rig) runs(text string) Result {
	r.Helper()
	c := r.script(text)
	due := make(chan struct{})
	c.due = due
	go func() {
		if _, err := os.ReadFile(r.fifo); err == nil {
			close(due)
		}
	}()
	res := r.runner.Run(r.Context(), c)
	// Who was never ready leaves a reader behind.
	if f, err := os.OpenFile(r.fifo, os.O_WRONLY|unix.O_NONBLOCK, 0); err == nil {
		f.Close()
	}
	if res.ByGroup != (r.runner.groups != "") {
		r.Errorf("by a control group: %t", res.ByGroup)
	}
	return res
}

// alive are the command lines of the processes with the mark.
func (r rig) alive() map[int]string {
	names, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil || len(names) == 0 {
		r.Fatal("no processes", err)
	}
	found := map[int]string{}
	for _, name := range names {
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(name)))
		if err != nil {
			r.Fatal(err)
		}
		if line, err := os.ReadFile(name); err == nil && bytes.Contains(line, []byte(r.mark)) {
			found[pid] = strings.ReplaceAll(string(line), "\x00", " ")
		}
	}
	return found
}

// TestEnds: what ends by itself.
func TestEnds(t *testing.T) {
	onBoth(t, func(r rig) {
		for text, want := range map[string]string{
			"exit 0":                           "exit 0",
			"echo all is well":                 "exit 0; said: all is well",
			"echo one; echo two >&2; exit 3":   "exit 3; said: one / two",
			"kill -KILL $$":                    "ended by signal 9 (killed)",
			"cat; pwd; echo $# $PATH":          "exit 0; said: / / 0 " + Path,
			"printf '\\n\\377x\\n\\n'; exit 1": "exit 1; said: ?x",
		} {
			res := r.runs(text)
			if res.String() != want || res.OK() != strings.HasPrefix(want, "exit 0") || res.Killed != 0 {
				r.Errorf("%s: %q, ok %t, killed %d; want %q", text, res, res.OK(), res.Killed, want)
			}
		}
		res := r.runner.Run(r.Context(), Command{Args: []string{"env"}, Env: []string{"OSCTL_SLOT=B"}})
		if want := "HOME=/root / LANG=C.UTF-8 / OSCTL_SLOT=B"; res.Output != want {
			r.Errorf("the last of the environment: %q, want %q", res.Output, want)
		}
	})
}

// TestNotStarted: what cannot be run is no success, and says why.
func TestNotStarted(t *testing.T) {
	onBoth(t, func(r rig) {
		plain := filepath.Join(r.TempDir(), "plain")
		if err := os.WriteFile(plain, []byte("exit 0\n"), 0o600); err != nil {
			r.Fatal(err)
		}
		for name, want := range map[string]error{"/nonexistent/check": fs.ErrNotExist, "osctl-no-such": exec.ErrNotFound, plain: fs.ErrPermission} {
			if res := r.runner.Run(r.Context(), Command{Args: []string{name}}); res.OK() || !errors.Is(res.Err, want) {
				r.Errorf("%s: %v, want %v", name, res, want)
			}
		}
		if res := r.runner.Run(r.Context(), Command{}); res.OK() || res.String() != "there is no command" {
			r.Errorf("nothing: %v", res)
		}
		if (Result{}).OK() {
			r.Error("the zero value is a success")
		}
	})
}

// TestHangs: a script that never ends, with a child that does not hear of it.
func TestHangs(t *testing.T) {
	onBoth(t, func(r rig) {
		res := r.runs("echo waiting; setsid SLEEP & UP; ready; wait")
		if got := res.String(); res.OK() || got != "has not ended within 10s; killed 1 process (sleep); said: waiting" {
			r.Errorf("%s", got)
		}
	})
}

// TestIgnoresTerm: SIGTERM means nothing to it.
func TestIgnoresTerm(t *testing.T) {
	onBoth(t, func(r rig) {
		r.runner.grace = 1
		res := r.runs("trap '' TERM; SLEEP & UP; ready; while :; do wait; done")
		if res.OK() || res.Late == 0 || res.Killed != 2 || res.Remain != 0 || !strings.Contains(res.String(), "(sh, sleep)") {
			r.Errorf("%v", res)
		}
	})
}

// TestDaemon: it ends in time and leaves a daemon: in a session of its own, with an
// empty environment, without a parent, and holding on to the output.
func TestDaemon(t *testing.T) {
	onBoth(t, func(r rig) {
		res := r.runs("env -i setsid sh -c 'SLEEP & UP; SLEEP & UP; SLEEP & UP' & wait; echo started")
		if got := res.String(); !res.OK() || got != "exit 0; killed 3 processes (sleep); said: started" {
			r.Errorf("%s", got)
		}
	})
}

// TestForkBomb: a bomb of modest size, whose processes are nobody's children.
func TestForkBomb(t *testing.T) {
	onBoth(t, func(r rig) {
		r.runner.grace = 1
		// Each of the first generation has forked all of its children before it is ready.
		res := r.runs(`trap '' TERM
for i in 1 2 3 4 5 6 7 8; do
  setsid sh -c 'for j in 1 2 3 4 5 6 7 8 9 10; do (trap "" TERM; SLEEP) & done; : ; kill -STOP $$; SLEEP' &
done
while [ "$(grep -lz ` + r.mark + ` /proc/[0-9]*/cmdline 2>/dev/null | wc -l)" -lt 60 ]; do :; done
ready; wait; SLEEP`)
		if res.OK() || res.Killed < 50 || res.Remain != 0 || len(res.Names) != mostNames {
			r.Errorf("killed %d, left %d, named %v: %v", res.Killed, res.Remain, res.Names, res)
		}
	})
}

// TestFlood: output without an end is read and forgotten but for its end.
func TestFlood(t *testing.T) {
	onBoth(t, func(r rig) {
		res := r.runs("yes flooding & head -c 50000000 /dev/zero | tr '\\0' x; echo; echo the end; ready; wait")
		if res.OK() || res.Late == 0 || len(res.Output) > tailText+10 || !strings.Contains(res.Output, "flooding") {
			r.Errorf("%d bytes: %v", len(res.Output), res)
		}
		res = r.runs("yes flooding | head -c 5000000; echo; echo the end; exit 1")
		if res.String() != "exit 1; said: flooding / floodi / the end" && !strings.HasSuffix(res.String(), "/ the end") {
			r.Errorf("%v", res)
		}
	})
}

// TestCutOff: who asked for it wants it no more.
func TestCutOff(t *testing.T) {
	onBoth(t, func(r rig) {
		ctx, cancel := context.WithCancelCause(r.Context())
		go func() {
			if _, err := os.ReadFile(r.fifo); err == nil {
				cancel(errors.New("the deadline"))
			}
		}()
		res := r.runner.Run(ctx, r.script("trap '' TERM; SLEEP & UP; ready; wait"))
		if res.OK() || res.Late != 0 || res.Killed != 2 || !strings.HasPrefix(res.String(), "it was cut off: the deadline; killed 2 processes (sh, sleep)") {
			r.Errorf("%v", res)
		}
		r.runner.Wait()
	})
}

// immortal is a command that cannot be killed.
type immortal struct{ group }

func (immortal) end(int) (int, []string, int) { return 1, []string{"sleep"}, 0 }

// TestCannotBeKilled: what hangs in the kernel does not hold the gate up, and is said.
func TestCannotBeKilled(t *testing.T) {
	p, err := start(Command{Args: []string{"sleep", "1000"}}, hunt{})
	if err != nil {
		t.Fatal(err)
	}
	res := p.finish(&immortal{}, Result{Ended: true})
	if res.OK() || res.Remain != 1 || !strings.HasPrefix(res.String(), "exit 0; killed 1 process (sleep); 1 of them cannot be killed") {
		t.Errorf("%v", res)
	}
	if err := p.cmd.Process.Kill(); err != nil {
		t.Error(err)
	}
	<-p.gone
}

// TestGroupWithin: a command that makes groups in its own gets away as little.
func TestGroupWithin(t *testing.T) {
	onBoth(t, func(r rig) {
		if r.runner.groups == "" {
			return
		}
		own := `own=` + r.runner.groups + `$(sed -n 's|^0::.*\(/` + groupPrefix + `\)|\1|p' /proc/self/cgroup)`
		res := r.runs(own + "; mkdir -p $own/a/b; sh -c \"echo \\$\\$ > $own/a/b/cgroup.procs; exec setsid SLEEP\" &\n" +
			"while ! grep -q . $own/a/b/cgroup.procs; do :; done; exit 0")
		if !res.OK() || res.Killed != 1 {
			r.Errorf("%v", res)
		}
	})
}

// TestGroupsGone: where groups cannot be made after all, there is the other way.
func TestGroupsGone(t *testing.T) {
	r := NewRunner()
	r.groups = t.TempDir()
	res := r.Run(t.Context(), Command{Args: []string{"/bin/sh", "-c", "setsid sleep 99 & exit 0"}})
	if !res.OK() || res.ByGroup || res.Killed > 1 {
		t.Errorf("%v", res)
	}
	if left, err := os.ReadDir(r.groups); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// TestOneAtATime: without groups nobody's processes are taken for somebody else's.
func TestOneAtATime(t *testing.T) {
	r := WithoutGroups()
	results := make(chan Result, 4)
	for range cap(results) {
		go func() {
			results <- r.Run(t.Context(), Command{Args: []string{"/bin/sh", "-c", "setsid sleep 98 & sleep 0.05; exit 0"}})
		}()
	}
	for range cap(results) {
		if res := <-results; !res.OK() || res.Killed > 1 {
			t.Errorf("%v", res)
		}
	}
}

func TestParseStat(t *testing.T) {
	p, ok := parseStat([]byte("12 (a) b) S 3 4 5 0 -1\n"))
	if want := (relative{pid: 12, parent: 3, session: 5, name: "a) b"}); !ok || p != want {
		t.Errorf("%+v, %t; want %+v", p, ok, want)
	}
	for _, bad := range []string{"", "12 S 3 4 5", "x (a) S 3 4 5", "12 (a) S 3 4", "12 (a) S 3 4 x", ")("} {
		if p, ok := parseStat([]byte(bad)); ok {
			t.Errorf("%q: %+v", bad, p)
		}
	}
	self, ok := processes()[os.Getpid()]
	if !ok || self.parent != os.Getppid() {
		t.Errorf("this process is %+v, its parent %d", self, os.Getppid())
	}
}

func TestGroupFolder(t *testing.T) {
	const line = "34 24 0:29 %s %s rw,nosuid shared:9 - cgroup2 cgroup2 rw\n"
	for _, c := range []struct{ groups, root, at, want string }{
		{"0::/system.slice/osctl-health.service\n", "/", "/sys/fs/cgroup", "/sys/fs/cgroup/system.slice/osctl-health.service"},
		{"9:name=systemd:/x\n0::/\n", "/", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/unified"},
		{"0::/pod/7/inner\n", "/pod/7", `/sys\040fs/cgroup`, "/sys fs/cgroup/inner"},
		{"0::/pod/77\n", "/pod/7", "/sys/fs/cgroup", ""},
		{"0::/../other\n", "/", "/sys/fs/cgroup", ""},
		{"9:name=systemd:/x\n", "/", "/sys/fs/cgroup", ""},
	} {
		got, err := groupFolder(c.groups, "1 1 8:1 / / rw - ext4 /dev/a rw\n"+fmt.Sprintf(line, c.root, c.at))
		if got != c.want || (err == nil) != (c.want != "") {
			t.Errorf("%q in %s: %q, %v; want %q", c.groups, c.root, got, err, c.want)
		}
	}
}
