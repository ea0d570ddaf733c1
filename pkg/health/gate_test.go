package health_test

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kapernikov/osctl/pkg/health"
	"github.com/kapernikov/osctl/test/gate"
)

func TestFakeContainers(t *testing.T) {
	gate.ContainersSuite(t, func(t *testing.T) gate.ContainersRig {
		f := &gate.Containers{}
		f.OnProbe(func(ctx context.Context, c health.Container) (string, bool) {
			if c.Declared.Exec == "silent" {
				<-ctx.Done()
			}
			return c.Declared.Exec, c.Declared.Exec == "good"
		})
		var all []health.Container
		change := func(space, id string, how func(*health.Container)) {
			for i := range all {
				if all[i].Namespace == space && all[i].ID == id {
					how(&all[i])
				}
			}
			f.Set(all...)
		}
		return gate.ContainersRig{
			Containers: f,
			Good:       health.Declaration{Exec: "good"}, Bad: health.Declaration{Exec: "bad"}, Silent: health.Declaration{Exec: "silent"},
			Declare: func(space, id string, d health.Declaration) {
				change(space, id, func(c *health.Container) { c.Declared = d })
			},
			Run: func(space, id, name string) {
				all = append(all, health.Container{
					Workload: health.Workload{Namespace: space, ID: id, Name: name}, Status: health.Running,
				})
				f.Set(all...)
			},
			Kill: func(space, id string) {
				change(space, id, func(c *health.Container) { c.Status = "stopped" })
			},
			Stop: func() { f.Fail(errGone) },
		}
	})
}

func TestFakeNetwork(t *testing.T) {
	gate.NetworkSuite(t, func(*testing.T) gate.NetworkRig {
		n := &gate.Network{}
		return gate.NetworkRig{Network: n, Come: func() { n.Set(gate.NetworkFacts()) }, Go: func() { n.Set(health.Network{}) }}
	})
}

var errGone = errors.New("connection refused")

// web is the workload of most tests: recorded with its image's digest.
var web = health.Workload{Namespace: "default", ID: "0123456789abcdef", Name: "web", Image: "web:1", ImageDigest: "sha256:aa", Restart: "always"}

func running(w health.Workload) health.Container {
	return health.Container{Workload: w, Status: health.Running}
}

// machine is a healthy machine with web on it, and the options to check it.
type machine struct {
	systemd    *gate.Systemd
	containers *gate.Containers
	options    health.Options
}

func newMachine() *machine {
	m := &machine{systemd: &gate.Systemd{}, containers: &gate.Containers{}}
	m.systemd.Set("active", "ssh.service")
	m.containers.Set(running(web))
	m.options = health.Options{
		Systemd: m.systemd, Containers: m.containers,
		Baseline:      health.Baseline{Workloads: []health.Workload{web}},
		RequiredUnits: []string{"ssh.service"},
		Deadline:      time.Minute,
		Steady:        5 * time.Second,
	}
	return m
}

// find returns the check of that name.
func find(t *testing.T, r health.Report, name string) health.Check {
	t.Helper()
	for _, c := range r.Checks {
		if c.Name == name {
			return c
		}
	}
	t.Fatalf("no check is named %q: %+v", name, r.Checks)
	return health.Check{}
}

// Everything here runs in a bubble with a clock of its own: waiting costs no
// time, and durations are exact.
func inBubble(t *testing.T, name string, f func(t *testing.T)) {
	t.Run(name, func(t *testing.T) { synctest.Test(t, f) })
}

func TestGreen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := health.Run(t.Context(), newMachine().options)
		if !r.Green || r.Reason() != "" {
			t.Fatalf("red: %s", r.Reason())
		}
		if r.Duration != 5*time.Second {
			t.Errorf("a healthy machine took %v, want just the steady time", r.Duration)
		}
		var names []string
		for _, c := range r.Checks {
			names = append(names, string(c.Kind)+" "+c.Name)
			if !c.OK || !c.Required {
				t.Errorf("check %+v", c)
			}
		}
		want := []string{
			"systemd systemd", "systemd boot jobs", "systemd failed units", "unit ssh.service",
			"containerd containerd", "workload default/web", "steady steady",
		}
		if diff := cmp.Diff(want, names); diff != "" {
			t.Errorf("checks (-want +got):\n%s", diff)
		}
	})
}

