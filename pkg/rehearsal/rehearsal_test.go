package rehearsal

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/containerd/containerd/v2/pkg/namespaces"

	"github.com/kapernikov/osctl/pkg/etc"
	"github.com/kapernikov/osctl/test/need"
)

// statuses are those of a report, by the names of the checks.
func statuses(r Report) map[string]Status {
	m := map[string]Status{}
	for _, c := range r.Checks {
		m[c.Name] = c.Status
	}
	return m
}

// good is what the image gives with an /etc that suits it. There is no nftables.conf.
func good(but ...string) map[string]Status {
	m := map[string]Status{
		"sshd": Passed, "nft": Skipped, "program osctl": Passed, "program containerd": Passed, "program runc": Passed,
		"containerd configuration": Passed, "units": Passed,
	}
	for i := 0; i < len(but); i += 2 {
		m[but[i]] = Status(but[i+1])
	}
	return m
}

// left holds that a rehearsal has left nothing: no container, no file, no hold on the
// slot, which is as it was.
func (r *rig) left(before string) {
	r.t.Helper()
	if _, err := os.Stat(filepath.Join(r.Dir, "rehearsal")); !errors.Is(err, fs.ErrNotExist) {
		r.t.Errorf("its directory is still there: %v", err)
	}
	list, err := r.daemon.Client(r.t).Containers(namespaces.WithNamespace(r.t.Context(), r.Namespace))
	if err != nil || len(list) > 0 {
		r.t.Errorf("%d containers are left (%v)", len(list), err)
	}
	// As an upgrade would open it.
	f, err := os.OpenFile(r.Target.Device, os.O_RDWR|os.O_EXCL, 0)
	if err != nil {
		r.t.Errorf("the slot is busy: %v", err)
	} else {
		f.Close()
	}
	if after := r.digest(r.Target.Device); before != after {
		r.t.Error("the slot or its /etc was changed")
	}
}

// TestRehearsal has what a machine may have in its own /etc, and one image.
func TestRehearsal(t *testing.T) {
	r := newRig(t)
	r.Target.Device = r.device(r.tree)
	const units = "systemd/system/"
	for name, c := range map[string]struct {
		own     map[string]string // of the machine
		old     map[string]string // of the running image
		want    map[string]Status
		check   string // the one with
		finding string
		clashes []etc.Change
	}{
		"nothing of its own": {want: good()},
		"what suits": {
			own:  map[string]string{"ssh/sshd_config": "Port 23\n", units + "own.service": "[Service]\nExecStart=/usr/bin/true\n", units + "multi.target.wants/own.service": "-> ../own.service"},
			want: good(),
		},
		"an option that the new sshd does not know": {
			own: map[string]string{"ssh/sshd_config": "Bad Protocol\n"}, old: map[string]string{"ssh/sshd_config": "Port 21\n"},
			want: good("sshd", "failed"), check: "sshd", finding: "/etc/ssh/sshd_config: line 1: Bad configuration option: Protocol",
			clashes: []etc.Change{{Path: "ssh/sshd_config", Kind: etc.Changed, Shadows: etc.Changed}},
		},
		"a section that systemd does not know": {
			own: map[string]string{
				units + "own.service": "[Service]\nExecStart=/usr/bin/true\n[Frob]\nX=1\n", units + "multi.target.wants/own.service": "-> ../own.service",
				"hostname": "gateway-7\n",
			},
			want: good("units", "failed"), check: "units", finding: "/etc/systemd/system/own.service:3: Unknown section 'Frob'. Ignoring.",
			clashes: []etc.Change{{Path: "systemd/system/own.service", Kind: etc.Added}},
		},
		"a program that is gone": {
			own: map[string]string{units + "good.service": "[Service]\nExecStart=/usr/bin/nope\n"}, old: nil,
			want: good("units", "failed"), check: "units", finding: "good.service: Command /usr/bin/nope is not executable: No such file or directory",
			clashes: []etc.Change{{Path: "systemd/system/good.service", Kind: etc.Added}},
		},
		"a unit that is gone": {
			own:  map[string]string{units + "multi.target.wants/gone.service": "-> /usr/lib/systemd/system/gone.service"},
			want: good("units", "failed"), check: "units", finding: "/etc/systemd/system/multi.target.wants/gone.service: gone.service is enabled, and there is no such unit",
			clashes: []etc.Change{{Path: "systemd/system/multi.target.wants/gone.service", Kind: etc.Added}},
		},
		"a link that the image has as well": {
			own:  map[string]string{units + "multi.target.wants/good.service": "-> /usr/lib/systemd/system/good.service"},
			want: good(),
		},
		"a configuration of containerd that is none": {
			own:  map[string]string{"containerd/conf.d/own.toml": "x = [\n"},
			want: good("containerd configuration", "failed"), check: "containerd configuration", finding: "/etc/containerd/conf.d/own.toml",
			clashes: []etc.Change{{Path: "containerd/conf.d/own.toml", Kind: etc.Added}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			r.t = t
			r.own(c.own)
			r.compare(c.old)
			before := r.digest(r.Target.Device)
			report, err := r.run()
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, statuses(report)); diff != "" {
				t.Errorf("statuses (-want +got):\n%s\n%+v", diff, report)
			}
			if c.check != "" {
				got := r.check(report, c.check)
				if !strings.Contains(strings.Join(got.Findings, "\n"), c.finding) {
					t.Errorf("findings %q, want %q", got.Findings, c.finding)
				}
				if diff := cmp.Diff(c.clashes, got.Clashes); diff != "" {
					t.Errorf("clashes (-want +got):\n%s", diff)
				}
				refusal := (*Refusal)(nil)
				if err := Auto.Decide(report, nil); !errors.As(err, &refusal) || !strings.Contains(err.Error(), c.finding) {
					t.Errorf("auto: %v, want a refusal that says %q", err, c.finding)
				}
			} else if err := Always.Decide(report, nil); err != nil {
				t.Errorf("always: %v, want nothing", err)
			}
			if got := strings.Join(r.check(report, "units").Notes, "\n"); !strings.Contains(got, "noisy.service:3: Unknown key") {
				t.Errorf("what the image's own unit has is no note: %q", got)
			}
			r.left(before)
		})
	}
}

