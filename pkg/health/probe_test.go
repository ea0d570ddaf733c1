package health_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kapernikov/osctl/pkg/health"
	"github.com/kapernikov/osctl/test/gate"
)

// answer is a probe that counts how often it was run and answers what ok says.
func answer(runs *atomic.Int32, ok func(run int32) bool) health.Probe {
	return health.Probe{
		Kind: health.KindScript, Name: "10_check.sh", Expected: "exit 0",
		Run: func(context.Context) (string, bool) {
			if ok(runs.Add(1)) {
				return "exit 0", true
			}
			return "exit 1", false
		},
	}
}

// TestProbes: a probe that holds is asked once more after the soak, one that does not
// is asked until it does.
func TestProbes(t *testing.T) {
	for name, c := range map[string]struct {
		ok     func(run int32) bool
		level  health.Level
		within time.Duration
		green  bool
		took   time.Duration
		runs   int32
		reason string
	}{
		"holds":                 {ok: func(int32) bool { return true }, green: true, took: 30 * time.Second, runs: 2},
		"holds at the third":    {ok: func(n int32) bool { return n >= 3 }, green: true, took: 40 * time.Second, runs: 4},
		"fails after the soak":  {ok: func(n int32) bool { return n != 2 }, green: true, took: 65 * time.Second, runs: 4},
		"never":                 {ok: func(int32) bool { return false }, took: 2 * time.Minute, reason: "10_check.sh: exit 1 (expected: exit 0)"},
		"wanted, never":         {ok: func(int32) bool { return false }, level: health.Wanted, green: true, took: 30 * time.Second, runs: 7},
		"not within its time":   {ok: func(int32) bool { return false }, within: 12 * time.Second, took: 12 * time.Second, runs: 3, reason: "10_check.sh: exit 1, after 12s (expected: exit 0 within 12s)"},
		"within its time, once": {ok: func(n int32) bool { return n == 1 }, within: 12 * time.Second, took: 2 * time.Minute, runs: 0, reason: "10_check.sh: exit 1 (expected: exit 0)"},
	} {
		inBubble(t, name, func(t *testing.T) {
			m := newMachine()
			m.options.Steady, m.options.Deadline = 30*time.Second, 2*time.Minute
			var runs atomic.Int32
			p := answer(&runs, c.ok)
			p.Level, p.Within, p.Once = c.level, c.within, true
			m.options.Probes = []health.Probe{p}
			r := health.Run(t.Context(), m.options)
			synctest.Wait()
			if r.Green != c.green || r.Reason() != c.reason {
				t.Errorf("green %t, reason %q; want %t, %q", r.Green, r.Reason(), c.green, c.reason)
			}
			if d := r.Duration - c.took; d < 0 || d > time.Second {
				t.Errorf("it took %v, want %v", r.Duration, c.took)
			}
			if n := runs.Load(); c.runs > 0 && n != c.runs {
				t.Errorf("it was run %d times, want %d", n, c.runs)
			}
		})
	}
}

// TestProbeHangs: a probe that heeds nothing neither holds the gate up nor is started a
// second time beside itself.
func TestProbeHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine()
		release := make(chan struct{})
		var runs atomic.Int32
		m.options.Probes = []health.Probe{{Kind: health.KindExec, Name: "hangs", Timeout: 3 * time.Second, Run: func(context.Context) (string, bool) {
			runs.Add(1)
			<-release
			return "", true
		}}}
		r := health.Run(t.Context(), m.options)
		if r.Green || r.Duration != time.Minute || !strings.Contains(r.Reason(), "hangs: the run before has still not ended") {
			t.Errorf("green %t after %v: %s", r.Green, r.Duration, r.Reason())
		}
		if n := runs.Load(); n != 1 {
			t.Errorf("it was started %d times, want once", n)
		}
		close(release)
	})
}

// TestProbesEnd: at the deadline, what a probe has started is given the time to end; one
// that does not is left after two seconds.
func TestProbesEnd(t *testing.T) {
	for name, takes := range map[string]time.Duration{"in time": time.Second, "too late": time.Hour} {
		inBubble(t, name, func(t *testing.T) {
			m := newMachine()
			var ended atomic.Bool
			m.options.Probes = []health.Probe{{Kind: health.KindExec, Name: "hangs", Timeout: time.Hour, Run: func(ctx context.Context) (string, bool) {
				<-ctx.Done()
				time.Sleep(takes)
				ended.Store(true)
				return "", false
			}}}
			r := health.Run(t.Context(), m.options)
			since := time.Since(r.Started)
			if r.Green || ended.Load() != (takes == time.Second) || r.Duration != time.Minute || since > time.Minute+2*time.Second {
				t.Errorf("ended %t, %v after the start: %+v", ended.Load(), since, r)
			}
			time.Sleep(takes) // a bubble ends when all in it have ended
		})
	}
}

