package etc

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// fakeMachine is a root directory with the mount points of an image. Mounts are
// noted; those whose target and type are in fail go wrong.
type fakeMachine struct {
	starter
	mounts []string
	fail   map[string]error
}

var errPlanted = errors.New("planted fault")

func newFakeMachine(t *testing.T, cmdline string) *fakeMachine {
	t.Helper()
	m := &fakeMachine{fail: map[string]error{}}
	m.root = t.TempDir()
	for _, dir := range []string{"proc", "sys", "dev", "run", "efi", "data", "etc"} {
		if err := os.Mkdir(filepath.Join(m.root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(m.root, "proc/cmdline"), []byte(cmdline), 0o600); err != nil {
		t.Fatal(err)
	}
	m.find = func(label string) (string, error) { return "/dev/" + label, m.fail[label] }
	m.mount = func(source, target, fstype string, flags uintptr, data string) error {
		target = strings.TrimPrefix(target, m.root)
		if err := m.fail[target+" "+fstype]; err != nil {
			return err
		}
		m.mounts = append(m.mounts, fmt.Sprintf("%s %s %s %s", source, target, fstype, strings.ReplaceAll(data, m.root, "")))
		return nil
	}
	return m
}

// kernelMounts are those that a machine without an initrd needs.
var kernelMounts = []string{"proc /proc proc ", "sysfs /sys sysfs ", "devtmpfs /dev devtmpfs mode=0755", "tmpfs /run tmpfs mode=0755"}

const overlayOptions = "lowerdir=/etc,upperdir=/data/etc/B/upper,workdir=/data/etc/B/work,index=off,metacopy=off,redirect_dir=off,xino=off"

func TestPreinit(t *testing.T) {
	defer unix.Umask(unix.Umask(0o077)) // modes do not depend on that of process 1
	m := newFakeMachine(t, "root=x osctl.slot=B osctl.boot=trial\n")
	got := m.run()
	want := Report{Slot: "B", Boot: "trial", Etc: FromSlot, Data: Writable, Done: []string{}, Problems: []Problem{}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the report (-want +got):\n%s", diff)
	}
	mounts := append(kernelMounts[:4:4], "/dev/boot /efi vfat umask=0077", "/dev/data /data ext4 ", "overlay /etc overlay "+overlayOptions)
	if diff := cmp.Diff(mounts, m.mounts); diff != "" {
		t.Errorf("the mounts (-want +got):\n%s", diff)
	}
	read, err := ReadReport(m.path(ReportPath))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(got, read); diff != "" {
		t.Errorf("the written report (-returned +read):\n%s", diff)
	}
	for dir, mode := range map[string]fs.FileMode{"upper": 0o755, "work": 0o700} {
		info, err := os.Stat(filepath.Join(m.root, "data/etc/B", dir))
		if err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v; want mode %v", dir, info, err, mode)
		}
	}
	if _, err := os.Stat(filepath.Join(m.root, "data/etc/A")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the other slot's directory: %v", err)
	}
}

// TestPreinitKeepsTheUpper: what is there stays as it is.
func TestPreinitKeepsTheUpper(t *testing.T) {
	m := newFakeMachine(t, "osctl.slot=B")
	upper := filepath.Join(m.root, "data/etc/B/upper")
	if err := os.MkdirAll(upper, 0o750); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(upper, "hostname"), []byte("gateway"), 0o644); err != nil {
		t.Fatal(err)
	}
	if r := m.run(); len(r.Problems) != 0 {
		t.Errorf("problems: %v", r.Problems)
	}
	info, err := os.Stat(upper)
	if err != nil || info.Mode().Perm() != 0o750 {
		t.Errorf("upper: %v, %v", info, err)
	}
	if data, err := os.ReadFile(filepath.Join(upper, "hostname")); err != nil || string(data) != "gateway" {
		t.Errorf("hostname: %q, %v", data, err)
	}
}

