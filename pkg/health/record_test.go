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
)

// TestDidNotAnswerBefore: what a container does not answer when it is recorded is not
// demanded of it later; what it does, is.
func TestDidNotAnswerBefore(t *testing.T) {
	for name, c := range map[string]struct {
		declared      health.Declaration
		health        string // of nerdctl, when it was recorded
		before, after func(run int32) (string, bool)
		failing, want string // "" is that it answers; that the gate is green
	}{
		"fails as before":         {declared: health.Declaration{HTTP: "http://a/"}, before: bad, after: bad, failing: "503"},
		"recovered":               {declared: health.Declaration{HTTP: "http://a/"}, before: bad, after: good, failing: "503"},
		"got worse":               {declared: health.Declaration{HTTP: "http://a/"}, before: good, after: bad, want: "default/web: running with image sha256:aa; 503 (expected: running with image sha256:aa, and answering)"},
		"stumbled once":           {declared: health.Declaration{TCP: ":1"}, before: func(n int32) (string, bool) { return "503", n > 2 }, after: bad, want: "503"},
		"ignored is not asked":    {declared: health.Declaration{TCP: ":1", Level: health.Ignore}, before: never, after: never},
		"health check as before":  {declared: health.Declaration{HealthCheck: time.Minute}, before: bad, after: bad, failing: "503"},
		"health check, got worse": {declared: health.Declaration{HealthCheck: time.Minute}, before: good, after: bad, want: "503"},
		"unhealthy before":        {health: "unhealthy", before: never, after: bad},
		"healthy before":          {health: "healthy", before: never, after: bad, want: "503"},
	} {
		inBubble(t, name, func(t *testing.T) {
			m := newMachine()
			now := running(web)
			now.Declared, now.Health = c.declared, c.health
			m.containers.Set(now)
			var runs atomic.Int32
			answer := c.before
			m.containers.OnProbe(func(context.Context, health.Container) (string, bool) { return answer(runs.Add(1)) })
			b, err := health.Record(t.Context(), m.options)
			if err != nil || len(b.Workloads) != 1 || b.Workloads[0].Failing != c.failing {
				t.Fatalf("recorded %+v, %v", b.Workloads, err)
			}
			m.options.Baseline, answer = b, c.after
			if c.health != "" { // the boot has ended the timer of nerdctl's check
				now.Health, now.Declared.HealthCheck = "", time.Minute
				m.containers.Set(now)
			}
			r := health.Run(t.Context(), m.options)
			if r.Green != (c.want == "") || !strings.Contains(r.Reason(), c.want) {
				t.Errorf("green %t: %s; want %q", r.Green, r.Reason(), c.want)
			}
			if seen := find(t, r, "containerd"); !seen.OK {
				t.Errorf("%+v", seen)
			}
		})
	}
}

func bad(int32) (string, bool)   { return "503", false }
func good(int32) (string, bool)  { return "200", true }
func never(int32) (string, bool) { panic("it was asked") }

// TestRecordHangs: a container that never answers does not hold staging up for ever.
func TestRecordHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine()
		now := running(web)
		now.Declared.HTTP = "http://a/"
		m.containers.Set(now)
		m.containers.OnProbe(func(ctx context.Context, _ health.Container) (string, bool) {
			<-ctx.Done()
			return "", true
		})
		began := time.Now()
		b, err := health.Record(t.Context(), m.options)
		if err != nil || b.Workloads[0].Failing != "no answer after 10s" || time.Since(began) > time.Minute {
			t.Errorf("after %v: %+v, %v", time.Since(began), b.Workloads, err)
		}
	})
}

// TestRecordRefusesLabels: a gate that is red for certain is not prepared.
func TestRecordRefusesLabels(t *testing.T) {
	m := newMachine()
	now := running(web)
	now.Declared.Bad = "osctl.gate=maybe: allowed are required, wanted, ignore"
	m.containers.Set(now)
	_, err := health.Record(t.Context(), m.options)
	if !errors.Is(err, health.ErrLabels) || !strings.Contains(err.Error(), "labels are wrong: default/web: osctl.gate=maybe: allowed are") {
		t.Errorf("recorded: %v", err)
	}
	ignored := now
	ignored.Declared.Level = health.Ignore
	stopped := now
	stopped.ID, stopped.Status = "1", "stopped"
	m.containers.Set(ignored, stopped)
	if _, err := health.Record(t.Context(), m.options); err != nil {
		t.Errorf("labels of a container that is ignored, and of one that does not run: %v", err)
	}
}
