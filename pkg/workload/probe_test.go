package workload_test

import (
	"bufio"
	"context"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"testing"
	"time"

	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/kapernikov/osctl/pkg/health"
	"github.com/kapernikov/osctl/pkg/workload"
	"github.com/kapernikov/osctl/test/daemon"
)

// find is the container as the reader sees it.
func (r *rig) find(id string) health.Container {
	r.t.Helper()
	list, err := workload.New(r.daemon.Address, "own").List(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	for _, c := range list {
		if c.ID == id {
			return c
		}
	}
	r.t.Fatalf("there is no container %s", id)
	panic("unreachable")
}

// line is the next line that a container says.
func line(t *testing.T, says *bufio.Scanner, want string) {
	t.Helper()
	if !says.Scan() || says.Text() != want {
		t.Fatalf("the container says %q, %v; want %q", says.Text(), says.Err(), want)
	}
}

// probe asks a container what labels say.
func (r *rig) probe(ctx context.Context, id string, labels map[string]string) (string, bool) {
	r.t.Helper()
	c := r.find(id)
	c.Declared = workload.Declare(labels)
	return workload.New(r.daemon.Address, "own").Probe(ctx, c)
}

// TestProbeNetwork asks a real container in a network of its own over it.
func TestProbeNetwork(t *testing.T) {
	r := newRig(t, daemon.BuildApp(t))
	if err := os.MkdirAll(filepath.Join(r.rootfs, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(r.rootfs, "etc/hosts"), []byte("127.0.0.9 db DB.shop # the database\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	// What answers on the host must not be taken for the container.
	outside, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer outside.Close()
	_, port, _ := net.SplitHostPort(outside.Addr().String())
	says := r.start("one", "web", nil, r.spec("one", "web", "serve", "127.0.0.1:80", "[::1]:81", "127.0.0.9:82"))
	line(t, says, "ready")
	for _, c := range []struct {
		label, value string
		want         string // of what is seen
		ok           bool
	}{
		{"http", "http://localhost/ok", "http://localhost/ok: 200 OK", true},
		{"http", "http://localhost:81/ok?token=secret", "http://localhost:81/ok: 200 OK", true},
		{"http", "http://localhost/made 204", "204 No Content", true},
		{"http", "http://localhost/made 200", "204 No Content instead of 200", false},
		{"http", "http://localhost/bad", "503 Service Unavailable instead of 200 to 299, the database is ?[31maway", false},
		{"http", "http://localhost/bad 503", "503 Service Unavailable", true},
		{"http", "http://localhost/elsewhere", "302 Found", false},
		{"http", "http://localhost/elsewhere 302", "302 Found", true},
		{"http", "http://localhost/endless", "500 Internal Server Error", false},
		{"http", "http://db:82/ok", "200 OK", true},
		{"http", "http://localhost:" + port + "/ok", "connection refused", false},
		{"http", "http://example.com/", "example.com is no address, not localhost and not in the container's /etc/hosts", false},
		{"tcp", ":80", "tcp :80: connects", true},
		{"tcp", "[::1]:81", "connects", true},
		{"tcp", "db.shop:82", "connects", true},
		{"tcp", "localhost:" + port, "connection refused", false},
		{"tcp", "192.0.2.1:80", "unreachable", false},
		{"tcp", ":http", `"http" is no port from 1 to 65535; allowed is [host]:port`, false},
	} {
		seen, ok := r.probe(t.Context(), "web", map[string]string{"osctl.gate." + c.label: c.value})
		if ok != c.ok || !strings.Contains(seen, c.want) || strings.Contains(seen, "secret") || strings.ContainsAny(seen, "\n\x1b") {
			t.Errorf("%s %s: %q, %t; want %q, %t", c.label, c.value, seen, ok, c.want, c.ok)
		}
	}
	all := map[string]string{"osctl.gate.http": "http://localhost/bad", "osctl.gate.tcp": ":80", "osctl.gate.exec": `["/app", "say", "3", "no"]`}
	if seen, ok := r.probe(t.Context(), "web", all); ok || !strings.Contains(seen, "503") || !strings.Contains(seen, "exec: exit status 3, no") || strings.Contains(seen, "tcp") {
		t.Errorf("of three questions: %q, %t; want the two that failed", seen, ok)
	}
	all["osctl.gate.http"], all["osctl.gate.exec"] = "http://localhost/ok", `["/app", "say", "0", "yes"]`
	if seen, ok := r.probe(t.Context(), "web", all); !ok || seen != "http://localhost/ok: 200 OK; tcp :80: connects; exec: exit status 0" {
		t.Errorf("of three questions: %q, %t; want three answers", seen, ok)
	}
}

// TestProbeTimes: who does not answer is given up, and notices.
func TestProbeTimes(t *testing.T) {
	r := newRig(t, daemon.BuildApp(t))
	says := r.start("one", "web", nil, r.spec("one", "web", "serve", "127.0.0.1:80"))
	line(t, says, "ready")
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		defer cancel()
		line(t, says, "asked")
	}()
	if seen, ok := r.probe(ctx, "web", map[string]string{"osctl.gate.http": "http://localhost/silent"}); ok || !strings.Contains(seen, "http://localhost/silent: no answer after ") {
		t.Errorf("a service that does not answer: %q, %t", seen, ok)
	}
	line(t, says, "gave up")
	if seen, ok := r.probe(ctx, "web", map[string]string{"osctl.gate.tcp": ":80"}); ok {
		t.Errorf("an answer in spite of a context that is done: %q", seen)
	}
}

// TestProbeHostNetwork asks a container that has no network of its own, and one that is
// not there any more.
func TestProbeHostNetwork(t *testing.T) {
	r := newRig(t, daemon.BuildApp(t))
	r.start("one", "host", nil, r.specWith("one", "host", []string{"wait"}, oci.WithHostNamespace(specs.NetworkNamespace)))
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.NotFoundHandler()}
	go func() { _ = server.Serve(listener) }()
	defer server.Close()
	label := map[string]string{"osctl.gate.http": "http://" + listener.Addr().String() + "/x 404"}
	if seen, ok := r.probe(t.Context(), "host", label); !ok || !strings.Contains(seen, "404 Not Found") {
		t.Errorf("in the network of the host: %q, %t", seen, ok)
	}
	gone := r.find("host")
	gone.Declared = workload.Declare(map[string]string{"osctl.gate.tcp": listener.Addr().String(), "osctl.gate.exec": `["/app", "say", "0", "x"]`})
	r.kill("one", "host")
	if seen, ok := workload.New(r.daemon.Address, "own").Probe(t.Context(), gone); ok || strings.Count(seen, ": ") < 2 {
		t.Errorf("of a container that ended: %q, %t", seen, ok)
	}
	// The number of its process belongs to another one now.
	gone.Pid = uint32(os.Getpid())
	seen, ok := workload.New(r.daemon.Address, "own").Probe(t.Context(), gone)
	if ok || !strings.Contains(seen, "tcp "+listener.Addr().String()+": it has just ended") || !strings.Contains(seen, "exec: it has just ended") {
		t.Errorf("of a process that is another one by now: %q, %t", seen, ok)
	}
}

// mine are the processes that were started by probes of a container.
func (r *rig) mine(id string) (list []string) {
	r.t.Helper()
	ctx := namespaces.WithNamespace(r.t.Context(), "one")
	c, err := r.client.LoadContainer(ctx, id)
	if err != nil {
		r.t.Fatal(err)
	}
	task, err := c.Task(ctx, nil)
	if err != nil {
		r.t.Fatal(err)
	}
	pids, err := task.Pids(ctx)
	if err != nil {
		r.t.Fatal(err)
	}
	for _, p := range pids {
		if p.Pid == task.Pid() {
			continue
		}
		name, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(int(p.Pid)), "cmdline"))
		if err == nil && len(name) > 0 { // a zombie has none
			list = append(list, strings.ReplaceAll(string(name), "\x00", " "))
		}
	}
	return list
}