// TestDeclared: what a container says of itself decides.
func TestDeclared(t *testing.T) {
	for name, c := range map[string]struct {
		change func(c *health.Container)
		answer func(run int32) (string, bool)
		want   string // the reason; "" is green
		seen   string // part of what the check says
	}{
		"ignored":             {change: func(c *health.Container) { c.Declared.Level, c.Status = health.Ignore, "stopped" }},
		"wanted":              {change: func(c *health.Container) { c.Declared.Level, c.Status = health.Wanted, "stopped" }, seen: "stopped"},
		"required":            {change: func(c *health.Container) { c.Declared.Level, c.Status = health.Required, "stopped" }, want: "default/web: stopped"},
		"bad labels":          {change: func(c *health.Container) { c.Declared.Bad = "osctl.gate=maybe" }, want: "its labels are wrong: osctl.gate=maybe"},
		"answers":             {change: func(c *health.Container) { c.Declared.HTTP = "http://:80/" }, answer: func(int32) (string, bool) { return "200 OK", true }, seen: "200 OK"},
		"answers late":        {change: func(c *health.Container) { c.Declared.HTTP = "http://:80/" }, answer: func(n int32) (string, bool) { return "503", n > 3 }},
		"does not answer":     {change: func(c *health.Container) { c.Declared.TCP = ":80" }, answer: func(int32) (string, bool) { return "refused", false }, want: "default/web: running with image sha256:aa; refused"},
		"its time is over":    {change: func(c *health.Container) { c.Declared.Exec, c.Declared.Timeout = "/check", 9*time.Second }, answer: func(int32) (string, bool) { return "exit 1", false }, want: "exit 1, after 9s (expected: running with image sha256:aa, and answering within 9s)"},
		"health passes":       {change: func(c *health.Container) { c.Health = "healthy" }},
		"health not yet":      {change: func(c *health.Container) { c.Health = "starting" }, want: "its health check has not passed yet"},
		"unhealthy":           {change: func(c *health.Container) { c.Health = "unhealthy" }, want: "its health check says unhealthy"},
		"asked as not wanted": {change: func(c *health.Container) { c.Declared.Level, c.Declared.HTTP = health.Wanted, "http://:80/" }, answer: func(int32) (string, bool) { return "503", false }, seen: "503"},
	} {
		inBubble(t, name, func(t *testing.T) {
			m := newMachine()
			now := running(web)
			now.Pid = 7
			c.change(&now)
			m.containers.Set(now)
			var runs atomic.Int32
			if c.answer != nil {
				m.containers.OnProbe(func(context.Context, health.Container) (string, bool) { return c.answer(runs.Add(1)) })
			}
			r := health.Run(t.Context(), m.options)
			if r.Green != (c.want == "") || !strings.Contains(r.Reason(), c.want) {
				t.Errorf("green %t: %s; want %q", r.Green, r.Reason(), c.want)
			}
			if c.seen != "" {
				if got := find(t, r, "default/web"); !strings.Contains(got.Seen, c.seen) {
					t.Errorf("seen %q, want %q", got.Seen, c.seen)
				}
			}
			if c.answer == nil && runs.Load() > 0 {
				t.Error("a container was asked that does not say how")
			}
		})
	}
}

// TestStartedAgain: a container that is started again begins the soak anew, and one
// that is started again and again is named though it runs when the gate ends.
func TestStartedAgain(t *testing.T) {
	for name, c := range map[string]struct {
		times int
		took  time.Duration
		want  string
	}{
		"once":        {1, 50 * time.Second, ""},
		"for ever":    {1000, 2 * time.Minute, "running with image sha256:aa; started again 5 times during the gate"},
		"never again": {0, 30 * time.Second, ""},
	} {
		inBubble(t, name, func(t *testing.T) {
			m := newMachine()
			m.options.Steady, m.options.Deadline = 30*time.Second, 2*time.Minute
			now := running(web)
			now.Pid = 100
			m.containers.Set(now)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			go func() {
				for range c.times {
					select {
					case <-ctx.Done():
						return
					case <-time.After(20 * time.Second):
					}
					now.Pid++
					m.containers.Set(now)
				}
			}()
			r := health.Run(t.Context(), m.options)
			if r.Green != (c.want == "") || !strings.Contains(r.Reason(), c.want) {
				t.Errorf("green %t: %s; want %q", r.Green, r.Reason(), c.want)
			}
			if d := r.Duration - c.took; d < 0 || d > time.Second {
				t.Errorf("it took %v, want %v", r.Duration, c.took)
			}
		})
	}
}

// TestBrokenBefore: what did not do well before is no fault of the new system.
func TestBrokenBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine()
		now := running(web)
		now.Health = "unhealthy"
		m.containers.Set(now)
		m.systemd.Set("failed", "cups.service", "backup-7.service")
		b, err := health.Record(t.Context(), m.options)
		if err != nil {
			t.Fatal(err)
		}
		b.FailedUnits = []string{"cups.service"}
		m.options.Baseline, m.options.Tolerated = b, []string{"backup-*.service"}
		if r := health.Run(t.Context(), m.options); !r.Green {
			t.Errorf("red: %s", r.Reason())
		}
	})
}

