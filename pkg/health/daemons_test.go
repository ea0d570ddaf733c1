package health_test

import (
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/namespaces"

	"github.com/kapernikov/osctl/pkg/health"
	"github.com/kapernikov/osctl/pkg/workload"
	"github.com/kapernikov/osctl/test/daemon"
	"github.com/kapernikov/osctl/test/gate"
	"github.com/kapernikov/osctl/test/nerdctl"
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
	o := health.Options{Systemd: &health.Systemd{Socket: path}, Containers: &gate.Containers{}, Deadline: time.Second}
	verdict(t, o, "systemd: no answer after ")
	o.Systemd = &health.Systemd{Socket: path + ".none"}
	verdict(t, o, "systemd: connecting to systemd: ")
}

// slow is a socket before a daemon's. Each piece of an answer is late by delay, or never
// comes while mute is set.
type slow struct {
	path  string
	delay time.Duration
	mute  atomic.Bool
}

func slowDown(t *testing.T, target string, delay time.Duration) *slow {
	t.Helper()
	s := &slow{path: filepath.Join(t.TempDir(), "s"), delay: delay}
	listener, err := net.Listen("unix", s.path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := listener.Close(); err != nil {
			t.Error(err)
		}
	})
	go func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			daemon, err := net.Dial("unix", target)
			if err != nil {
				client.Close()
				return
			}
			go s.pass(daemon, client)
			go func() {
				_, _ = io.Copy(daemon, client)
				daemon.Close()
			}()
		}
	}()
	return s
}

// pass brings the daemon's answers to the client.
func (s *slow) pass(daemon, client net.Conn) {
	defer client.Close()
	piece := make([]byte, 1<<20)
	for {
		n, err := daemon.Read(piece)
		if err != nil {
			return
		}
		for late := time.NewTicker(s.delay); ; {
			<-late.C
			if !s.mute.Load() {
				late.Stop()
				break
			}
		}
		if _, err := client.Write(piece[:n]); err != nil {
			return
		}
	}
}

// TestSlowDaemons: a real systemd and a real containerd that answer late are waited for;
// ones that stop answering while the gate runs are named, each for itself.
func TestSlowDaemons(t *testing.T) {
	c := slowDown(t, daemon.Start(t).Address, 100*time.Millisecond)
	s := slowDown(t, daemon.StartSystemd(t, map[string]string{"default.target": "[Unit]\nDescription=all\n"}).Socket, 100*time.Millisecond)
	o := health.Options{Systemd: &health.Systemd{Socket: s.path}, Containers: workload.New(c.path, "own"), Deadline: time.Minute}
	verdict(t, o, "")
	for _, mute := range []*slow{s, c} {
		short := o
		short.Deadline = 5 * time.Second
		mute.mute.Store(true)
		r := health.Run(t.Context(), short)
		mute.mute.Store(false)
		for _, check := range r.Checks {
			named := check.Name == map[*slow]string{s: "systemd", c: "containerd"}[mute]
			if (check.Name == "systemd" || check.Name == "containerd") && check.OK == named {
				t.Errorf("%s: ok %t: %s", check.Name, check.OK, check.Seen)
			}
		}
		if r.Green || !strings.Contains(r.Reason(), "no answer after ") {
			t.Errorf("green %t: %s", r.Green, r.Reason())
		}
	}
	verdict(t, o, "")
}

// TestImageGone: the very container that was recorded runs on without its image's name. One
// that is made anew cannot be known to be the same, and one that cannot be made is missing.
func TestImageGone(t *testing.T) {
	rig := nerdctl.Start(t)
	ref, digest := rig.Push("app:1", "one")
	run := func() { rig.Run("run", "-d", "--name", "web", "--net", "none", ref, "wait") }
	// nerdctl itself refuses while the container runs.
	forget := func() {
		t.Helper()
		ctx := namespaces.WithNamespace(t.Context(), rig.Namespace)
		if err := rig.Client(t).ImageService().Delete(ctx, ref, images.SynchronousDelete()); err != nil {
			t.Fatal(err)
		}
	}
	rig.Run("pull", "-q", ref)
	run()
	o := health.Options{Systemd: &gate.Systemd{}, Containers: workload.New(rig.Address, "own"), Deadline: time.Minute}
	var err error
	if o.Baseline, err = health.Record(t.Context(), o); err != nil || len(o.Baseline.Workloads) != 1 || o.Baseline.Workloads[0].ImageDigest != digest {
		t.Fatalf("baseline %+v, %v", o.Baseline, err)
	}
	forget()
	verdict(t, o, "")
	short := o
	short.Deadline = 2 * time.Second
	rig.Run("rm", "-f", "web")
	verdict(t, short, "apps/web: no such container (expected: running with image "+digest+")")
	run() // it is pulled again
	verdict(t, o, "")
	rig.Run("rm", "-f", "web")
	run()
	forget()
	verdict(t, short, "apps/web: running; its image record is gone, so it is not known to be the same image")
}
