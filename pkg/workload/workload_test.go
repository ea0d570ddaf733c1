package workload_test

import (
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kapernikov/osctl/pkg/health"
	"github.com/kapernikov/osctl/pkg/workload"
	"github.com/kapernikov/osctl/test/daemon"
	"github.com/kapernikov/osctl/test/gate"
)

// rig is a real containerd and what the tests do to it.
type rig struct {
	t      *testing.T
	daemon *daemon.Daemon
	client *containerd.Client
	rootfs string
}

// newRig starts a containerd with a root file system that holds one static
// program, which waits for ever.
func newRig(t *testing.T, rootfs string) *rig {
	t.Helper()
	d := daemon.Start(t)
	r := &rig{t: t, daemon: d, client: d.Client(t), rootfs: rootfs}
	for _, space := range []string{"one", "two", "own"} {
		if err := r.client.NamespaceService().Create(t.Context(), space, nil); err != nil {
			t.Fatal(err)
		}
	}
	return r
}

// buildRootfs makes a root file system of one static program that waits.
func buildRootfs(t *testing.T) string {
	t.Helper()
	if testing.Short() {
		t.Skip("needs a real containerd")
	}
	dir := t.TempDir()
	source := filepath.Join(dir, "main.go")
	const program = "package main\n\nimport \"time\"\n\nfunc main() { time.Sleep(1 << 62) }\n"
	if err := os.WriteFile(source, []byte(program), 0o600); err != nil {
		t.Fatal(err)
	}
	rootfs := filepath.Join(dir, "rootfs")
	cmd := exec.Command("go", "build", "-o", filepath.Join(rootfs, "wait"), source)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("building the container's program: %v\n%s", err, out)
	}
	return rootfs
}

// image gives a name in a namespace a target.
func (r *rig) image(space, name, content string) {
	r.t.Helper()
	_, err := r.client.ImageService().Create(namespaces.WithNamespace(r.t.Context(), space), images.Image{
		Name:   name,
		Target: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString(content), Size: int64(len(content))},
	})
	if err != nil {
		r.t.Fatal(err)
	}
}

// run makes a container and starts it.
func (r *rig) run(space, id, image string, labels map[string]string) {
	r.t.Helper()
	ctx := namespaces.WithNamespace(r.t.Context(), space)
	c, err := r.client.NewContainer(ctx, id, r.daemon.Runtime(),
		containerd.WithImageName(image),
		containerd.WithNewSpec(
			oci.WithRootFSPath(r.rootfs), oci.WithRootFSReadonly(), oci.WithProcessArgs("/wait"),
			// The default, /namespace/id, leaves an empty group behind.
			oci.WithCgroup("/osctl-test-"+space+"-"+id),
		),
	)
	if err != nil {
		r.t.Fatalf("making container %s/%s: %v", space, id, err)
	}
	task, err := c.NewTask(ctx, cio.NullIO)
	if err != nil {
		r.t.Fatalf("making the task of %s/%s: %v", space, id, err)
	}
	if err := task.Start(ctx); err != nil {
		r.t.Fatalf("starting %s/%s: %v", space, id, err)
	}
	// Not earlier: the restart monitor would take the task that is only created
	// for a dead one and start its own.
	if len(labels) == 0 {
		return
	}
	if _, err := c.SetLabels(ctx, labels); err != nil {
		r.t.Fatalf("labelling %s/%s: %v", space, id, err)
	}
}

// kill ends a container's process and waits for that.
func (r *rig) kill(space, id string) {
	r.t.Helper()
	ctx := namespaces.WithNamespace(r.t.Context(), space)
	c, err := r.client.LoadContainer(ctx, id)
	if err != nil {
		r.t.Fatal(err)
	}
	task, err := c.Task(ctx, nil)
	if err != nil {
		r.t.Fatal(err)
	}
	exited, err := task.Wait(ctx)
	if err != nil {
		r.t.Fatal(err)
	}
	if err := task.Kill(ctx, syscall.SIGKILL); err != nil {
		r.t.Fatal(err)
	}
	<-exited
}

func TestRealContainerd(t *testing.T) {
	rootfs := buildRootfs(t)
	gate.ContainersSuite(t, func(t *testing.T) gate.ContainersRig {
		r := newRig(t, rootfs)
		return gate.ContainersRig{
			Containers: workload.New(r.daemon.Address, "own"),
			Run: func(space, id, name string) {
				labels := map[string]string{}
				if name != "" {
					labels["nerdctl/name"] = name
				}
				r.run(space, id, "", labels)
			},
			Kill: r.kill,
			Stop: r.daemon.Stop,
		}
	})
}