// TestImage has images that are broken whatever the machine's /etc.
func TestImage(t *testing.T) {
	r := newRig(t)
	r.own(nil)
	old := r.device(r.tree)
	libraries, err := filepath.Glob(filepath.Join(r.tree, "*/*/libseccomp.so*"))
	if err != nil || len(libraries) == 0 {
		libraries, err = filepath.Glob(filepath.Join(r.tree, "usr/lib/*/libseccomp.so*"))
	}
	if err != nil || len(libraries) == 0 {
		t.Fatalf("runc's library was not found: %v", err)
	}
	for _, library := range libraries {
		if err := os.Remove(library); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"etc/containerd/config.toml", "usr/sbin/sshd"} {
		if err := os.Remove(filepath.Join(r.tree, name)); err != nil {
			t.Fatal(err)
		}
	}
	r.Target.Device = r.device(r.tree)
	before := r.digest(r.Target.Device)

	r.Running.Device = old
	report, err := r.run()
	if err != nil {
		t.Fatal(err)
	}
	want := good("sshd", "skipped", "program runc", "failed", "containerd configuration", "skipped", "units", "unfinished") // systemd needs it as well
	if diff := cmp.Diff(want, statuses(report)); diff != "" {
		t.Errorf("statuses (-want +got):\n%s\n%+v", diff, report)
	}
	if got := strings.Join(r.check(report, "program runc").Findings, "\n"); !strings.Contains(got, "libseccomp.so.2: cannot open shared object file") {
		t.Errorf("the library is not named: %s", got)
	}
	if got := r.check(report, "sshd").Findings; !slices.Equal(got, []string{"the image has no sshd"}) {
		t.Errorf("skipped without a reason: %q", got)
	}

	// The same in the running system is no news.
	r.Running.Device = r.Target.Device
	if report, err = r.run(); err != nil {
		t.Fatal(err)
	}
	if got := r.check(report, "program runc").Status; got != Known {
		t.Errorf("what fails in the running system as well is %s", got)
	}
	if err := Auto.Decide(report, nil); err != nil {
		t.Errorf("what is no news is refused: %v", err)
	}
	r.left(before)
}

// TestSquashfs: an image of the other kind, and none of any kind.
func TestSquashfs(t *testing.T) {
	r := newRig(t)
	r.own(map[string]string{"ssh/sshd_config": "Bad Protocol\n"})
	tool := need.Tool(t, "mksquashfs")
	r.Target.Device = r.loop(func(image string) []string {
		return []string{tool, r.tree, image, "-quiet", "-no-progress", "-noI", "-noD", "-noF"}
	})
	report, err := r.run()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(good("sshd", "failed"), statuses(report)); diff != "" {
		t.Errorf("statuses (-want +got):\n%s\n%+v", diff, report)
	}
}

