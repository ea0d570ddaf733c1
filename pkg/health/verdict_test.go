package health_test

import (
	"context"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kapernikov/osctl/pkg/health"
	"github.com/kapernikov/osctl/test/gate"
)

// TestSlowAnswers: who answers late is waited for, ten seconds a question, and who
// needs longer does not answer. Containerd is asked twice a look.
func TestSlowAnswers(t *testing.T) {
	for name, c := range map[string]struct {
		systemd, containerd, network time.Duration
		want                         string
	}{
		"slow systemd":          {systemd: 9 * time.Second},
		"too slow systemd":      {systemd: 11 * time.Second, want: "systemd: no answer after 10s (expected: answers)"},
		"slow containerd":       {containerd: 4 * time.Second},
		"too slow containerd":   {containerd: 6 * time.Second, want: "containerd: no answer after 10s (expected: answers)"},
		"all of them are slow":  {systemd: 8 * time.Second, containerd: 4 * time.Second, network: 9 * time.Second},
		"too slow network":      {network: 11 * time.Second, want: "network: no answer after 10s (expected: can be read)"},
		"systemd beyond it all": {systemd: time.Hour, want: "systemd: no answer after 10s (expected: answers)"},
	} {
		inBubble(t, name, func(t *testing.T) {
			m := newMachine()
			n := &gate.Network{}
			n.Set(health.Network{Listening: []string{"tcp/22 ssh.service"}})
			m.options.Network, m.options.Baseline.Listening = n, []string{"tcp/22 ssh.service"}
			m.systemd.Delay(c.systemd)
			m.containers.Delay(c.containerd)
			n.Delay(c.network)
			r := health.Run(t.Context(), m.options)
			if r.Green != (c.want == "") || r.Reason() != c.want {
				t.Errorf("green %t: %s; want %q", r.Green, r.Reason(), c.want)
			}
			if r.Duration > m.options.Deadline {
				t.Errorf("it took %v, more than the deadline", r.Duration)
			}
		})
	}
}

// TestClock: whatever year the wall clock showed when the baseline was recorded and
// shows now, the verdict and its time are the same. Only the report's own times are by
// the wall clock.
func TestClock(t *testing.T) {
	for _, year := range []int{1970, 2099} {
		for _, green := range []bool{true, false} {
			inBubble(t, time.Date(year, 1, 1, 0, 0, 0, 0, time.UTC).Format("2006"), func(t *testing.T) {
				m := newMachine()
				m.options.Baseline.RecordedAt = time.Date(year, 1, 1, 0, 0, 0, 0, time.UTC)
				want := m.options.Steady
				if !green {
					m.containers.Set()
					want = m.options.Deadline
				}
				r := health.Run(t.Context(), m.options)
				if r.Green != green || r.Duration != want {
					t.Errorf("green %t after %v; want %t after %v", r.Green, r.Duration, green, want)
				}
			})
		}
	}
}

// TestFlapping: a unit that fails and recovers again and again holds at the moment of
// many a look, and never for long enough.
func TestFlapping(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine()
		done := make(chan struct{})
		go func() {
			defer close(done)
			for range 9 {
				m.systemd.Set("failed", "modem.service")
				time.Sleep(3 * time.Second)
				m.systemd.Set("active", "modem.service")
				time.Sleep(4 * time.Second)
			}
		}()
		r := health.Run(t.Context(), m.options)
		<-done
		if r.Green || r.Duration != time.Minute {
			t.Errorf("green %t after %v: %s", r.Green, r.Duration, r.Reason())
		}
	})
}

