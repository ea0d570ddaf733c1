package daemon

import (
	"context"
	"net/http"
	"os"
	"os/exec"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func TestStartServesAndResumes(t *testing.T) {
	d := Start(t)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	client := d.Client(t)
	v, err := client.Version(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if v.Version == "" {
		t.Error("containerd answers with no version")
	}
	spaces, err := client.NamespaceService().List(ctx)
	if err != nil || len(spaces) != 0 {
		t.Errorf("namespaces of a fresh containerd = %v, %v; want none", spaces, err)
	}
	if _, err := os.Stat(d.path("root/io.containerd.metadata.v1.bolt")); err != nil {
		t.Errorf("its data is not in its own folder: %v", err)
	}

	d.Stop()
	if _, err := client.Version(ctx); status.Code(err) != codes.Unavailable {
		t.Errorf("a stopped daemon answers %v, want unavailable", err)
	}
	d.Resume(t)
	if _, err := d.Client(t).Version(ctx); err != nil {
		t.Errorf("after resuming: %v", err)
	}
}

func TestPausedDaemonIsSilent(t *testing.T) {
	d := Start(t)
	d.Pause(t)
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	if _, err := d.Client(t).Version(ctx); err == nil {
		t.Error("a paused daemon answered")
	}
	d.Continue(t)
	ctx, cancel = context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if _, err := d.Client(t).Version(ctx); err != nil {
		t.Errorf("after continuing: %v", err)
	}
}

func TestStartRegistryAnswers(t *testing.T) {
	a, b := StartRegistry(t), StartRegistry(t)
	if a.Addr == b.Addr {
		t.Fatalf("both registries are at %s", a.Addr)
	}
	for _, r := range []*Registry{a, b} {
		resp, err := http.Get("http://" + r.Addr + "/v2/")
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			t.Errorf("%s answers %s, want 200", r.Addr, resp.Status)
		}
	}
	a.Stop()
	if resp, err := http.Get("http://" + a.Addr + "/v2/"); err == nil {
		resp.Body.Close()
		t.Error("a stopped registry answered")
	}
}

func TestStartSystemdRunsOurUnitsOnly(t *testing.T) {
	s := StartSystemd(t, map[string]string{
		"default.target": "[Unit]\nDescription=test\nWants=here.service\n",
		"here.service":   "[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/bin/touch " + t.TempDir() + "/x\n",
	})
	s.Control(t, "start", "here.service")
	cmd := exec.Command("systemctl", "--user", "start", "default.target")
	cmd.Env = append(os.Environ(), "XDG_RUNTIME_DIR="+s.runtime)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("waiting for default.target: %v\n%s", err, out)
	}
}
