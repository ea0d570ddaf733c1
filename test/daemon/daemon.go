// Package daemon starts the real daemons that the integration tests talk to: a
// containerd, a registry, a systemd, each private to one test.
//
// Start runs the containerd of the tool cache ($OSCTL_CACHE or .cache at the
// top of the repository, folder tools/bin) with its own root, state and socket;
// StartRegistry runs Debian's docker-registry on a free loopback port;
// StartSystemd runs a user manager with the test's own units. Each answers when
// the call returns, logs to a file that is shown when the test fails, and is
// gone when the test ends or its process dies.
//
// The package refuses to use a daemon that is already on the machine and never
// touches the default paths of containerd (/var/lib/containerd,
// /run/containerd/containerd.sock). The one exception is containerd's own: the
// sockets of its shims are in /run/containerd/s, named by a hash.
package daemon

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"

	"github.com/containerd/containerd/api/types/runc/options"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/runtime/restart"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
)

// startLimit is how long a daemon may take until it answers. It is long because
// the machine may be busy; a daemon that dies is noticed at once.
const startLimit = 90 * time.Second

// Daemon is a running private containerd.
type Daemon struct {
	Address  string // path of its gRPC socket
	Root     string // folder that holds everything of it; removed at the end
	HostsDir string // its hosts configuration (certs.d), empty at first
	binary   string
	proc     *process
}

