package daemon

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
)

// process is one child of the test. It dies with the test binary, even when
// that one is killed, so that a test that times out leaves no daemon behind.
type process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when the process has been reaped
	err  error         // how it ended; read it after done
}

// launch starts cmd, in new namespaces of the given kinds, and reaps it in the
// background.
func launch(cmd *exec.Cmd, namespaces uintptr) (*process, error) {
	p := &process{cmd: cmd, done: make(chan struct{})}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true, Unshareflags: namespaces}
	started := make(chan error, 1)
	go func() {
		// The kernel sends Pdeathsig when the parent *thread* ends, so the thread
		// that starts the child has to live as long as the child.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err != nil {
			return
		}
		p.err = cmd.Wait()
		close(p.done)
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("starting %s: %w", cmd.Path, err)
	}
	return p, nil
}

// signal sends sig to the process itself, by its pid.
func (p *process) signal(sig syscall.Signal) error {
	select {
	case <-p.done:
		return os.ErrProcessDone
	default:
		return p.cmd.Process.Signal(sig)
	}
}

// kill ends the process at once and waits until it is reaped. A stopped
// process is killed as well.
func (p *process) kill() {
	_ = p.signal(syscall.SIGKILL)
	<-p.done
}

// unavailable ends the test for want of something: a skip for a developer, a
// failure where CI is set, since a skip there would hide that nothing ran.
func unavailable(t testing.TB, format string, args ...any) {
	t.Helper()
	if os.Getenv("CI") != "" {
		t.Fatalf(format, args...)
	}
	t.Skipf(format, args...)
}

// cacheDir is $OSCTL_CACHE, or .cache at the top of the repository.
func cacheDir(t testing.TB) string {
	t.Helper()
	if dir := os.Getenv("OSCTL_CACHE"); dir != "" {
		return dir
	}
	dir, err := os.Getwd()
	if err != nil {
		t.Fatalf("finding the repository: %v", err)
	}
	for ; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return filepath.Join(dir, ".cache")
		}
		if dir == filepath.Dir(dir) {
			t.Fatal("finding the repository: no go.mod in this folder or above it; run the test inside the repository or set OSCTL_CACHE")
		}
	}
}