// TestRed breaks one thing at a time, for good: each has to be found, at the
// deadline, and nothing else may be blamed.
func TestRed(t *testing.T) {
	other := web
	other.ImageDigest = "sha256:bb"
	fresh := web
	fresh.ID, fresh.ImageDigest = "fedcba9876543210", ""
	loose := web
	loose.Restart = ""
	for name, c := range map[string]struct {
		breakIt func(m *machine)
		want    string
	}{
		"job left":    {func(m *machine) { m.systemd.SetPending("start a.service (running)") }, "boot jobs: start a.service (running) (expected: none left)"},
		"unit failed": {func(m *machine) { m.systemd.Set("failed", "a.service", "b.service") }, "failed units: a.service, b.service (expected: none)"},
		"unit failed, not that": {func(m *machine) {
			m.options.Baseline.FailedUnits = []string{"b.service"}
			m.systemd.Set("failed", "a.service", "b.service")
		}, "failed units: a.service (expected: none but b.service, which had failed before)"},
		"required inactive":         {func(m *machine) { m.systemd.Set("inactive", "ssh.service") }, "ssh.service: inactive (expected: active)"},
		"required missing":          {func(m *machine) { m.options.RequiredUnits = []string{"x.service"} }, "x.service: not-found (expected: active)"},
		"systemd fails":             {func(m *machine) { m.systemd.Fail(errGone) }, "systemd: connection refused (expected: answers)"},
		"no systemd":                {func(m *machine) { m.options.Systemd = nil }, "systemd: not configured (expected: answers)"},
		"containerd fails":          {func(m *machine) { m.containers.Fail(errGone) }, "containerd: connection refused (expected: answers)"},
		"containerd does not serve": {func(m *machine) { m.containers.FailPing(errGone) }, "containerd: connection refused (expected: answers)"},
		"no containerd":             {func(m *machine) { m.options.Containers = nil }, "containerd: not configured (expected: answers)"},
		"workload gone":             {func(m *machine) { m.containers.Set() }, "default/web: no such container (expected: running with image sha256:aa)"},
		"workload stopped":          {func(m *machine) { m.containers.Set(health.Container{Workload: web, Status: "stopped"}) }, "default/web: stopped (restart policy always) (expected: running with image sha256:aa)"},
		"no restart policy":         {func(m *machine) { m.containers.Set(health.Container{Workload: loose, Status: "no task"}) }, "default/web: no task, and it has no restart policy: containerd does not start it at boot (expected: running with image sha256:aa)"},
		"other image":               {func(m *machine) { m.containers.Set(running(other)) }, "default/web: running with image sha256:bb (expected: running with image sha256:aa)"},
		"new, image unknown":        {func(m *machine) { m.containers.Set(running(fresh)) }, "default/web: running; its image record is gone, so it is not known to be the same image (expected: running with image sha256:aa)"},
		"other namespace": {func(m *machine) {
			w := web
			w.Namespace = "other"
			m.containers.Set(running(w))
		}, "default/web: no such container (expected: running with image sha256:aa)"},
	} {
		inBubble(t, name, func(t *testing.T) {
			m := newMachine()
			c.breakIt(m)
			r := health.Run(t.Context(), m.options)
			if r.Green || r.Reason() != c.want {
				t.Errorf("green %t, reason:\n%s\nwant red:\n%s", r.Green, r.Reason(), c.want)
			}
			if r.Duration != time.Minute {
				t.Errorf("the verdict came after %v, want the deadline", r.Duration)
			}
		})
	}
}

// TestStillGreen has differences that do not matter.
func TestStillGreen(t *testing.T) {
	again := web
	again.ID = "fedcba9876543210"
	old := again
	old.Name, old.ID, old.ImageDigest = "web", web.ID, "sha256:bb"
	pruned := web
	pruned.ImageDigest = ""
	for name, c := range map[string]func(m *machine){
		"failed before": func(m *machine) {
			m.options.Baseline.FailedUnits = []string{"a.service"}
			m.systemd.Set("failed", "a.service")
		},
		"failed before, now ok": func(m *machine) { m.options.Baseline.FailedUnits = []string{"ssh.service"} },
		"reloading":             func(m *machine) { m.systemd.Set("reloading", "ssh.service") },
		"made anew, same name":  func(m *machine) { m.containers.Set(running(again)) },
		"old one beside it":     func(m *machine) { m.containers.Set(health.Container{Workload: old, Status: "stopped"}, running(again)) },
		"image record pruned":   func(m *machine) { m.containers.Set(running(pruned)) },
		"more containers": func(m *machine) {
			m.containers.Set(running(web), health.Container{Workload: health.Workload{Namespace: "default", ID: "x"}, Status: "stopped"})
		},
		"recorded without an image": func(m *machine) {
			m.options.Baseline.Workloads = []health.Workload{pruned}
		},
	} {
		inBubble(t, name, func(t *testing.T) {
			m := newMachine()
			c(m)
			if r := health.Run(t.Context(), m.options); !r.Green {
				t.Errorf("red: %s", r.Reason())
			}
		})
	}
}

