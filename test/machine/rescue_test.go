package machine

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kapernikov/osctl/test/need"
	"github.com/kapernikov/osctl/test/vm"
)

// rescuePassword gives a shell on the consoles of the rescue system.
const rescuePassword = "who drove here"

// TestRescue destroys both slots of a machine and sees it come back: GRUB finds nothing
// but the rescue system, which pulls the committed image again by itself; and, in the long
// run, where there is no registry, somebody brings it on a USB stick.
func TestRescue(t *testing.T) {
	ctx, site := begin(t, "openssl", "sfdisk", "mkfs.vfat", "mcopy")
	hash, err := exec.CommandContext(ctx, "openssl", "passwd", "-6", rescuePassword).Output()
	if err != nil {
		t.Fatal(err)
	}
	flags := []string{"--password-hash", strings.TrimSpace(string(hash))}
	if err := errors.Join(site.buildRescue(ctx, flags...), site.rescueTwice(ctx, flags...)); err != nil {
		t.Fatal(err)
	}
	if err := site.Install(ctx, "--policy", "rescue.yaml", "--rescue", "os-rescue"); err != nil {
		t.Fatal(err)
	}
	s := &Story{Site: site, tell: site.tell}
	s.closeAtEnd(t)
	chapters := []func(context.Context) error{s.bySelf}
	if exhaustive() { // it boots twice more
		chapters = append(chapters, s.byStick)
	}
	for _, tell := range chapters {
		if err := tell(ctx); err != nil {
			t.Fatal(err)
		}
	}
}

// bySelf destroys the slots of a machine that has its registry.
func (s *Story) bySelf(ctx context.Context) error {
	if err := s.startWithoutSlots(ctx); err != nil {
		return err
	}
	err := s.inOrder(ctx, `osctl rescue: starting`, `Slot A +1\.0, committed here, DAMAGED`, `Slot A holds again reference 1\.0`)
	if err != nil {
		return err
	}
	return s.isBack(ctx, 1)
}

// byStick destroys the slots of a machine that has no registry any more. Somebody comes,
// plugs a stick into the machine that waits, and logs in.
func (s *Story) byStick(ctx context.Context) error {
	if err := errors.Join(s.Machine.PowerOff(ctx), s.Machine.Close(), s.Site.makeStick(ctx), s.Site.Close()); err != nil {
		return err
	}
	if err := s.startWithoutSlots(ctx); err != nil {
		return err
	}
	if err := s.inOrder(ctx, `osctl rescue: starting`, `The next one is in`); err != nil {
		return err
	}
	if err := s.Machine.Plug(ctx, s.Site.stick()); err != nil {
		return err
	}
	if err := s.inOrder(ctx, `sda: sda1`); err != nil {
		return err
	}
	if err := s.Machine.Type(rescuePassword); err != nil {
		return err
	}
	if err := s.inOrder(ctx, `^# `); err != nil {
		return err
	}
	// It is refused while the rescue system makes an attempt of its own.
	repair := "until osctl rescue repair --progress none --from /mnt/os-1.0.oci; do sleep 1; done"
	for _, line := range []string{"mkdir /mnt; mount /dev/sda1 /mnt", repair, "umount /mnt; reboot"} {
		if err := s.Machine.Type(line); err != nil {
			return err
		}
	}
	if err := s.inOrder(ctx, `Slot A holds again reference 1\.0`); err != nil {
		return err
	}
	return s.isBack(ctx, 2)
}

// startWithoutSlots destroys both slots and switches the machine on.
func (s *Story) startWithoutSlots(ctx context.Context) (err error) {
	for _, off := range []int64{65 * mib, 65*mib + slotSize} {
		if err := destroy(s.Site.Disk(), off); err != nil {
			return err
		}
	}
	config := s.Site.config()
	config.USB = true
	s.Machine, err = vm.Start(ctx, config)
	return err
}

// inOrder waits for lines of the console.
func (s *Story) inOrder(ctx context.Context, lines ...string) error {
	for _, line := range lines {
		if err := s.settled(ctx, line); err != nil {
			return err
		}
	}
	return nil
}

// isBack waits for the boot of the slot that the rescue system has restored so often.
func (s *Story) isBack(ctx context.Context, times int) error {
	if err := s.inOrder(ctx, `nothing to do: slot A: slot A is committed`); err != nil {
		return err
	}
	for command, want := range map[string]string{
		"osctl verify A --progress none":                 "Slot A holds reference 1.0, every one of its",
		"osctl history | grep -c 'by the rescue system'": fmt.Sprint(times),
		"osctl status | head -1":                         "reference runs 1.0 from slot A, committed",
	} {
		if _, err := s.run(ctx, command, 0, want); err != nil {
			return err
		}
	}
	return nil
}

func (s *Site) stick() string { return filepath.Join(s.dir, "stick.img") }

// makeStick makes a USB stick as they are sold, one FAT file system in one partition, and
// puts release 1.0 with its signature on it.
func (s *Site) makeStick(ctx context.Context) error {
	if err := s.host(ctx, s.dir, "bundle", "--progress", "none", s.local("os:1.0"), "-o", "os-1.0.oci"); err != nil {
		return err
	}
	for _, command := range [][]string{
		{"truncate", "--size=1G", s.stick()},
		{"sh", "-c", "echo 2048,,c | sfdisk --quiet " + s.stick()},
		{"mkfs.vfat", "-F32", "--offset=2048", s.stick()},
		{"mcopy", "-i", s.stick() + "@@1M", filepath.Join(s.dir, "os-1.0.oci"), "::"},
	} {
		if err := s.quiet(ctx, command[0], command[1:]...); err != nil {
			return err
		}
	}
	return nil
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
func (s *Site) rescueTwice(ctx context.Context, flags ...string) error {
	if err := s.rescueLayout(ctx, "os-again", flags...); err != nil {
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