// TestProbeExec runs commands in a real container. None leaves anything behind.
func TestProbeExec(t *testing.T) {
	r := newRig(t, daemon.BuildApp(t))
	r.start("one", "web", nil, r.specWith("one", "web", []string{"wait"}, oci.WithEnv([]string{"PLACE=here"})))
	for _, c := range []struct {
		value, want string
		ok          bool
	}{
		{`["/app", "say", "0", "fine"]`, "exec: exit status 0", true},
		{`["/app", "say", "7", "the \u001b[31mdatabase is away"]`, "exec: exit status 7, the ?[31mdatabase is away", false},
		{`["/app", "env", "PLACE"]`, "exit status 1, here", false},
		{`["/app", "spam", "5"]`, "exit status 5, xxxx", false},
		{`["/app", "fork", "0"]`, "exec: exit status 0 (processes that it left were ended: 1)", true},
		{`["/app", "fork", "9"]`, "exec: exit status 9", false},
		{`["/none"]`, "no such file or directory", false},
		{`/app say 0 x`, "/bin/sh", false}, // there is no shell in it
		{`[`, "allowed is a line for /bin/sh, or a JSON array", false},
	} {
		seen, ok := r.probe(t.Context(), "web", map[string]string{"osctl.gate.exec": c.value})
		if ok != c.ok || !strings.Contains(seen, c.want) || len(seen) > 400 {
			t.Errorf("%s: %q, %t; want %q, %t", c.value, seen, ok, c.want, c.ok)
		}
		if left := r.mine("web"); len(left) > 0 {
			t.Fatalf("%s leaves %v", c.value, left)
		}
	}
	if now := r.commands(); len(now) > 0 {
		t.Errorf("containerd keeps %v", now)
	}
}