// TestWaits has things become true late, one by one and each by an event.
func TestWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine()
		m.systemd.SetPending("start a.service (running)")
		m.systemd.Set("activating", "ssh.service")
		m.containers.Fail(errGone)
		steps := []func(){
			func() { m.systemd.SetPending() },
			func() { m.systemd.Set("active", "ssh.service") },
			func() { m.containers.Set(); m.containers.Fail(nil) },
			func() { m.containers.Set(running(web)) },
		}
		for i, step := range steps {
			time.AfterFunc(time.Duration(i+1)*10*time.Second, step)
		}
		r := health.Run(t.Context(), m.options)
		if !r.Green {
			t.Fatalf("red: %s", r.Reason())
		}
		got := map[string]time.Duration{}
		for _, c := range r.Checks {
			got[c.Name] = c.Duration
		}
		want := map[string]time.Duration{
			"systemd": 0, "failed units": 0,
			"boot jobs": 10 * time.Second, "ssh.service": 20 * time.Second,
			"containerd": 31 * time.Second, "default/web": 40 * time.Second, "steady": 45 * time.Second,
		}
		// There is nothing to listen to while containerd is away: its return is
		// seen within a second.
		if d := got["containerd"]; d < 30*time.Second || d > 31*time.Second {
			t.Errorf("containerd was seen after %v, want 30 to 31 s", d)
		}
		got["containerd"] = want["containerd"]
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("durations (-want +got):\n%s", diff)
		}
	})
}

// TestCrashLoop has a container that runs for a second out of ten. A gate that
// is told of its start must not take that for health.
func TestCrashLoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine()
		var loop sync.WaitGroup
		loop.Go(func() {
			for range 7 {
				m.containers.Set(running(web))
				time.Sleep(time.Second)
				m.containers.Set(health.Container{Workload: web, Status: "stopped"})
				time.Sleep(9 * time.Second)
			}
		})
		defer loop.Wait()
		r := health.Run(t.Context(), m.options)
		if r.Green || !strings.Contains(r.Reason(), "default/web: stopped") {
			t.Errorf("green %t: %s", r.Green, r.Reason())
		}
	})
}

// TestHeldTooShort has everything come true just before the deadline.
func TestHeldTooShort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine()
		m.systemd.Set("activating", "ssh.service")
		time.AfterFunc(57*time.Second, func() { m.systemd.Set("active", "ssh.service") })
		r := health.Run(t.Context(), m.options)
		const want = "steady: everything held for 3s (expected: everything holds for 5s within 1m0s)"
		if r.Green || r.Reason() != want {
			t.Errorf("green %t: %s; want red: %s", r.Green, r.Reason(), want)
		}
	})
}

