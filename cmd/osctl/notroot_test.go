package main

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/kapernikov/osctl/test/need"
	"github.com/kapernikov/osctl/test/sample"
)

// TestNotRoot runs the commands on a machine's files as an ordinary user.
func TestNotRoot(t *testing.T) {
	need.Long(t)
	need.Root(t)
	// The folders of the test itself are closed to other users.
	dir, err := os.MkdirTemp("", "osctl-not-root-*")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	self, err := exec.LookPath("osctl")
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Chmod(dir, 0o755), os.WriteFile(filepath.Join(dir, "osctl"), program, 0o755)); err != nil { //nolint:gosec // others run it
		t.Fatal(err)
	}
	release, _ := keyring(t)()
	s := &script{TB: t, plain: plain{dir: dir, containerd: "/nonexistent", systemd: "/nonexistent"}}
	if err := errors.Join(s.create(release.public), s.remember()); err != nil {
		t.Fatal(err)
	}
	layout := filepath.Join(dir, "layout")
	if err := os.CopyFS(layout, os.DirFS(sample.Image{Product: "gateway", MiB: imageMiB}.Signed(t, release.key))); err != nil {
		t.Fatal(err)
	}
	run := func(args ...string) (stdout, stderr string, err error) {
		cmd := exec.CommandContext(t.Context(), filepath.Join(dir, "osctl"), args...)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		var out, said bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &said
		err = cmd.Run()
		return out.String(), said.String(), err
	}
	for _, args := range [][]string{
		{"upgrade", "--from", layout}, {"check", "127.0.0.1:1/os:1"}, {"rollback", "--reboot"}, {"settle"},
	} {
		stdout, stderr, err := run(append(args, "--config", s.config())...)
		if failed := (*exec.ExitError)(nil); !errors.As(err, &failed) || failed.ExitCode() != exitFailed {
			t.Errorf("osctl %s: %v", args, err)
		}
		if !strings.Contains(stderr, "permission denied\n       run as root\n") || stdout != "" {
			t.Errorf("osctl %s printed %q and %q", args, stdout, stderr)
		}
	}
	// What is no image does not become one by root's rights.
	if err := os.Chmod(dir, 0o777); err != nil { //nolint:gosec // others build there
		t.Fatal(err)
	}
	_, stderr, err := run("build", "--rootfs", s.config(), "--product", "p", "--version", "1", "-o", filepath.Join(dir, "out"))
	if err == nil || !strings.Contains(stderr, "nor a tar: ") || strings.Contains(stderr, "root, ") {
		t.Errorf("osctl build of a text printed %q (%v)", stderr, err)
	}
	for _, name := range kept {
		if data, err := os.ReadFile(s.path(name)); err != nil || !bytes.Equal(data, s.before[name]) {
			t.Errorf("%s was changed, %v", name, err)
		}
	}
}