// Start runs a private containerd for this test and waits until it answers. It
// skips in short mode, and (fails where CI is set) without root or without a
// built containerd.
func Start(t testing.TB) *Daemon {
	t.Helper()
	if testing.Short() {
		t.Skip("needs a real containerd")
	}
	if os.Geteuid() != 0 {
		unavailable(t, "containerd needs root")
	}
	binary := filepath.Join(cacheDir(t), "tools", "bin", "containerd")
	if _, err := os.Stat(binary); err != nil {
		unavailable(t, "containerd is not built: %v; run make tools", err)
	}
	// A socket path has at most 107 bytes, too few for t.TempDir of a long name.
	root, err := os.MkdirTemp("", "ctrd")
	if err != nil {
		t.Fatal(err)
	}
	d := &Daemon{
		Address:  filepath.Join(root, "c.sock"),
		Root:     root,
		HostsDir: filepath.Join(root, "certs.d"),
		binary:   binary,
	}
	t.Cleanup(func() { d.cleanup(t) })
	if err := os.Mkdir(d.HostsDir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(d.path("config.toml"), []byte(d.config()), 0o600); err != nil {
		t.Fatal(err)
	}
	d.Resume(t)
	return d
}

func (d *Daemon) path(name string) string { return filepath.Join(d.Root, name) }

// config has everything that would otherwise be at a path of the whole machine,
// and no Kubernetes. The restart monitor looks once a second instead of every
// ten, so that tests of --restart=always do not wait for it.
func (d *Daemon) config() string {
	return fmt.Sprintf(`version = 3
root = %q
state = %q
temp = %q
disabled_plugins = [
  "io.containerd.grpc.v1.cri",
  "io.containerd.cri.v1.images",
  "io.containerd.cri.v1.runtime",
  "io.containerd.podsandbox.controller.v1.podsandbox",
  "io.containerd.nri.v1.nri",
  "io.containerd.internal.v1.opt",
  "io.containerd.snapshotter.v1.blockfile",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.erofs",
  "io.containerd.snapshotter.v1.zfs",
]

[grpc]
address = %q

[debug]
level = "info"

[plugins."io.containerd.monitor.container.v1.restart"]
interval = "1s"

[plugins."io.containerd.transfer.v1.local"]
config_path = %q
`, d.path("root"), d.path("state"), d.path("tmp"), d.Address, d.HostsDir)
}

// Resume starts the daemon on its old folders after Stop.
func (d *Daemon) Resume(t testing.TB) {
	t.Helper()
	log, err := os.OpenFile(d.path("log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(d.binary, "--config", d.path("config.toml"))
	// containerd looks for its shim and for runc on the path.
	cmd.Env = append(os.Environ(), "PATH="+filepath.Dir(d.binary)+":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
	cmd.Stdout, cmd.Stderr = log, log
	if d.proc, err = launch(cmd, 0); err != nil {
		t.Fatal(err)
	}
	if err := d.ready(); err != nil {
		t.Fatalf("starting containerd: %v", err)
	}
}

// ready waits until the daemon serves, or has died.
func (d *Daemon) ready() error {
	ctx, cancel := context.WithTimeoutCause(context.Background(), startLimit, fmt.Errorf("no answer in %v", startLimit))
	defer cancel()
	ctx, die := context.WithCancelCause(ctx)
	defer die(nil)
	proc := d.proc
	go func() {
		select {
		case <-proc.done:
			die(fmt.Errorf("it ended: %v", proc.err))
		case <-ctx.Done():
		}
	}()
	client, err := d.dial()
	if err != nil {
		return err
	}
	defer client.Close()
	if ok, err := client.IsServing(ctx); err != nil || !ok {
		if cause := context.Cause(ctx); cause != nil {
			return cause
		}
		return fmt.Errorf("asking whether it serves: %t, %v", ok, err)
	}
	return nil
}

// dial connects with a short backoff: the socket appears within a second.
func (d *Daemon) dial() (*containerd.Client, error) {
	quick := backoff.Config{BaseDelay: 20 * time.Millisecond, Multiplier: 1.2, MaxDelay: 200 * time.Millisecond}
	return containerd.New(d.Address, containerd.WithExtraDialOpts([]grpc.DialOption{
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: quick, MinConnectTimeout: time.Second}),
	}))
}

// Client returns a client of the daemon, closed at the end of the test. It has
// no default namespace.
func (d *Daemon) Client(t testing.TB) *containerd.Client {
	t.Helper()
	client, err := d.dial()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	return client
}

// Stop kills the daemon at once. Its containers go on running, as they do when
// a containerd crashes.
func (d *Daemon) Stop() { d.proc.kill() }

// Pause stops the daemon in its tracks: its socket takes connections and
// nothing is ever answered. Continue ends that.
func (d *Daemon) Pause(t testing.TB) {
	t.Helper()
	if err := d.proc.signal(syscall.SIGSTOP); err != nil {
		t.Fatalf("pausing containerd: %v", err)
	}
	// The signal takes effect some time after kill returns.
	var info unix.Siginfo
	err := unix.EINTR
	for err == unix.EINTR {
		err, _ = unix.Waitid(unix.P_PID, d.proc.cmd.Process.Pid, &info, unix.WSTOPPED, nil).(unix.Errno)
	}
	if err != 0 {
		t.Fatalf("waiting for containerd to pause: %v", err)
	}
}

// Continue lets a paused daemon run again.
func (d *Daemon) Continue(t testing.TB) {
	t.Helper()
	if err := d.proc.signal(syscall.SIGCONT); err != nil {
		t.Fatalf("continuing containerd: %v", err)
	}
}

// cleanup ends all containers, the daemon, and removes its folder.
func (d *Daemon) cleanup(t testing.TB) {
	if t.Failed() {
		showTail(t, d.path("log"))
	}
	if d.proc != nil {
		if err := d.proc.signal(syscall.SIGCONT); err != nil {
			// The shims outlive containerd; only a running one can end them.
			d.Resume(t)
		}
		if err := d.endTasks(); err != nil {
			t.Errorf("ending the test's containers: %v", err)
		}
		d.proc.kill()
	}
	if err := os.RemoveAll(d.Root); err != nil {
		t.Errorf("removing the test's containerd: %v", err)
	}
}

// endTasks deletes the containers of all namespaces, killing what runs.
func (d *Daemon) endTasks() error {
	ctx, cancel := context.WithTimeout(context.Background(), startLimit)
	defer cancel()
	client, err := d.dial()
	if err != nil {
		return err
	}
	defer client.Close()
	spaces, err := client.NamespaceService().List(ctx)
	if err != nil {
		return err
	}
	for _, space := range spaces {
		ctx := namespaces.WithNamespace(ctx, space)
		list, err := client.Containers(ctx)
		if err != nil {
			return err
		}
		for _, c := range list {
			if err := endContainer(ctx, c); err != nil {
				return fmt.Errorf("container %s/%s: %w", space, c.ID(), err)
			}
		}
	}
	return nil
}

// endContainer deletes a container, killing it if it runs.
func endContainer(ctx context.Context, c containerd.Container) error {
	// The restart monitor would start it again.
	if err := c.Update(ctx, containerd.UpdateContainerOpts(restart.WithNoRestarts)); err != nil {
		return err
	}
	task, err := c.Task(ctx, nil)
	if err == nil {
		_, err = task.Delete(ctx, containerd.WithProcessKill)
	}
	if err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	return c.Delete(ctx)
}

// Runtime makes a container keep runc's state in the test's folder. Without it
// that is in /run/containerd/runc, where containers of two tests that have the
// same namespace and ID are in each other's way.
func (d *Daemon) Runtime() containerd.NewContainerOpts {
	return containerd.WithRuntime("io.containerd.runc.v2", &options.Options{Root: d.path("runc")})
}

// showTail logs the end of a daemon's log file.
func showTail(t testing.TB, path string) {
	data, err := os.ReadFile(path)
	if err != nil {
		return
	}
	const most = 8 << 10
	if len(data) > most {
		data = data[len(data)-most:]
	}
	t.Logf("end of %s:\n%s", path, data)
}
