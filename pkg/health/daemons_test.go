package health_test

import (
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kapernikov/osctl/pkg/health"
	"github.com/kapernikov/osctl/pkg/workload"
	"github.com/kapernikov/osctl/test/daemon"
	"github.com/kapernikov/osctl/test/gate"
)

// verdict runs the gate on the given parts with a deadline that real daemons keep.
func verdict(t *testing.T, o health.Options, want string) {
	t.Helper()
	o.Steady = time.Millisecond
	r := health.Run(t.Context(), o)
	if r.Green != (want == "") || !strings.Contains(r.Reason(), want) {
		t.Errorf("green %t: %s; want %q", r.Green, r.Reason(), want)
	}
}

// TestDeadContainerd: a real containerd that stands still, goes on, ends, and one that
// there never was.
func TestDeadContainerd(t *testing.T) {
	d := daemon.Start(t)
	o := health.Options{Systemd: &gate.Systemd{}, Containers: workload.New(d.Address, "own"), Deadline: time.Minute}
	verdict(t, o, "")
	d.Pause(t)
	short := o
	short.Deadline = time.Second
	verdict(t, short, "containerd: no answer after ")
	d.Continue(t)
	verdict(t, o, "")
	d.Stop()
	verdict(t, short, "containerd: connecting to containerd: ")
	short.Containers = workload.New(filepath.Join(t.TempDir(), "none.sock"), "own")
	verdict(t, short, "no such file or directory")
}

// TestMuteSystemd: a socket that takes connections and never answers, whether anybody
// takes them off its queue or not.
func TestMuteSystemd(t *testing.T) {
	path := filepath.Join(t.TempDir(), "private")
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := listener.Close(); err != nil {
			t.Error(err)
		}
	})
	o := health.Options{Systemd: health.Systemd{Socket: path}, Containers: &gate.Containers{}, Deadline: time.Second}
	verdict(t, o, "systemd: no answer after ")
	o.Systemd = health.Systemd{Socket: path + ".none"}
	verdict(t, o, "systemd: connecting to systemd: ")
}