// TestPreinitDegrades: each step may fail; the others are done and it is said.
func TestPreinitDegrades(t *testing.T) {
	efi, data, overlay := "/dev/boot /efi vfat umask=0077", "/dev/data /data ext4 ", "overlay /etc overlay "+overlayOptions
	memory := "overlay /etc overlay lowerdir=/etc,upperdir=/run/osctl/etc/upper,workdir=/run/osctl/etc/work,index=off,metacopy=off,redirect_dir=off,xino=off"
	for name, c := range map[string]struct {
		cmdline string
		fail    []string
		steps   []string
		mounts  []string
		etc     Source
	}{
		"no slot":            {"ro", nil, []string{"finding the booted slot"}, []string{efi, data}, FromImage},
		"no partition boot":  {"osctl.slot=B", []string{"boot"}, []string{"mounting /efi"}, []string{data, overlay}, FromSlot},
		"ESP damaged":        {"osctl.slot=B", []string{"/efi vfat"}, []string{"mounting /efi"}, []string{data, overlay}, FromSlot},
		"no partition data":  {"osctl.slot=B", []string{"data"}, []string{"mounting /data"}, []string{efi, memory}, FromMemory},
		"data is btrfs":      {"osctl.slot=B", []string{"/data ext4"}, nil, []string{efi, "/dev/data /data btrfs ", overlay}, FromSlot},
		"data damaged":       {"osctl.slot=B", []string{"/data ext4", "/data btrfs"}, []string{"mounting /data"}, []string{efi, memory}, FromMemory},
		"nothing but a root": {"osctl.slot=B", []string{"boot", "data"}, []string{"mounting /efi", "mounting /data"}, []string{memory}, FromMemory},
		"pristine":           {"osctl.slot=B osctl.boot=pristine", nil, nil, []string{efi, data, memory}, FromMemory},
		"no overlay": {"osctl.slot=B", []string{"/etc overlay"},
			[]string{"mounting the overlay on /etc", "mounting /etc in memory above that of the slot", "mounting /etc in memory"}, []string{efi, data}, FromImage},
	} {
		m := newFakeMachine(t, c.cmdline)
		for _, what := range c.fail {
			m.fail[what] = errPlanted
		}
		r := m.run()
		var steps []string
		for _, p := range r.Problems {
			steps = append(steps, p.Step)
			if p.Step != "finding the booted slot" && !strings.Contains(p.Error, errPlanted.Error()) {
				t.Errorf("%s: %v does not say why", name, p)
			}
		}
		if diff := cmp.Diff(c.steps, steps); diff != "" {
			t.Errorf("%s: problems (-want +got):\n%s", name, diff)
		}
		if diff := cmp.Diff(append(kernelMounts[:4:4], c.mounts...), m.mounts); diff != "" {
			t.Errorf("%s: mounts (-want +got):\n%s", name, diff)
		}
		if read, err := ReadReport(m.path(ReportPath)); err != nil || len(read.Problems) != len(c.steps) || read.Etc != c.etc {
			t.Errorf("%s: the written report: %v, %v; want /etc from %s", name, read, err, c.etc)
		}
	}
}

// TestPreinitUpperIsAFile: a damaged data partition does not stop the machine.
func TestPreinitUpperIsAFile(t *testing.T) {
	m := newFakeMachine(t, "osctl.slot=B")
	if err := os.MkdirAll(filepath.Join(m.root, "data/etc/B"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(m.root, "data/etc/B/upper"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	r := m.run()
	if len(r.Problems) != 1 || r.Problems[0].Step != "mounting the overlay on /etc" || !strings.Contains(r.Problems[0].Error, "upper: not a directory") {
		t.Errorf("problems: %v", r.Problems)
	}
}

func TestReadReportRefuses(t *testing.T) {
	path := filepath.Join(t.TempDir(), "report")
	if _, err := ReadReport(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing: %v, want fs.ErrNotExist", err)
	}
	if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadReport(path); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("broken: %v, want the path in it", err)
	}
}

func TestHandover(t *testing.T) {
	if _, err := os.Stat(InitPath); err == nil {
		return // it would become this process
	}
	if err := Handover(nil, nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Handover: %v, want fs.ErrNotExist", err)
	}
}