// TestHang has one side take a question and never answer, whatever becomes of
// the context: the gate ends at its deadline and names it, and what the other
// side said is not lost.
func TestHang(t *testing.T) {
	for name, c := range map[string]struct {
		hang   func(m *machine) (release func())
		want   string
		others []string
	}{
		"systemd": {
			func(m *machine) func() { return m.systemd.Hang() },
			"systemd: no answer after ", []string{"containerd", "default/web"},
		},
		"containerd": {
			func(m *machine) func() { return m.containers.Hang() },
			"containerd: no answer after ", []string{"systemd", "boot jobs", "failed units", "ssh.service"},
		},
	} {
		check := func(t *testing.T, m *machine, r health.Report) {
			t.Helper()
			if r.Green || !strings.HasPrefix(r.Reason(), c.want) {
				t.Errorf("green %t: %s; want red: %s", r.Green, r.Reason(), c.want)
			}
			if r.Duration != m.options.Deadline {
				t.Errorf("it took %v, want the deadline", r.Duration)
			}
			for _, other := range c.others {
				if got := find(t, r, other); !got.OK {
					t.Errorf("%s: %s", other, got.Seen)
				}
			}
		}
		inBubble(t, name+" from the start", func(t *testing.T) {
			m := newMachine()
			defer c.hang(m)()
			check(t, m, health.Run(t.Context(), m.options))
		})
		inBubble(t, name+" past a short deadline", func(t *testing.T) {
			m := newMachine()
			m.options.Deadline, m.options.Steady = 3*time.Second, time.Second
			defer c.hang(m)()
			check(t, m, health.Run(t.Context(), m.options))
		})
		inBubble(t, name+" once all was well", func(t *testing.T) {
			m := newMachine()
			release := make(chan func(), 1)
			time.AfterFunc(2*time.Second, func() { release <- c.hang(m) })
			r := health.Run(t.Context(), m.options)
			(<-release)()
			check(t, m, r)
		})
		inBubble(t, name+" for a while", func(t *testing.T) {
			m := newMachine()
			time.AfterFunc(25*time.Second, c.hang(m))
			if r := health.Run(t.Context(), m.options); !r.Green {
				t.Errorf("red although it recovered: %s", r.Reason())
			}
		})
	}
}

// The look that the deadline cuts off is not the one that gives the reason: a busy
// daemon may need longer than what is left.
func TestTheLastWholeLookGivesTheReason(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine()
		m.containers.Set() // web does not come up
		release := make(chan func(), 1)
		time.AfterFunc(m.options.Deadline-6*time.Second, func() { release <- m.containers.Hang() })
		r := health.Run(t.Context(), m.options)
		(<-release)()
		if r.Green || !strings.Contains(r.Reason(), "default/web") || strings.Contains(r.Reason(), "no answer") {
			t.Errorf("green %t: %s; want red for the workload", r.Green, r.Reason())
		}
	})
}

func TestInterrupted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine()
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(2*time.Second, func() { cancel(errors.New("terminated")) })
		r := health.Run(ctx, m.options)
		const want = "steady: interrupted after 2s: terminated (expected: everything holds for 5s within 1m0s)"
		if r.Green || r.Reason() != want {
			t.Errorf("green %t: %s; want red: %s", r.Green, r.Reason(), want)
		}
	})
}

// TestEventStorm has systemd change a hundred times a second while it boots.
func TestEventStorm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine()
		m.systemd.SetPending("start a.service (running)")
		const storm = 10 * time.Second
		go func() {
			for range int(storm / (10 * time.Millisecond)) {
				time.Sleep(10 * time.Millisecond)
				m.systemd.Set("active", "other.service")
			}
			m.systemd.SetPending()
		}()
		if r := health.Run(t.Context(), m.options); !r.Green {
			t.Errorf("red: %s", r.Reason())
		}
		if asked := m.systemd.Asked(); asked > 50 {
			t.Errorf("systemd was asked %d times in 15 s, want at most about four times a second", asked)
		}
	})
}

// TestNoPolling has nothing happen for a long time: few questions are asked.
func TestNoPolling(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine()
		m.containers.Set()
		if r := health.Run(t.Context(), m.options); r.Green {
			t.Error("green without the workload")
		}
		if asked := m.systemd.Asked(); asked > 15 {
			t.Errorf("systemd was asked %d times in a minute in which nothing happened", asked)
		}
	})
}

func TestDefaults(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine()
		m.options.Deadline, m.options.Steady = 0, 0
		if r := health.Run(t.Context(), m.options); !r.Green || r.Duration != health.DefaultSteady {
			t.Errorf("green %t after %v, want green after %v", r.Green, r.Duration, health.DefaultSteady)
		}
		m.containers.Set()
		if r := health.Run(t.Context(), m.options); r.Green || r.Duration != health.DefaultDeadline {
			t.Errorf("green %t after %v, want red after %v", r.Green, r.Duration, health.DefaultDeadline)
		}
	})
}

func TestZeroReportIsRed(t *testing.T) {
	var r health.Report
	if r.Green || r.Reason() != "the gate did not run" {
		t.Errorf("green %t, reason %q", r.Green, r.Reason())
	}
}