// TestRequiredButNotBefore: a container that says that it is required and did not run
// when the upgrade was staged got no worse by it.
func TestRequiredButNotBefore(t *testing.T) {
	for status, want := range map[string][]string{
		"stopped":      {"default/job: stopped (restart policy always) (expected: running, though it did not run when the upgrade was staged)"},
		health.Running: nil,
	} {
		inBubble(t, status, func(t *testing.T) {
			m := newMachine()
			job := health.Container{Workload: health.Workload{Namespace: "default", ID: "0001", Name: "job", Restart: "always"}, Status: status}
			job.Declared.Level = health.Required
			m.containers.Set(running(web), job)
			r := health.Run(t.Context(), m.options)
			if diff := cmp.Diff(want, r.Warnings()); !r.Green || diff != "" {
				t.Errorf("green %t: %s; warnings (-want +got):\n%s", r.Green, r.Reason(), diff)
			}
		})
	}
}

// TestBlame: a container that was started again once and held after that is not what
// made the gate red.
func TestBlame(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine()
		m.systemd.Set("inactive", "ssh.service")
		now := running(web)
		now.Pid, now.Restarts = 100, 1
		m.containers.Set(now)
		time.AfterFunc(10*time.Second, func() {
			now.Restarts++ // the same process by its number
			m.containers.Set(now)
		})
		r := health.Run(t.Context(), m.options)
		if r.Green || r.Reason() != "ssh.service: inactive (expected: active)" {
			t.Errorf("green %t: %s", r.Green, r.Reason())
		}
	})
}

// TestCompose: a project's containers are named as such.
func TestCompose(t *testing.T) {
	for want, w := range map[string]health.Workload{
		"default/shop/db":     {Namespace: "default", Project: "shop", Service: "db", Name: "shop-db-1"},
		"default/shop/my-own": {Namespace: "default", Project: "shop", Service: "db", Name: "my-own"},
		"default/shop-db-1":   {Namespace: "default", Name: "shop-db-1"},
		"default/shop/shop-db-2": {
			Namespace: "default", Project: "shop", Service: "db", Name: "shop-db-2",
		},
	} {
		if got := w.String(); got != want {
			t.Errorf("%+v is named %q, want %q", w, got, want)
		}
	}
}

// TestOverhead: the gate says what it took for itself, by the processor and not by the
// clock, which stands still here.
func TestOverhead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine()
		var log strings.Builder
		m.options.Log = slog.New(slog.NewTextHandler(&log, nil))
		r := health.Run(t.Context(), m.options)
		if r.Overhead <= 0 || r.Overhead >= r.Duration {
			t.Errorf("overhead %v of %v", r.Overhead, r.Duration)
		}
		if !strings.Contains(log.String(), "health gate ended") || !strings.Contains(log.String(), "overhead=") {
			t.Errorf("log:\n%s", log.String())
		}
	})
}

// TestNetworkDuringTheSoak: nothing tells of a route that is lost, and it is read
// seldom; but never is its answer from before the end of the soak.
func TestNetworkDuringTheSoak(t *testing.T) {
	for name, back := range map[string]bool{"for good": false, "for a moment": true} {
		inBubble(t, name, func(t *testing.T) {
			m := newMachine()
			m.options.Steady, m.options.Deadline = 25*time.Second, 2*time.Minute
			n := &gate.Network{}
			before := health.Network{Routes: []string{"ipv4 default dev eth0"}}
			n.Set(before)
			m.options.Network, m.options.Baseline.Routes = n, before.Routes
			time.AfterFunc(24*time.Second, func() { n.Set(health.Network{}) })
			if back {
				time.AfterFunc(27*time.Second, func() { n.Set(before) })
			}
			r := health.Run(t.Context(), m.options)
			if r.Green != back || r.Green && r.Duration < 50*time.Second {
				t.Errorf("green %t after %v: %s", r.Green, r.Duration, r.Reason())
			}
			if asked := n.Asked(); back && asked > 6 {
				t.Errorf("the network was read %d times", asked)
			}
		})
	}
}

