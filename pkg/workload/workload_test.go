package workload_test

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/kapernikov/osctl/pkg/health"
	"github.com/kapernikov/osctl/pkg/workload"
	"github.com/kapernikov/osctl/test/daemon"
	"github.com/kapernikov/osctl/test/gate"
)

func TestRealContainerd(t *testing.T) {
	rootfs := daemon.BuildApp(t)
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
			Declare: r.declare,
			Kill:    r.kill,
			Stop:    r.daemon.Stop,
			Good:    health.Declaration{Exec: `["/app", "say", "0", "good"]`},
			Bad:     health.Declaration{Exec: `["/app", "say", "1", "bad"]`},
			Silent:  health.Declaration{Exec: `["/app", "wait"]`},
		}
	})
}

func TestListReadsRecords(t *testing.T) {
	r := newRig(t, daemon.BuildApp(t))
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
	for i := range got {
		if (got[i].Pid == 0) != (got[i].Status == "no task") {
			t.Errorf("%s has process %d, status %s", got[i].ID, got[i].Pid, got[i].Status)
		}
		got[i].Pid = 0
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

// TestListReadsLabels: what nerdctl, its compose and the restart monitor leave on a
// container, of this and of earlier versions.
func TestListReadsLabels(t *testing.T) {
	r := newRig(t, daemon.BuildApp(t))
	state := t.TempDir()
	const mappings = `{"portMappings":[
		{"HostPort":8080,"ContainerPort":80,"Protocol":"tcp","HostIP":"0.0.0.0"},
		{"HostPort":8080,"ContainerPort":80,"Protocol":"tcp","HostIP":"::"},
		{"HostPort":53,"ContainerPort":53,"Protocol":"udp","HostIP":"10.0.0.1"},
		{"HostPort":443,"ContainerPort":443,"Protocol":"tcp","HostIP":"fd00::1"},
		{"HostPort":0,"ContainerPort":1,"Protocol":"tcp","HostIP":""},
		{"HostPort":1,"ContainerPort":1,"Protocol":"\u001b","HostIP":""}]}`
	if err := os.WriteFile(filepath.Join(state, "network-config.json"), []byte(mappings), 0o600); err != nil {
		t.Fatal(err)
	}
	pipe := t.TempDir()
	if err := unix.Mkfifo(filepath.Join(pipe, "network-config.json"), 0o600); err != nil {
		t.Fatal(err)
	}
	const check = `{"Test":["CMD-SHELL","true"],"Interval":30000000000}`
	for id, labels := range map[string]map[string]string{
		"a": {
			"nerdctl/name": "shop-db-1", "com.docker.compose.project": "shop", "com.docker.compose.service": "db",
			"nerdctl/state-dir": state, "nerdctl/ports": `[{"HostPort":1,"Protocol":"tcp"}]`,
			"containerd.io/restart.count": "7",
			"nerdctl/healthcheck":         check, "nerdctl/healthstate": `{"Status":"unhealthy","FailingStreak":3,"InStartPeriod":false}`,
			"osctl.gate": "wanted", "osctl.gate.tcp": ":80",
		},
		"b": {"nerdctl/state-dir": pipe, "nerdctl/ports": `[{"HostPort":1,"Protocol":"tcp"}]`, "containerd.io/restart.count": "-1", "nerdctl/healthcheck": check},
		"c": {"nerdctl/state-dir": "relative", "nerdctl/ports": "{", "containerd.io/restart.count": "x", "nerdctl/healthcheck": check, "nerdctl/healthstate": `{"Status":"\u001b"}`},
		"d": {"nerdctl/healthcheck": `{"Test":["NONE"]}`, "nerdctl/healthstate": `{"Status":"unhealthy"}`, "osctl.gate": "no"},
	} {
		r.run("one", id, "", labels)
	}
	timers := t.TempDir()
	for _, id := range []string{"a", "b", "c", "d"} {
		if err := os.WriteFile(filepath.Join(timers, id+".timer"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	got, err := workload.New(r.daemon.Address, "own").WithTransient(timers).List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var list []health.Workload
	for _, c := range got {
		list = append(list, c.Workload)
	}
	want := []health.Workload{
		{
			Namespace: "one", ID: "a", Name: "shop-db-1", Project: "shop", Service: "db", Restarts: 7, Health: "unhealthy",
			Ports:    []string{"tcp/8080", "tcp/[fd00::1]:443", "udp/10.0.0.1:53"},
			Declared: health.Declaration{Level: health.Wanted, TCP: ":80"},
		},
		{Namespace: "one", ID: "b", Ports: []string{"tcp/1"}, Health: "starting"},
		{Namespace: "one", ID: "c", Health: "starting"},
		{Namespace: "one", ID: "d", Declared: health.Declaration{Bad: "osctl.gate=no: allowed are required, wanted, ignore"}},
	}
	if diff := cmp.Diff(want, list); diff != "" {
		t.Errorf("list (-want +got):\n%s", diff)
	}
	if got := list[0].String(); got != "one/shop/db" {
		t.Errorf("it is called %s", got)
	}
}

// TestGateWaitsForRestart is the whole gate on a real containerd: the recorded
// container is gone at first, and its restart monitor brings it back.
func TestGateWaitsForRestart(t *testing.T) {
	r := newRig(t, daemon.BuildApp(t))
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
	r := newRig(t, daemon.BuildApp(t))
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

// That the connection of Changes has ended says nothing of the daemon.
func TestSharedConnectionThatEnded(t *testing.T) {
	d := daemon.Start(t)
	client, err := containerd.New(d.Address)
	if err != nil {
		t.Fatal(err)
	}
	if err := client.Close(); err != nil {
		t.Fatal(err)
	}
	r := workload.New(d.Address, "own")
	r.Share(client)
	if err := r.Ping(t.Context()); err != nil {
		t.Errorf("ping: %v", err)
	}
	if _, err := r.List(t.Context()); err != nil {
		t.Errorf("list: %v", err)
	}
}