func TestRecord(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine()
		m.systemd.Set("failed", "b.service", "a.service")
		m.containers.Set(running(web), health.Container{Workload: health.Workload{Namespace: "default", ID: "x"}, Status: "stopped"})
		want := health.Baseline{
			Workloads: []health.Workload{web}, FailedUnits: []string{"a.service", "b.service"}, RecordedAt: time.Now().Round(0).UTC(),
		}
		got, err := health.Record(t.Context(), m.options)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("baseline (-want +got):\n%s", diff)
		}

		// A published port is the container's, whoever holds it open.
		n := &gate.Network{}
		n.Set(health.Network{Listening: []string{"tcp/22 ssh.service", "tcp/8080 containerd.service"}})
		m.options.Network = n
		published := web
		published.Ports = []string{"tcp/8080"}
		m.containers.Set(running(published))
		got, err = health.Record(t.Context(), m.options)
		if diff := cmp.Diff([]string{"tcp/22 ssh.service"}, got.Listening); diff != "" || err != nil {
			t.Errorf("listening (-want +got):\n%s%v", diff, err)
		}
		m.options.Network = nil

		// What cannot be asked is an error of its own, beside what could be read.
		m.containers.Fail(errGone)
		want.Workloads = []health.Workload{}
		got, err = health.Record(t.Context(), m.options)
		if !errors.Is(err, health.ErrContainers) || errors.Is(err, health.ErrSystemd) || !errors.Is(err, errGone) {
			t.Errorf("without containerd: %v", err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("baseline without containerd (-want +got):\n%s", diff)
		}
		defer m.systemd.Hang()()
		start := time.Now()
		_, err = health.Record(t.Context(), m.options)
		if !errors.Is(err, health.ErrContainers) || !errors.Is(err, health.ErrSystemd) {
			t.Errorf("without both: %v", err)
		}
		if d := time.Since(start); d != 10*time.Second {
			t.Errorf("recording gave up on a silent systemd after %v, want 10 s", d)
		}
	})
}

// TestJSON holds the form in which the ledger stores a baseline.
func TestJSON(t *testing.T) {
	b := health.Baseline{
		Workloads: []health.Workload{web}, FailedUnits: []string{"a.service"},
		RecordedAt: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
	}
	const want = `{"workloads":[{"namespace":"default","id":"0123456789abcdef","name":"web","image":"web:1","imageDigest":"sha256:aa","restart":"always"}],` +
		`"failedUnits":["a.service"],"recordedAt":"2026-01-02T03:04:05Z"}`
	data, err := json.Marshal(b)
	if err != nil {
		t.Fatal(err)
	}
	if string(data) != want {
		t.Errorf("JSON:\n%s\nwant:\n%s", data, want)
	}
	var back health.Baseline
	if err := json.Unmarshal(data, &back); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(b, back); diff != "" {
		t.Errorf("after a round trip (-want +got):\n%s", diff)
	}
}

func TestWorkloadString(t *testing.T) {
	for want, w := range map[string]health.Workload{
		"default/web":          web,
		"default/0123456789ab": {Namespace: "default", ID: "0123456789abcdef"},
		"k8s.io/x":             {Namespace: "k8s.io", ID: "x"},
	} {
		if got := w.String(); got != want {
			t.Errorf("%+v is named %q, want %q", w, got, want)
		}
	}
}

// While all units are as they should be, systemd is asked now and then instead of
// listened to. A required unit that is away breaks the soak, whether a look falls into
// that time or not, and while it is away systemd is listened to.
func TestSystemdIsNotListenedToForEver(t *testing.T) {
	for name, away := range map[string]time.Duration{"for an instant": 0, "for a second": time.Second, "for six seconds": 6 * time.Second} {
		inBubble(t, name, func(t *testing.T) {
			m := newMachine()
			m.options.Steady = 20 * time.Second
			go func() {
				time.Sleep(10500 * time.Millisecond)
				if n := m.systemd.Listeners(); n != 0 {
					t.Errorf("%d listen to systemd though everything holds", n)
				}
				m.systemd.Set("activating", "ssh.service")
				time.Sleep(away)
				if n := m.systemd.Listeners(); away > 5*time.Second && n != 1 {
					t.Errorf("%d listen to systemd though something does not hold", n)
				}
				m.systemd.Set("active", "ssh.service")
			}()
			r := health.Run(t.Context(), m.options)
			// It has to hold for 20 s from when it was seen to be back.
			back := 10500*time.Millisecond + away
			if !r.Green || r.Duration < back+m.options.Steady || r.Duration > back+m.options.Steady+6*time.Second {
				t.Errorf("green %t after %v: %s", r.Green, r.Duration, r.Reason())
			}
		})
	}
}
