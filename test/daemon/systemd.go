package daemon

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// systemdBinary is where Debian and Yocto have it.
const systemdBinary = "/lib/systemd/systemd"

// systemdScript prepares the namespace and runs its arguments in a control
// group of their own, in every hierarchy. That is not tidiness: a manager takes
// the group that it finds itself in for its own and moves every process in it.
const systemdScript = `set -e
mkdir -p /run/systemd
mount -t tmpfs tmpfs /run/systemd
mkdir /run/systemd/system
for procs in /sys/fs/cgroup/cgroup.procs /sys/fs/cgroup/*/cgroup.procs; do
  top=${procs%/cgroup.procs}
  [ -f "$procs" ] && [ ! -h "$top" ] || continue
  case "$top" in
  /sys/fs/cgroup) ;;
  *) [ ! -f /sys/fs/cgroup/cgroup.procs ] || continue ;;
  esac
  mkdir "$top/osctl-test.$$"
  if [ -f "$top/cpuset.cpus" ]; then
    cat "$top/cpuset.cpus" > "$top/osctl-test.$$/cpuset.cpus"
    cat "$top/cpuset.mems" > "$top/osctl-test.$$/cpuset.mems"
  fi
  echo $$ > "$top/osctl-test.$$/cgroup.procs"
done
grep -q "^\(0:\|[0-9]*:name=systemd\):.*/osctl-test\.$$\$" /proc/self/cgroup
exec "$@"`

// systemUnits is the least that a manager needs to start and to stop units.
func systemUnits() map[string]string {
	return map[string]string{
		"basic.target":         "[Unit]\nDescription=basic\n",
		"shutdown.target":      "[Unit]\nDescription=shutdown\nDefaultDependencies=no\nRefuseManualStart=yes\n",
		"exit.target":          "[Unit]\nDescription=exit\nDefaultDependencies=no\nRequires=systemd-exit.service\nAfter=systemd-exit.service\n",
		"systemd-exit.service": "[Unit]\nDescription=exit\nDefaultDependencies=no\nRequires=shutdown.target\nAfter=shutdown.target\nSuccessAction=exit-force\n[Service]\nType=oneshot\nSlice=-.slice\nExecStart=/bin/true\n",
	}
}

// Systemd is a running private systemd: a user manager, which speaks the same
// D-Bus interface as the system's, with units of the test and no others.
type Systemd struct {
	Socket  string // its private D-Bus socket
	runtime string // its XDG_RUNTIME_DIR
	root    string
	proc    *process
}

// StartSystemd runs a private systemd that boots the given units (file name to
// content; there should be a default.target) and waits until it answers; the
// boot goes on meanwhile. It skips in short mode, and (fails where CI is set)
// without root or systemd.
//
// A user manager refuses to run where systemd did not boot the machine. So it
// gets a mount namespace in which /run/systemd looks as if it had.
func StartSystemd(t testing.TB, units map[string]string) *Systemd {
	t.Helper()
	if testing.Short() {
		t.Skip("needs a real systemd")
	}
	if os.Geteuid() != 0 {
		unavailable(t, "a private systemd needs root")
	}
	if _, err := os.Stat(systemdBinary); err != nil {
		unavailable(t, "systemd is not installed: %v; apt-get install systemd", err)
	}
	root, err := os.MkdirTemp("", "sysd")
	if err != nil {
		t.Fatal(err)
	}
	s := &Systemd{root: root, runtime: filepath.Join(root, "run")}
	s.Socket = filepath.Join(s.runtime, "systemd", "private")
	t.Cleanup(func() { s.cleanup(t) })
	unitDir := filepath.Join(root, "units")
	for _, dir := range []string{s.runtime, unitDir} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	all := systemUnits()
	maps.Copy(all, units)
	for name, content := range all {
		if err := os.WriteFile(filepath.Join(unitDir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	log, err := os.Create(filepath.Join(root, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command("sh", "-c", systemdScript, "sh", systemdBinary, "--user", "--log-target=console")
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"),
		"HOME=" + root,
		"XDG_RUNTIME_DIR=" + s.runtime,
		"SYSTEMD_UNIT_PATH=" + unitDir,
	}
	cmd.Stdout, cmd.Stderr = log, log
	if s.proc, err = launch(cmd, unix.CLONE_NEWNS); err != nil {
		t.Fatal(err)
	}
	if err := s.ready(); err != nil {
		t.Fatalf("starting systemd: %v", err)
	}
	return s
}

// ready waits until its socket takes connections, or the process has died.
func (s *Systemd) ready() error {
	limit := time.NewTimer(startLimit)
	defer limit.Stop()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-s.proc.done:
			return fmt.Errorf("it ended: %v", s.proc.err)
		case <-limit.C:
			return fmt.Errorf("no socket in %v", startLimit)
		case <-tick.C:
			if conn, err := net.Dial("unix", s.Socket); err == nil {
				return conn.Close()
			}
		}
	}
}

// Control runs systemctl against this systemd and fails the test if it cannot.
// A start job is queued only: that a unit fails is no error.
func (s *Systemd) Control(t testing.TB, args ...string) {
	t.Helper()
	cmd := exec.Command("systemctl", append([]string{"--user", "--no-block"}, args...)...)
	cmd.Env = append(os.Environ(), "XDG_RUNTIME_DIR="+s.runtime)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("systemctl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// cleanup stops all units, the manager, and removes its folder.
func (s *Systemd) cleanup(t testing.TB) {
	if t.Failed() {
		showTail(t, filepath.Join(s.root, "log"))
	}
	if s.proc != nil {
		// exit.target stops everything; a manager that does not get there in time
		// is killed.
		if err := s.proc.signal(unix.SIGTERM); err == nil {
			select {
			case <-s.proc.done:
			case <-time.After(startLimit):
				t.Error("the test's systemd did not stop when asked to")
				showTail(t, filepath.Join(s.root, "log"))
			}
		}
		s.proc.kill()
		if err := removeGroups(s.proc.cmd.Process.Pid); err != nil {
			t.Errorf("removing the control groups of the test's systemd: %v", err)
		}
	}
	if err := os.RemoveAll(s.root); err != nil {
		t.Errorf("removing the test's systemd: %v", err)
	}
}

// removeGroups removes the control groups that systemdScript made, from the
// leaves up.
func removeGroups(pid int) error {
	tops, err := filepath.Glob("/sys/fs/cgroup/*")
	if err != nil {
		return err
	}
	name := fmt.Sprintf("osctl-test.%d", pid)
	for _, top := range append(tops, "/sys/fs/cgroup") {
		var dirs []string
		err := filepath.WalkDir(filepath.Join(top, name), func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, path)
			}
			return err
		})
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		for _, dir := range slices.Backward(dirs) {
			if err := os.Remove(dir); err != nil {
				return err
			}
		}
	}
	return nil
}
