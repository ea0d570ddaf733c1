package machine

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kapernikov/osctl/test/need"
)

// TestRescue destroys both slots of a machine and sees it come back by itself: GRUB
// finds nothing but the rescue system, which pulls the committed image again.
func TestRescue(t *testing.T) {
	ctx, site := begin(t)
	if err := errors.Join(site.buildRescue(ctx), site.rescueTwice(ctx)); err != nil {
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
func (s *Site) buildRescue(ctx context.Context, flags ...string) error {
	err := os.WriteFile(filepath.Join(s.dir, "rescue.yaml"), []byte(policy+"rescue:\n  - name: rescue\n    file: keys/release.pub\n"), 0o644)
	if err != nil {
		return err
	}
	if err := s.rescueLayout(ctx, "os-rescue", flags...); err != nil {
		return err
	}
	return s.host(ctx, s.dir, "sign", "--key", "release.key", "os-rescue")
}

// rescueLayout makes the tree of a rescue image and an artifact of it.
func (s *Site) rescueLayout(ctx context.Context, layout string, flags ...string) error {
	script := filepath.Join(need.Top(), "images", "rescue", "build.sh")
	tree := filepath.Join(s.dir, layout+"-tree")
	args := append([]string{"--version", "1.0", "--osctl", s.Osctl, "--policy", s.policy(), "--key", s.keyPath("release.pub")}, flags...)
	if err := s.quiet(ctx, script, append(args, tree)...); err != nil {
		return err
	}
	return s.host(ctx, s.dir, "build", "--progress", "none", "--rootfs", tree, "--product", "reference-rescue", "--version", "1.0", "-o", layout)
}

// rescueTwice makes the rescue image once more: equal inputs give an equal digest.
func (s *Site) rescueTwice(ctx context.Context) error {
	if err := s.rescueLayout(ctx, "os-again"); err != nil {
		return err
	}
	digests := map[string]string{} // the image is the first of a layout, its signature follows
	for _, layout := range []string{"os-rescue", "os-again"} {
		text, err := os.ReadFile(filepath.Join(s.dir, layout, "index.json"))
		if err != nil {
			return err
		}
		var index ocispec.Index
		if err := json.Unmarshal(text, &index); err != nil || len(index.Manifests) == 0 {
			return fmt.Errorf("the index of %s: %w: %s", layout, err, text)
		}
		digests[layout] = index.Manifests[0].Digest.String()
	}
	if digests["os-rescue"] != digests["os-again"] {
		return fmt.Errorf("two builds of the rescue image differ: %s", digests)
	}
	return nil
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
