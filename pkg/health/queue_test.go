package health_test

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kapernikov/osctl/pkg/health"
)

// TestQueue: probes of a queue run one after the other, in their order, and one that
// hangs takes its own time and nobody else's.
func TestQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine()
		m.options.Steady, m.options.Deadline = 5*time.Second, 2*time.Minute
		var at atomic.Int32
		var order []string
		script := func(name string, takes time.Duration) health.Probe {
			return health.Probe{
				Kind: health.KindScript, Name: name, Timeout: 20 * time.Second, Once: true, Queue: "required",
				Run: func(ctx context.Context) (string, bool) {
					if at.Add(1) != 1 {
						t.Errorf("%s runs beside another one", name)
					}
					defer at.Add(-1)
					order = append(order, name)
					select {
					case <-time.After(takes):
						return "exit 0", true
					case <-ctx.Done():
						return "killed", false
					}
				},
			}
		}
		m.options.Probes = []health.Probe{script("10", 15*time.Second), script("20", 15*time.Second), script("30", 15*time.Second)}
		r := health.Run(t.Context(), m.options)
		synctest.Wait()
		if !r.Green || r.Duration < 95*time.Second || r.Duration > 97*time.Second {
			t.Errorf("green %t after %v: %s", r.Green, r.Duration, r.Reason())
		}
		if diff := cmp.Diff([]string{"10", "20", "30", "10", "20", "30"}, order); diff != "" {
			t.Errorf("order (-want +got):\n%s", diff)
		}
	})
}

// TestQueueHeldUp: who waits for its turn is named as waiting, and who holds the others
// up as not ended.
func TestQueueHeldUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine()
		hang := func(ctx context.Context) (string, bool) { <-ctx.Done(); return "killed", false }
		for _, name := range []string{"10", "20"} {
			m.options.Probes = append(m.options.Probes, health.Probe{Kind: health.KindScript, Name: name, Expected: "exit 0", Timeout: time.Hour, Queue: "q", Run: hang})
		}
		r := health.Run(t.Context(), m.options)
		synctest.Wait()
		if want := "10: has not ended yet (expected: exit 0); 20: has not had its turn yet (expected: exit 0)"; r.Green || !strings.HasPrefix(r.Reason(), want) {
			t.Errorf("green %t: %s", r.Green, r.Reason())
		}
	})
}

// TestHangsAtTheEnd: a probe that held at first and hangs when it is asked for the last
// time is named.
func TestHangsAtTheEnd(t *testing.T) {
	for level, green := range map[health.Level]bool{health.Required: false, health.Wanted: true} {
		inBubble(t, string(level), func(t *testing.T) {
			m := newMachine()
			var runs atomic.Int32
			m.options.Probes = []health.Probe{{
				Kind: health.KindScript, Name: "10_check.sh", Expected: "exit 0", Level: level, Timeout: time.Hour, Once: true,
				Run: func(ctx context.Context) (string, bool) {
					if runs.Add(1) > 1 {
						<-ctx.Done()
					}
					return "exit 0", true
				},
			}}
			r := health.Run(t.Context(), m.options)
			synctest.Wait()
			if named := strings.HasPrefix(r.Reason(), "10_check.sh: exit 0; has not answered again after the soak (expected: exit 0)"); r.Green != green || named == green {
				t.Errorf("green %t: %s", r.Green, r.Reason())
			}
		})
	}
}
