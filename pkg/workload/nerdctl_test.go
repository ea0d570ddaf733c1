package workload_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kapernikov/osctl/pkg/health"
	"github.com/kapernikov/osctl/pkg/workload"
	"github.com/kapernikov/osctl/test/daemon"
	"github.com/kapernikov/osctl/test/gate"
	"github.com/kapernikov/osctl/test/nerdctl"
)

const app = "example.com/app:1"

// shop is a compose application of two services. Neither has a restart policy: the
// restart monitor of the tests looks every second and would take a container that is
// being made for a dead one.
const shop = `
name: shop
services:
  db:
    image: ` + app + `
    network_mode: none
    command: ["serve", "127.0.0.1:5432"]
    labels:
      osctl.gate.tcp: ":5432"
      osctl.gate.exec: '["/app", "say", "0", "accepting connections"]'
      osctl.gate.timeout: 45s
  web:
    image: ` + app + `
    network_mode: none
    command: ["serve", "127.0.0.1:80", "127.0.0.1:81"]
    labels:
      osctl.gate: required
      osctl.gate.http: http://localhost/ok
`

// nerdctl starts a containerd that the real nerdctl works with.
func withNerdctl(t *testing.T, labels map[string]string) *nerdctl.Rig {
	t.Helper()
	root := daemon.BuildApp(t)
	d := nerdctl.Start(t)
	d.LoadApp(root, app, labels)
	return d
}

// listed are all containers by their names.
func listed(t *testing.T, d *nerdctl.Rig) map[string]health.Container {
	t.Helper()
	list, err := workload.New(d.Address, "own").List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]health.Container{}
	for _, c := range list {
		all[c.String()] = c
	}
	return all
}

// TestNerdctlCompose: a compose application is read, recorded and asked. Labels of its
// image count where the application has none of that name.
func TestNerdctlCompose(t *testing.T) {
	d := withNerdctl(t, map[string]string{"osctl.gate.timeout": "1m", "osctl.gate": "wanted"})
	file := filepath.Join(t.TempDir(), "compose.yaml")
	if err := os.WriteFile(file, []byte(shop), 0o600); err != nil {
		t.Fatal(err)
	}
	d.Run("compose", "-f", file, "up", "-d")
	d.Run("update", "--restart", "always", "shop-web-1")
	all := listed(t, d)
	want := map[string]health.Workload{
		"apps/shop/db": {Name: "shop-db-1", Service: "db", Declared: health.Declaration{
			Level: health.Wanted, Timeout: 45 * time.Second, TCP: ":5432", Exec: `["/app", "say", "0", "accepting connections"]`,
		}},
		"apps/shop/web": {Name: "shop-web-1", Service: "web", Restart: "always", Declared: health.Declaration{
			Level: health.Required, Timeout: time.Minute, HTTP: "http://localhost/ok",
		}},
	}
	for name, w := range want {
		got := all[name].Workload
		w.Namespace, w.Project, w.ID, w.Image = "apps", "shop", got.ID, app
		w.ImageDigest = got.ImageDigest
		if diff := cmp.Diff(w, got); diff != "" || !strings.HasPrefix(got.ImageDigest, "sha256:") || all[name].Pid == 0 {
			t.Errorf("%s (-want +got):\n%s%+v", name, diff, all[name])
		}
	}
	o := health.Options{Systemd: &gate.Systemd{}, Containers: workload.New(d.Address, "own"), Deadline: time.Minute, Steady: time.Millisecond}
	var err error
	if o.Baseline, err = health.Record(t.Context(), o); err != nil || len(o.Baseline.Workloads) != 2 {
		t.Fatalf("recorded %+v, %v", o.Baseline.Workloads, err)
	}
	report := health.Run(t.Context(), o)
	seen := map[string]string{}
	for _, c := range report.Checks {
		seen[c.Name] = c.Seen
	}
	if !report.Green || !strings.HasSuffix(seen["apps/shop/db"], "; tcp :5432: connects; exec: exit status 0") || !strings.HasSuffix(seen["apps/shop/web"], "; http://localhost/ok: 200 OK") {
		t.Errorf("green %t: %v", report.Green, seen)
	}
	// The new system has another one in its place, which answers badly.
	d.Run("rm", "-f", "shop-web-1", "shop-db-1")
	other := strings.NewReplacer("/ok", "/bad", `"say", "0"`, `"say", "9"`, "osctl.gate: required", "x: y", "osctl.gate.timeout: 45s", "osctl.gate: required").Replace(shop)
	if err := os.WriteFile(file, []byte(other), 0o600); err != nil {
		t.Fatal(err)
	}
	d.Run("compose", "-f", file, "up", "-d")
	o.Deadline = 10 * time.Second
	report = health.Run(t.Context(), o)
	image := o.Baseline.Workloads[0].ImageDigest
	reason := "apps/shop/db: running with image " + image + "; exec: exit status 9, accepting connections (expected: running with image " + image + ", and answering)"
	if report.Green || !strings.Contains(report.Reason(), reason) || strings.Contains(report.Reason(), "shop/web") {
		t.Errorf("green %t: %s; want %q and nothing of web", report.Green, report.Reason(), reason)
	}
	if got := strings.Join(report.Warnings(), "; "); !strings.Contains(got, "; http://localhost/bad: 503 Service Unavailable instead of 200 to 299, the database is ?[31maway (expected: ") {
		t.Errorf("warnings %q", got)
	}
}

