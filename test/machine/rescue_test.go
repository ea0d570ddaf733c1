package machine

import (
	"context"
	"crypto/rand"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/kapernikov/osctl/test/need"
)

// TestRescue destroys both slots of a machine and sees it come back by itself: GRUB
// finds nothing but the rescue system, which pulls the committed image again.
func TestRescue(t *testing.T) {
	ctx, site := begin(t)
	if err := site.buildRescue(ctx); err != nil {
		t.Fatal(err)
	}
	if err := site.Install(ctx, "--policy", "rescue.yaml", "--rescue", "os-rescue"); err != nil {
		t.Fatal(err)
	}
	for _, off := range []int64{65 * mib, 65*mib + slotSize} {
		if err := destroy(site.Disk(), off); err != nil {
			t.Fatal(err)
		}
	}
	m, err := site.Start(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	s := &Story{Site: site, Machine: m, tell: site.tell}
	s.closeAtEnd(t)
	for _, line := range []string{
		`osctl rescue: starting`, `Slot A +1\.0, committed here, DAMAGED`, `Slot A holds again reference 1\.0`,
		`osctl rescue: restarting the machine`, `nothing to do: slot A: slot A is committed`,
	} {
		if err := s.settled(ctx, line); err != nil {
			t.Fatal(err)
		}
	}
	for command, want := range map[string]string{
		"osctl verify A --progress none": "Slot A holds reference 1.0, every one of its",
		"osctl history":                  "by the rescue system",
		"osctl status | head -1":         "reference runs 1.0 from slot A, committed",
	} {
		if _, err := s.run(ctx, command, 0, want); err != nil {
			t.Error(err)
		}
	}
}

// buildRescue makes and signs the rescue image, and a policy that accepts it.
func (s *Site) buildRescue(ctx context.Context) error {
	err := os.WriteFile(filepath.Join(s.dir, "rescue.yaml"), []byte(policy+"rescue:\n  - name: rescue\n    file: keys/release.pub\n"), 0o644)
	if err != nil {
		return err
	}
	script := filepath.Join(need.Top(), "images", "rescue", "build.sh")
	tree := filepath.Join(s.dir, "rescue-tree")
	if err := s.quiet(ctx, script, "--version", "1.0", "--osctl", s.Osctl, "--policy", s.policy(), "--key", s.keyPath("release.pub"), tree); err != nil {
		return err
	}
	err = s.host(ctx, s.dir, "build", "--progress", "none", "--rootfs", tree, "--product", "reference-rescue", "--version", "1.0", "-o", "os-rescue")
	if err != nil {
		return err
	}
	return s.host(ctx, s.dir, "sign", "--key", "release.key", "os-rescue")
}

// destroy overwrites the start of a partition.
func destroy(disk string, off int64) error {
	f, err := os.OpenFile(disk, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	if _, err := io.Copy(io.NewOffsetWriter(f, off), io.LimitReader(rand.Reader, 16*mib)); err != nil {
		return err
	}
	return f.Close()
}