// TestUnitDuringTheSoak: systemd is asked every few seconds, whatever containers tell; but
// never is its answer from before the end of the soak.
func TestUnitDuringTheSoak(t *testing.T) {
	for name, back := range map[string]bool{"for good": false, "for a moment": true} {
		inBubble(t, name, func(t *testing.T) {
			m := newMachine()
			m.options.Steady = 22 * time.Second // it is asked at 20 s
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			go m.containers.Ring(ctx, time.Second)
			time.AfterFunc(21*time.Second, func() { m.systemd.Set("failed", "ssh.service") })
			if back {
				time.AfterFunc(23*time.Second, func() { m.systemd.Set("active", "ssh.service") })
			}
			r := health.Run(ctx, m.options)
			if r.Green != back || r.Green && r.Duration < 45*time.Second {
				t.Errorf("green %t after %v: %s", r.Green, r.Duration, r.Reason())
			}
		})
	}
}

// TestSlowLookAtTheEnd: a look that began before the end of the soak decides nothing, though
// it ended after it.
func TestSlowLookAtTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine()
		m.options.Steady = 8 * time.Second
		m.containers.Delay(2 * time.Second) // so that a look takes four: from 0, from 4.5 and from 9.5 s
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go m.containers.Ring(ctx, time.Second)
		time.AfterFunc(11*time.Second, func() { m.systemd.Set("failed", "ssh.service") })
		if r := health.Run(ctx, m.options); r.Green {
			t.Errorf("green after %v, by what was seen before the soak was over", r.Duration)
		}
	})
}

// TestNetworkIsLate: nothing tells of a route that comes, so what is wrong with the
// network is read again every five seconds.
func TestNetworkIsLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine()
		n, before := &gate.Network{}, health.Network{Routes: []string{"ipv4 default dev eth0"}}
		m.options.Network, m.options.Baseline.Routes = n, before.Routes
		time.AfterFunc(7*time.Second, func() { n.Set(before) })
		r := health.Run(t.Context(), m.options)
		if !r.Green || r.Duration > 11*time.Second+m.options.Steady {
			t.Errorf("green %t after %v: %s", r.Green, r.Duration, r.Reason())
		}
	})
}

// TestStorm has somebody tell of changes ten times a second for as long as the gate
// runs, such as health checks of many containers do: what changes nothing is looked at
// ever more seldom, and what changes is still seen.
func TestStorm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine()
		m.options.Deadline, m.options.Steady = 5*time.Minute, 30*time.Second
		m.containers.Set()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go m.containers.Ring(ctx, 100*time.Millisecond)
		time.AfterFunc(4*time.Minute, func() { m.containers.Set(running(web)) })
		r := health.Run(ctx, m.options)
		if !r.Green {
			t.Fatalf("red: %s", r.Reason())
		}
		if c := find(t, r, "default/web"); c.Duration > 4*time.Minute+2*time.Second {
			t.Errorf("the container was seen after %v, want within two seconds of its coming", c.Duration)
		}
		// Every two seconds is 135 looks of two questions each; every quarter of a second
		// would be 1080.
		if n := m.containers.Asked() / 2; n > 200 {
			t.Errorf("%d looks in 4.5 minutes in which two things changed", n)
		}
		// Nothing of systemd changed: it is asked every five seconds, which is 54 times.
		if n := m.systemd.Asked(); n > 60 {
			t.Errorf("systemd was asked %d times in 4.5 minutes in which nothing of it changed", n)
		}
	})
}

// TestBlameOfWhatDoesNotRun: a container that crashes again and again is down at the
// deadline or not; how often it was started again is told in both cases.
func TestBlameOfWhatDoesNotRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine()
		m.options.Steady = 40 * time.Second
		now := running(web)
		for i, status := range []string{health.Running, "stopped", health.Running, "stopped"} {
			time.AfterFunc(time.Duration(1+i*15)*time.Second, func() {
				now.Status, now.Pid = status, uint32(100+i)
				m.containers.Set(now)
			})
		}
		now.Pid = 99
		m.containers.Set(now)
		r := health.Run(t.Context(), m.options)
		want := "default/web: stopped (restart policy always); started again 2 times during the gate (expected: running with image sha256:aa)"
		if r.Green || r.Reason() != want {
			t.Errorf("green %t: %s\nwant %s", r.Green, r.Reason(), want)
		}
	})
}
