package health_test

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"

	"github.com/kapernikov/osctl/pkg/health"
	"github.com/kapernikov/osctl/test/daemon"
	"github.com/kapernikov/osctl/test/gate"
)

func TestFakeSystemd(t *testing.T) {
	gate.SystemdSuite(t, func(t *testing.T) gate.SystemdRig {
		f := &gate.Systemd{}
		f.SetPending("start default.target (waiting)", "start slow.service (running)")
		return gate.SystemdRig{
			Systemd: f,
			Start: func(unit string) {
				f.Set(map[string]string{"good.service": "active", "bad.service": "failed", "brittle.service": "active"}[unit], unit)
			},
			Break: func() { f.Set("failed", "brittle.service") },
			Finish: func() {
				f.Set("active", "slow.service")
				f.SetPending()
			},
		}
	})
}

// bootUnits is a boot to default.target that waits until somebody writes to
// the FIFO.
func bootUnits(fifo string) map[string]string {
	return map[string]string{
		"default.target": "[Unit]\nDescription=all\nWants=slow.service\nAfter=slow.service\n",
		"slow.service":   "[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/bin/cat " + fifo + "\n",
		"good.service":   "[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/bin/true\n",
		"bad.service":    "[Service]\nType=oneshot\nExecStart=/bin/false\n",
	}
}

// newFIFO makes a FIFO and returns the function that ends its reader.
func newFIFO(t *testing.T) (path string, release func()) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "fifo")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	return path, func() {
		// Opening a FIFO to write waits for its reader.
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Error(err)
		}
	}
}

func TestRealSystemd(t *testing.T) {
	gate.SystemdSuite(t, func(t *testing.T) gate.SystemdRig {
		fifo, release := newFIFO(t)
		brittle, breakIt := newFIFO(t)
		units := bootUnits(fifo)
		units["brittle.service"] = "[Service]\nExecStart=/bin/sh -c 'cat " + brittle + "; exit 1'\n"
		s := daemon.StartSystemd(t, units)
		return gate.SystemdRig{
			Systemd: &health.Systemd{Socket: s.Socket},
			Break:   breakIt,
			Start:   func(unit string) { s.Control(t, "start", unit) },
			Finish:  release,
		}
	})
}

// That the connection of Changes has ended says nothing of systemd.
func TestSharedConnectionThatEnded(t *testing.T) {
	s := daemon.StartSystemd(t, map[string]string{"default.target": "[Unit]\nDescription=all\n"})
	conn, err := dbus.Dial("unix:path=" + s.Socket)
	if err != nil {
		t.Fatal(err)
	}
	if err := conn.Close(); err != nil {
		t.Fatal(err)
	}
	systemd := &health.Systemd{Socket: s.Socket}
	systemd.Share(conn)
	if _, err := systemd.Units(t.Context(), nil); err != nil {
		t.Error(err)
	}
}

// The gate runs as a unit that default.target waits for, as it does on the
// machine, and has to see that the boot waits for nothing else. It is this test
// binary once more, in TestGateUnit.
func TestGateDoesNotWaitForItself(t *testing.T) {
	fifo, release := newFIFO(t)
	report := filepath.Join(filepath.Dir(fifo), "report")
	binary, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	units := bootUnits(fifo)
	units["default.target"] += "Wants=osctl-settle.service\nAfter=osctl-settle.service\n"
	units["boot-complete.target"] = "[Unit]\nDescription=complete\nRequires=osctl-health.service\nAfter=osctl-health.service\n"
	units["osctl-settle.service"] = "[Unit]\nRequires=boot-complete.target\nAfter=boot-complete.target\n[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/bin/true\n"
	units["osctl-health.service"] = "[Service]\nType=oneshot\nRemainAfterExit=yes\n" +
		"Environment=OSCTL_TEST_REPORT=" + report + " OSCTL_TEST_SOCKET=%t/systemd/private\n" +
		"ExecStart=" + binary + " -test.run=^TestGateUnit$\n"
	s := daemon.StartSystemd(t, units)
	systemd := &health.Systemd{Socket: s.Socket}

	// Only the slow unit holds the gate up, and everything waits for the gate.
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	bell := systemd.Changes(ctx)
	for {
		u, err := systemd.Units(ctx, []string{"osctl-health.service", "osctl-settle.service"})
		if err != nil {
			t.Fatal(err)
		}
		if u.State["osctl-health.service"] == "activating" {
			if u.State["osctl-settle.service"] != "inactive" {
				t.Errorf("osctl-settle.service is %s before the gate is done", u.State["osctl-settle.service"])
			}
			break
		}
		<-bell
	}
	if _, err := os.Stat(report); err == nil {
		t.Fatal("the gate ended although slow.service had not")
	}
	release()
	for {
		u, err := systemd.Units(ctx, []string{"osctl-settle.service"})
		if err != nil {
			t.Fatal(err)
		}
		if u.State["osctl-settle.service"] == "active" {
			break
		}
		<-bell
	}
	data, err := os.ReadFile(report)
	if err != nil {
		t.Fatal(err)
	}
	var r health.Report
	if err := json.Unmarshal(data, &r); err != nil {
		t.Fatal(err)
	}
	if !r.Green {
		t.Errorf("the gate is red: %s", r.Reason())
	}
	for _, c := range r.Checks {
		if c.Name == "boot jobs" && c.Duration == 0 {
			t.Error("the gate did not wait for slow.service")
		}
	}
}

// TestGateUnit is the gate in osctl-health.service of the test above.
func TestGateUnit(t *testing.T) {
	report := os.Getenv("OSCTL_TEST_REPORT")
	if report == "" {
		return // not a test by itself
	}
	r := health.Run(t.Context(), health.Options{
		Systemd:    &health.Systemd{Socket: os.Getenv("OSCTL_TEST_SOCKET")},
		Containers: &gate.Containers{},
		Deadline:   50 * time.Second,
		Steady:     time.Nanosecond,
	})
	data, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(report, data, 0o600); err != nil {
		t.Fatal(err)
	}
}