// TestNetwork: routes and sockets come again, but for a cable that somebody pulled.
func TestNetwork(t *testing.T) {
	before := health.Network{Routes: []string{"ipv4 default dev eth0", "ipv4 default dev wwan0", "ipv6 default dev eth0"}, Listening: []string{"tcp/22 ssh.service"}}
	routes := func(r ...string) health.Network { return health.Network{Routes: r, Listening: before.Listening} }
	for name, c := range map[string]struct {
		after health.Network
		level health.Level
		want  string
		warn  string
	}{
		"as before":            {after: before},
		"more than before":     {after: health.Network{Routes: append([]string{"ipv4 10.0.0.0/8 dev eth0"}, before.Routes...), Listening: []string{"tcp/22 ssh.service", "tcp/80 web.service"}}},
		"by a renamed one":     {after: routes("ipv4 default dev lan0", "ipv4 default dev wwan0", "ipv6 default dev lan0")},
		"only one of two":      {after: routes("ipv4 default dev eth0", "ipv6 default dev eth0"), want: "route ipv4 default dev wwan0: gone (expected: there)"},
		"of the other family":  {after: routes("ipv4 default dev eth0", "ipv4 default dev wwan0"), want: "route ipv6 default dev eth0: gone (expected: there)"},
		"unplugged":            {after: health.Network{Routes: []string{"ipv4 default dev wwan0", "ipv6 default dev lan0"}, Listening: before.Listening, Unplugged: []string{"eth0"}}, warn: "route ipv4 default dev eth0: gone; eth0 has no carrier (expected: there)"},
		"another is unplugged": {after: health.Network{Routes: before.Routes[1:], Listening: before.Listening, Unplugged: []string{"eth1"}}, want: "route ipv4 default dev eth0: gone (expected: there)"},
		"by another unit":      {after: health.Network{Routes: before.Routes, Listening: []string{"tcp/22 systemd"}}},
		"nobody listens":       {after: health.Network{Routes: before.Routes, Listening: []string{"tcp/2222 ssh.service"}}, want: "port tcp/22: nobody listens (expected: somebody listens, as ssh.service did)"},
		"only wanted":          {after: routes(before.Routes[1:]...), level: health.Wanted, warn: "route ipv4 default dev eth0: gone (expected: there)"},
		"not looked at":        {level: health.Ignore},
	} {
		inBubble(t, name, func(t *testing.T) {
			m := newMachine()
			n := &gate.Network{}
			m.options.Network, m.options.NetworkLevel = n, c.level
			n.Set(before)
			var err error
			if m.options.Baseline, err = health.Record(t.Context(), m.options); err != nil {
				t.Fatal(err)
			}
			n.Set(c.after)
			r := health.Run(t.Context(), m.options)
			if r.Green != (c.want == "") || r.Reason() != c.want || strings.Join(r.Warnings(), "; ") != c.warn {
				t.Errorf("green %t: %s, warnings %q; want %q, %q", r.Green, r.Reason(), r.Warnings(), c.want, c.warn)
			}
		})
	}
	inBubble(t, "cannot be read", func(t *testing.T) {
		m := newMachine()
		n := &gate.Network{}
		m.options.Network = n
		m.options.Baseline.Routes = before.Routes
		n.Fail(errGone)
		if r := health.Run(t.Context(), m.options); r.Green || !strings.Contains(r.Reason(), "network: connection refused") {
			t.Errorf("green %t: %s", r.Green, r.Reason())
		}
		if _, err := health.Record(t.Context(), m.options); !errors.Is(err, errGone) {
			t.Errorf("recorded: %v", err)
		}
	})
}

// TestDeclaredWithoutBaseline: with nothing recorded, a container that says that it is
// required has to run, and others do not.
func TestDeclaredWithoutBaseline(t *testing.T) {
	for level, want := range map[health.Level]bool{health.Required: false, health.Wanted: true, "": true} {
		inBubble(t, "level "+string(level), func(t *testing.T) {
			m := newMachine()
			m.options.Baseline = health.Baseline{}
			c := health.Container{Workload: web, Status: "stopped"}
			c.Declared.Level = level
			m.containers.Set(c)
			if r := health.Run(t.Context(), m.options); r.Green != want {
				t.Errorf("green %t: %s", r.Green, r.Reason())
			}
		})
	}
}

// TestProgress: who asked is told while the gate waits and while it soaks.
func TestProgress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine()
		m.systemd.Set("activating", "ssh.service")
		time.AfterFunc(20*time.Second, func() { m.systemd.Set("active", "ssh.service") })
		var waited, soaked int
		m.options.Progress = func(p health.Progress) {
			switch {
			case p.Held == nil && p.Elapsed < 20*time.Second && len(p.Checks) > 0 && p.Deadline == time.Minute:
				waited++
			case p.Held != nil && p.Elapsed >= 20*time.Second && *p.Held <= p.Steady:
				soaked++
			default:
				t.Errorf("progress %+v", p)
			}
		}
		if r := health.Run(t.Context(), m.options); !r.Green {
			t.Fatal(r.Reason())
		}
		if waited == 0 || soaked == 0 {
			t.Errorf("told %d times while it waited and %d while it soaked", waited, soaked)
		}
	})
}