func TestListReadsRecords(t *testing.T) {
	r := newRig(t, buildRootfs(t))
	const name = "registry.example.com/web:1"
	always := map[string]string{
		"nerdctl/name":                  "web",
		"containerd.io/restart.status":  "running",
		"containerd.io/restart.policy":  "always",
		"containerd.io/restart.loguri":  "",
		"containerd.io/restart.unknown": "x",
	}
	r.image("one", name, "first")
	r.image("two", name, "second")
	r.run("one", "b", name, always)
	r.run("one", "a", "gone.example.com/x:1", map[string]string{"containerd.io/restart.policy": "no"})
	r.run("two", "c", name, map[string]string{"containerd.io/restart.status": "running"})
	r.run("own", "d", name, nil)
	ctx := namespaces.WithNamespace(t.Context(), "two")
	if _, err := r.client.NewContainer(ctx, "never", containerd.WithNewSpec(oci.WithRootFSPath(r.rootfs))); err != nil {
		t.Fatal(err)
	}
	got, err := workload.New(r.daemon.Address, "own").List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	first, second := digest.FromString("first").String(), digest.FromString("second").String()
	want := []health.Container{
		{Workload: health.Workload{Namespace: "one", ID: "a", Image: "gone.example.com/x:1"}, Status: "running"},
		{Workload: health.Workload{Namespace: "one", ID: "b", Name: "web", Image: name, ImageDigest: first, Restart: "always"}, Status: "running"},
		{Workload: health.Workload{Namespace: "two", ID: "c", Image: name, ImageDigest: second, Restart: "always"}, Status: "running"},
		{Workload: health.Workload{Namespace: "two", ID: "never"}, Status: "no task"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("list (-want +got):\n%s", diff)
	}
	all, err := workload.New(r.daemon.Address, "").List(t.Context())
	if err != nil || len(all) != len(want)+1 {
		t.Errorf("without a namespace of its own it lists %d containers, %v; want %d", len(all), err, len(want)+1)
	}
}

// TestGateWaitsForRestart is the whole gate on a real containerd: the recorded
// container is gone at first, and its restart monitor brings it back.
func TestGateWaitsForRestart(t *testing.T) {
	r := newRig(t, buildRootfs(t))
	r.image("one", "web", "first")
	r.run("one", "kept", "web", map[string]string{
		"nerdctl/name": "web", "containerd.io/restart.status": "running", "containerd.io/restart.policy": "always",
	})
	options := health.Options{
		Systemd:    &gate.Systemd{},
		Containers: workload.New(r.daemon.Address, "own"),
		Deadline:   time.Minute,
		Steady:     time.Nanosecond,
	}
	baseline, err := health.Record(t.Context(), options)
	if err != nil {
		t.Fatal(err)
	}
	want := []health.Workload{{
		Namespace: "one", ID: "kept", Name: "web", Image: "web",
		ImageDigest: digest.FromString("first").String(), Restart: "always",
	}}
	if diff := cmp.Diff(want, baseline.Workloads); diff != "" {
		t.Fatalf("recorded workloads (-want +got):\n%s", diff)
	}
	// The daemon comes up late, and without the container.
	r.daemon.Stop()
	options.Baseline = baseline
	done := make(chan health.Report)
	go func() { done <- health.Run(t.Context(), options) }()
	r.daemon.Resume(t)
	r.kill("one", "kept")
	if report := <-done; !report.Green {
		t.Errorf("the gate is red: %s", report.Reason())
	}
}

// A container that nobody restarts keeps the gate red, and the reason says why
// it does not run.
func TestGateNamesWhatDoesNotComeBack(t *testing.T) {
	r := newRig(t, buildRootfs(t))
	r.run("one", "lost", "", map[string]string{"nerdctl/name": "web"})
	options := health.Options{
		Systemd:    &gate.Systemd{},
		Containers: workload.New(r.daemon.Address, "own"),
		Deadline:   2 * time.Second,
		Steady:     time.Nanosecond,
	}
	var err error
	if options.Baseline, err = health.Record(t.Context(), options); err != nil {
		t.Fatal(err)
	}
	r.kill("one", "lost")
	report := health.Run(t.Context(), options)
	const want = "one/web: stopped, and it has no restart policy"
	if report.Green || !strings.Contains(report.Reason(), want) {
		t.Errorf("green %t, reason %q; want red and %q", report.Green, report.Reason(), want)
	}
}

func TestNoDaemon(t *testing.T) {
	for name, prepare := range map[string]func(t *testing.T, path string) error{
		"no socket": func(*testing.T, string) error { return syscall.ENOENT },
		"nobody listens": func(t *testing.T, path string) error {
			l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
			if err != nil {
				t.Fatal(err)
			}
			l.SetUnlinkOnClose(false)
			l.Close()
			return syscall.ECONNREFUSED
		},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "s")
			want := prepare(t, path)
			r := workload.New(path, "own")
			if err := r.Ping(t.Context()); !errors.Is(err, want) || !strings.Contains(err.Error(), path) {
				t.Errorf("ping: %v; want %v of %s", err, want, path)
			}
			if _, err := r.List(t.Context()); !errors.Is(err, want) {
				t.Errorf("list: %v; want %v", err, want)
			}
			if _, open := <-r.Changes(t.Context()); open {
				t.Error("changes of nothing")
			}
		})
	}
}

// A daemon that takes connections and never answers.
func TestSilentDaemon(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	r := workload.New(path, "own")
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	changes := r.Changes(ctx)
	if err := r.Ping(ctx); err == nil {
		t.Error("ping was answered")
	}
	if _, err := r.List(ctx); err == nil {
		t.Error("list was answered")
	}
	if _, open := <-changes; open {
		t.Error("changes of a daemon that says nothing")
	}
}

// The same with a real containerd that has stopped in its tracks.
func TestPausedDaemon(t *testing.T) {
	d := daemon.Start(t)
	r := workload.New(d.Address, "own")
	changes := r.Changes(t.Context())
	if _, open := <-changes; !open {
		t.Fatal("no changes are told")
	}
	d.Pause(t)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := r.Ping(ctx); err == nil || !strings.Contains(err.Error(), "asking containerd") {
		t.Errorf("ping of a paused daemon: %v", err)
	}
	if _, err := r.List(ctx); err == nil {
		t.Error("list of a paused daemon was answered")
	}
	d.Continue(t)
	if err := r.Ping(t.Context()); err != nil {
		t.Errorf("ping after continuing: %v", err)
	}
}
