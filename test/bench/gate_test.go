package bench

import (
	"fmt"
	"testing"

	"github.com/kapernikov/osctl/pkg/health"
	"github.com/kapernikov/osctl/pkg/workload"
	"github.com/kapernikov/osctl/test/daemon"
	"github.com/kapernikov/osctl/test/nerdctl"
)

// BenchmarkGate is what the gate itself takes of the processor, from its first look to
// the end of the default soak, with a real systemd and a real containerd with three
// containers. There is no ratio: what it does beside its own questions is wait.
func BenchmarkGate(b *testing.B) {
	rig := nerdctl.Start(b)
	ref, _ := rig.Push("app:1", "one")
	rig.Run("pull", "-q", ref)
	for i := range 3 {
		rig.Run("run", "-d", "--name", fmt.Sprint("app", i), "--net", "none", ref, "wait")
	}
	systemd := daemon.StartSystemd(b, map[string]string{"default.target": "[Unit]\nDescription=all\n"})
	o := health.Options{Systemd: &health.Systemd{Socket: systemd.Socket}, Containers: workload.New(rig.Address, "own")}
	var err error
	if o.Baseline, err = health.Record(b.Context(), o); err != nil || len(o.Baseline.Workloads) != 3 {
		b.Fatal(o.Baseline, err)
	}
	for b.Loop() {
		r := health.Run(b.Context(), o)
		if !r.Green {
			b.Fatal(r.Reason())
		}
		b.ReportMetric(float64(r.Overhead.Milliseconds()), "ms-overhead/op")
	}
}