// TestCommandsAreNoChange: nobody is woken by a command in a container, as probes and
// health checks are; but by the end of the container.
func TestCommandsAreNoChange(t *testing.T) {
	r := newRig(t, daemon.BuildApp(t))
	told, errs := r.client.Subscribe(t.Context(), `topic~="^/tasks/(start|exit)$"`)
	tells := func(topic string) {
		t.Helper()
		select {
		case event := <-told:
			if event.Topic != topic {
				t.Fatalf("containerd tells of %s, want %s", event.Topic, topic)
			}
		case err := <-errs:
			t.Fatal(err)
		}
	}
	if _, err := r.client.IsServing(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.start("one", "web", nil, r.spec("one", "web", "wait"))
	tells("/tasks/start")
	changes := workload.New(r.daemon.Address, "own").Changes(t.Context())
	<-changes
	for range 5 {
		if seen, ok := r.probe(t.Context(), "web", map[string]string{"osctl.gate.exec": `["/app", "say", "0", "x"]`}); !ok {
			t.Fatal(seen)
		}
		tells("/tasks/exit")
	}
	select {
	case <-changes:
		t.Error("a command is told as a change")
	default:
	}
	r.kill("one", "web")
	<-changes
}

// TestProbeExecHangs: a command that takes no signal, and has left a process that holds
// its output, is ended with it when the time is up, though nobody listens any more to
// whose connection it was started by.
func TestProbeExecHangs(t *testing.T) {
	r := newRig(t, daemon.BuildApp(t))
	r.start("one", "web", nil, r.spec("one", "web", "wait"))
	ctx, cancel := context.WithCancel(t.Context())
	var ids []string
	r.onExec(func() {
		for len(r.mine("web")) < 2 { // it is about to start the other one
		}
		if ids = r.commands(); len(ids) != 1 || len(glob(t, "/run/containerd/fifo/*/"+ids[0]+"*")) != 2 {
			t.Errorf("the command that runs is %v and should have two pipes", ids)
		}
		cancel()
	})
	reader := workload.New(r.daemon.Address, "own")
	<-reader.Changes(ctx)
	c := r.find("web")
	c.Declared = workload.Declare(map[string]string{"osctl.gate.exec": `["/app", "hang"]`})
	seen, ok := reader.Probe(ctx, c)
	if ok || !strings.Contains(seen, "exec: no answer after ") || !strings.Contains(seen, ": it was ended") {
		t.Errorf("a command that hangs: %q, %t", seen, ok)
	}
	if left := r.mine("web"); len(left) > 0 {
		t.Errorf("it leaves %v", left)
	}
	if now := r.commands(); len(now) > 0 {
		t.Errorf("containerd keeps %v", now)
	}
	for _, id := range ids {
		if pipes := glob(t, "/run/containerd/fifo/*/"+id+"*"); len(pipes) > 0 {
			t.Errorf("pipes are left: %v", pipes)
		}
	}
	if seen, ok := r.probe(t.Context(), "web", map[string]string{"osctl.gate.exec": `["/app", "say", "0", "x"]`}); !ok {
		t.Errorf("the next command: %s", seen)
	}
}

// TestProbeExecOfDying: the container ends while its command runs.
func TestProbeExecOfDying(t *testing.T) {
	r := newRig(t, daemon.BuildApp(t))
	r.start("one", "web", nil, r.spec("one", "web", "wait"))
	r.onExec(func() { r.kill("one", "web") })
	seen, ok := r.probe(t.Context(), "web", map[string]string{"osctl.gate.exec": `["/app", "wait"]`})
	if ok || !strings.Contains(seen, "exec: exit status 137") {
		t.Errorf("a command of a container that ends: %q, %t", seen, ok)
	}
}

// TestProbeExecWithoutDaemon: containerd ends while a command runs that hangs.
func TestProbeExecWithoutDaemon(t *testing.T) {
	r := newRig(t, daemon.BuildApp(t))
	r.start("one", "web", nil, r.spec("one", "web", "wait"))
	stopped := r.onExec(func() {
		for len(r.mine("web")) < 2 {
		}
		r.daemon.Stop()
	})
	seen, ok := r.probe(t.Context(), "web", map[string]string{"osctl.gate.exec": `["/app", "hang"]`})
	<-stopped
	if ok || !strings.Contains(seen, "exec: ") {
		t.Errorf("a command whose containerd ends: %q, %t", seen, ok)
	}
	r.daemon.Resume(t)
	if left := r.mine("web"); len(left) > 0 {
		t.Errorf("it leaves %v", left)
	}
	if seen, ok := r.probe(t.Context(), "web", map[string]string{"osctl.gate.exec": `["/app", "say", "0", "x"]`}); !ok {
		t.Errorf("the next command: %s", seen)
	}
}

// onExec calls f in the background when a command has been started in a container. The
// channel is closed when that is over.
func (r *rig) onExec(f func()) (done chan struct{}) {
	events, errs := r.client.Subscribe(r.t.Context(), `topic=="/tasks/exec-started"`)
	if _, err := r.client.IsServing(r.t.Context()); err != nil {
		r.t.Fatal(err)
	}
	done = make(chan struct{})
	go func() {
		defer close(done)
		select {
		case <-events:
			f()
		case err := <-errs:
			r.t.Errorf("waiting for a command to start: %v", err)
		}
	}()
	return done
}

// commands are those that containerd knows of, by the files with their processes' numbers.
func (r *rig) commands() (ids []string) {
	for _, path := range glob(r.t, r.daemon.Root+"/state/*/*/*/osctl-gate-*.pid") {
		ids = append(ids, strings.TrimSuffix(filepath.Base(path), ".pid"))
	}
	return ids
}

func glob(t *testing.T, pattern string) []string {
	t.Helper()
	list, err := filepath.Glob(pattern)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// TestProbeSilentDaemon: containerd stands still when a container is to be asked.
func TestProbeSilentDaemon(t *testing.T) {
	r := newRig(t, daemon.BuildApp(t))
	r.start("one", "web", nil, r.spec("one", "web", "wait"))
	c := r.find("web")
	c.Declared = workload.Declare(map[string]string{"osctl.gate.exec": `["/app", "say", "0", "x"]`})
	r.daemon.Pause(t)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if seen, ok := workload.New(r.daemon.Address, "own").Probe(ctx, c); ok || !strings.Contains(seen, "no answer after") {
		t.Errorf("%q, %t", seen, ok)
	}
	r.daemon.Continue(t)
	r.daemon.Stop()
	if seen, ok := workload.New(r.daemon.Address, "own").Probe(t.Context(), c); ok || !strings.Contains(seen, "connecting to containerd") {
		t.Errorf("%q, %t", seen, ok)
	}
}
