package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kapernikov/osctl/pkg/boot"
	"github.com/kapernikov/osctl/pkg/device"
	"github.com/kapernikov/osctl/test/daemon"
	"github.com/kapernikov/osctl/test/need"
	"github.com/kapernikov/osctl/test/sample"
)

// moments are the system calls at which an upgrade is killed.
func moments() []string {
	return []string{"pwrite64", "fsync", "renameat", "renameat2", "syncfs", "flock", "ftruncate", "unlinkat", "connect", "pread64"}
}

// TestKilledUpgrade kills the real program with SIGKILL on entering the nth call
// of each kind that changes something, for every n. Whatever the moment, the
// machine boots what it booted, or a slot that is whole, and the same command
// again converges.
func TestKilledUpgrade(t *testing.T) {
	need.Long(t)
	need.Root(t)
	strace := need.Tool(t, "strace")
	containerd := daemon.Start(t)
	systemd := daemon.StartSystemd(t, map[string]string{"default.target": "[Unit]\nDescription=all\n"})
	release, _ := keyring(t)()
	next := sample.Image{Product: "gateway", Version: "1.1", MiB: 4, Seed: 40}
	layout := next.Signed(t, release.key)
	ran, hits := 0, 0
	for _, call := range moments() {
		t.Run(call, func(t *testing.T) {
			ran++
			for n := 1; ; n++ {
				m := plain{dir: t.TempDir(), containerd: containerd.Address, systemd: systemd.Socket, namespace: "osctl"}
				if err := m.create(release.public); err != nil {
					t.Fatal(err)
				}
				inject := fmt.Sprintf("inject=%s:signal=KILL:when=%d", call, n)
				killed := runKilled(t, strace, "-f", "-qq", "-o", os.DevNull, "-e", "trace="+call, "-e", inject,
					"osctl", "upgrade", "--config", m.config(), "--from", layout, "--progress", "none")
				if err := m.bootsA(next); err != nil {
					t.Fatalf("%s, %d: %v", call, n, err)
				}
				m.converge(t, layout, next)
				if !killed {
					if n == 1 {
						t.Errorf("%s is never called: the test looks for the wrong call", call)
					}
					return
				}
				hits++
			}
		})
	}
	// strace counts the calls of each thread, so the number varies.
	if ran == len(moments()) && hits < ran+3 {
		t.Errorf("the program was killed at %d moments only", hits)
	}
	t.Logf("killed at %d moments", hits)
}

// runKilled runs a program that ends well or is killed, and says which.
func runKilled(t *testing.T, program string, args ...string) bool {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, program, args...).CombinedOutput()
	if err == nil {
		return false
	}
	var failed *exec.ExitError
	if errors.As(err, &failed) {
		if status, ok := failed.Sys().(syscall.WaitStatus); ok && status.Signaled() && status.Signal() == syscall.SIGKILL && ctx.Err() == nil {
			return true
		}
	}
	t.Fatalf("%s %v: %v\n%s", program, args, err, out)
	return false
}

// converge runs the same command once more, which must end well.
func (p plain) converge(t *testing.T, layout string, next sample.Image) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "osctl", "upgrade", "--config", p.config(), "--from", layout, "--progress", "none").CombinedOutput()
	if err != nil {
		t.Fatalf("the same command again: %v\n%s", err, out)
	}
	state, err := p.state()
	if err != nil || state != (boot.State{Phase: boot.Trial, Rootfs: device.SlotB, Tries: 3}) {
		t.Fatalf("the same command again: the boot state is %v, %v", state, err)
	}
	if whole, err := p.holds(device.SlotB, next.Raw()); err != nil || !whole {
		t.Fatalf("the same command again: slot B is not whole (%v)", err)
	}
	if err := p.bootsA(next); err != nil {
		t.Fatal(err)
	}
	a, errA := os.ReadFile(p.path("data/etc/A/upper/hostname"))
	b, errB := os.ReadFile(p.path("data/etc/B/upper/hostname"))
	if errA != nil || errB != nil || !bytes.Equal(a, b) {
		t.Fatalf("the /etc of slot B: %q, %v, %v", b, errA, errB)
	}
	var left []string
	err = filepath.WalkDir(p.path("data/osctl"), func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			left = append(left, strings.TrimPrefix(path, p.path("data/osctl")+"/"))
		}
		return err
	})
	if diff := cmp.Diff([]string{"ledger.json", "slots/B.json"}, left); err != nil || diff != "" {
		t.Fatalf("left behind: %v %s", err, diff)
	}
}