// TestIsolation: what a program in there has and can do.
func TestIsolation(t *testing.T) {
	r := newRig(t)
	r.own(map[string]string{"ssh/sshd_config": "Look\n"})
	r.Target.Device = r.device(r.tree)
	before := r.digest(r.Target.Device)
	report, err := r.run()
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"CapEff:\t0000000000041000", "CapBnd:\t0000000000041000", "NoNewPrivs:\t1", "net lo",
		"device /dev/null", "device /dev/random", "device /dev/urandom", "device /dev/zero", "run /run/sshd",
	}
	if diff := cmp.Diff(want, r.check(report, "sshd").Findings); diff != "" {
		t.Errorf("a program in there sees (-want +got):\n%s", diff)
	}
	r.left(before)
}

// TestHang: a check that forks, ignores SIGTERM and never ends is killed with all that
// it has started, and the others are made.
func TestHang(t *testing.T) {
	r := newRig(t)
	r.own(map[string]string{"ssh/sshd_config": "Hang\n", "nftables.conf": "\n"})
	r.Target.Device = r.device(r.tree)
	before := r.digest(r.Target.Device)
	r.Limit = 9 * time.Second
	report, err := r.run()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(good("sshd", "unfinished", "nft", "passed"), statuses(report)); diff != "" {
		t.Errorf("statuses (-want +got):\n%s\n%+v", diff, report)
	}
	if err := Auto.Decide(report, nil); err != nil {
		t.Errorf("auto: %v", err)
	}
	refusal := (*Refusal)(nil)
	if err := Always.Decide(report, nil); !errors.As(err, &refusal) || len(refusal.Unfinished) != 1 {
		t.Errorf("always: %v, want a refusal for one check", err)
	}
	r.left(before)
}

// TestTimeIsOver: not even a rehearsal that cannot end holds the upgrade up.
func TestTimeIsOver(t *testing.T) {
	r := newRig(t)
	r.own(nil)
	r.Target.Device = r.device(r.tree)
	before := r.digest(r.Target.Device)
	r.Limit = time.Millisecond
	report, err := r.run()
	if !errors.Is(err, ErrUnable) {
		t.Fatalf("%+v, %v, want ErrUnable", report, err)
	}
	r.left(before)
}

// TestKilled: a rehearsal whose process was killed is cleared away by the next one, and
// once it runs, ends by itself if there is none.
func TestKilled(t *testing.T) {
	r := newRig(t)
	r.Target.Device = r.device(r.tree)
	for name, c := range map[string]struct {
		limit time.Duration
		await bool // its end
	}{"and the next comes at once": {time.Minute, false}, "and none comes": {2 * time.Second, true}} {
		t.Run(name, func(t *testing.T) {
			r.t = t
			r.own(map[string]string{"ssh/sshd_config": "Hang\n"})
			r.Limit = c.limit
			r.killed(c.await)
			if c.await {
				r.await(false, nil)
			}
			r.own(nil)
			r.Limit = 0
			before := r.digest(r.Target.Device)
			report, err := Run(t.Context(), r.Options)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(good(), statuses(report)); diff != "" {
				t.Errorf("statuses (-want +got):\n%s\n%+v", diff, report)
			}
			r.left(before)
		})
	}
}

// killed has a rehearsal in another process killed while it has the slot mounted; its
// container may not run yet, or does.
func (r *rig) killed(running bool) {
	r.t.Helper()
	options, err := json.Marshal(r.Options)
	if err != nil {
		r.t.Fatal(err)
	}
	cmd := exec.Command(r.Program, "victim", string(options)) // #nosec this very binary
	if err := cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	r.await(true, ended)
	for running && len(ended) == 0 && !r.runs() {
		time.Sleep(10 * time.Millisecond)
	}
	if err := cmd.Process.Kill(); err != nil {
		r.t.Fatalf("it ended by itself: %v", err)
	}
	<-ended
}

// TestInterrupted: an interruption ends the container.
func TestInterrupted(t *testing.T) {
	r := newRig(t)
	r.own(map[string]string{"ssh/sshd_config": "Hang\n"})
	r.Target.Device = r.device(r.tree)
	before := r.digest(r.Target.Device)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		r.await(true, nil)
		cancel()
	}()
	if _, err := Run(ctx, r.Options); !errors.Is(err, context.Canceled) {
		t.Fatalf("%v, want an interruption", err)
	}
	r.left(before)
}