// TestNerdctlPorts reads what nerdctl has published.
func TestNerdctlPorts(t *testing.T) {
	d := withNerdctl(t, nil)
	d.Run("run", "-d", "--name", "web", "--net", "none", "-p", "127.0.0.1:18053:53/udp", "-p", "18080-18081:80-81", app)
	want := []string{"tcp/18080", "tcp/18081", "udp/127.0.0.1:18053"}
	if got := listed(t, d)["apps/web"].Ports; cmp.Diff(want, got) != "" {
		t.Errorf("ports %v, want %v", got, want)
	}
}

// TestNerdctlHealth: while nerdctl runs a health check by a timer, what that says is the
// health; without the timer, as after a boot, the gate runs it by itself.
func TestNerdctlHealth(t *testing.T) {
	d := withNerdctl(t, map[string]string{"nerdctl/healthcheck": `{"Test":["CMD","/app","healthy"],"Retries":1,"Timeout":20000000000}`})
	d.Run("run", "-d", "--name", "web", "--net", "none", app)
	d.Run("run", "-d", "--name", "none", "--net", "none", "--no-healthcheck", app)
	id := listed(t, d)["apps/web"].ID
	timers := t.TempDir()
	timer := filepath.Join(timers, id+".timer")
	reader := workload.New(d.Address, "own").WithTransient(timers)
	expect := func(state string, ask time.Duration, seen string) {
		t.Helper()
		list, err := reader.List(t.Context())
		if err != nil || len(list) != 2 {
			t.Fatalf("list %+v, %v", list, err)
		}
		for _, c := range list {
			if c.Name == "none" && (c.Health != "" || c.Declared.HealthCheck != 0) {
				t.Errorf("without a health check it is %q", c.Health)
			}
			if c.Name != "web" {
				continue
			}
			if c.Health != state || c.Declared.HealthCheck != ask {
				t.Errorf("health %q, asked for %v; want %q, %v", c.Health, c.Declared.HealthCheck, state, ask)
			}
			if got, ok := reader.Probe(t.Context(), c); ask > 0 && (!strings.Contains(got, seen) || ok == strings.Contains(seen, "exit status 1")) {
				t.Errorf("asked, it says %q, %t; want %q", got, ok, seen)
			}
		}
	}
	if err := os.WriteFile(timer, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	expect("starting", 0, "")
	d.Run("exec", "web", "/app", "well")
	d.Run("container", "healthcheck", "web")
	expect("healthy", 0, "")
	d.Run("exec", "web", "/app", "ill")
	d.Run("container", "healthcheck", "web")
	expect("unhealthy", 0, "")
	if err := os.Remove(timer); err != nil {
		t.Fatal(err)
	}
	expect("", 20*time.Second, "health check: exit status 1, stat /healthy: no such file or directory")
	d.Run("exec", "web", "/app", "well")
	expect("", 20*time.Second, "health check: exit status 0")
}

// TestTimersOfSystemd: a timer that is made as nerdctl makes it has its file among the
// transient units.
func TestTimersOfSystemd(t *testing.T) {
	s := daemon.StartSystemd(t, map[string]string{"default.target": "[Unit]\nDescription=all\n"})
	runtime := filepath.Dir(filepath.Dir(s.Socket))
	cmd := exec.Command("systemd-run", "--user", "--unit", "0123abcd", "--on-unit-inactive=1h", "--timer-property=AccuracySec=1s", "true")
	cmd.Env = append(os.Environ(), "XDG_RUNTIME_DIR="+runtime)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if _, err := os.Stat(filepath.Join(runtime, "systemd/transient/0123abcd.timer")); err != nil {
		t.Error(err)
	}
}

// TestNerdctlRestarts: the count of a container that comes up and dies climbs, and the
// gate names it.
func TestNerdctlRestarts(t *testing.T) {
	d := withNerdctl(t, nil)
	d.Run("run", "-d", "--name", "web", "--net", "none", app)
	reader := workload.New(d.Address, "own")
	o := health.Options{Systemd: &gate.Systemd{}, Containers: reader, Deadline: 8 * time.Second, Steady: 4 * time.Second}
	var err error
	if o.Baseline, err = health.Record(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	d.Run("rm", "-f", "web")
	d.Run("run", "-d", "--name", "web", "--net", "none", app, "die", "1")
	d.Run("update", "--restart", "always", "web")
	changes := reader.Changes(t.Context())
	for listed(t, d)["apps/web"].Restarts < 2 {
		if _, open := <-changes; !open {
			t.Fatal("the changes ended before it was started again twice")
		}
	}
	report := health.Run(t.Context(), o)
	if report.Green || !strings.Contains(report.Reason(), "apps/web: ") {
		t.Errorf("green %t: %s", report.Green, report.Reason())
	}
}
