//go:build yocto

package machine

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kapernikov/osctl/pkg/boot"
	"github.com/kapernikov/osctl/pkg/disk"
	"github.com/kapernikov/osctl/test/need"
)

// TestYoctoDisk tells the story on the disk that the Yocto layer describes, made by
// its tool, wic, with the system of the reference image in slot A. It is a part of
// `make yocto-check`, which knows where that tool is, and of nothing else.
func TestYoctoDisk(t *testing.T) {
	if os.Getenv("WIC") == "" {
		t.Fatal("needs wic in $WIC: run make yocto-check")
	}
	ctx, site := begin(t, "parted", "sfdisk", "debugfs", "mcopy")
	if err := site.wic(ctx); err != nil {
		t.Fatal(err)
	}
	machine, err := site.Start(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	story := &Story{Site: site, Machine: machine, tell: site.tell}
	story.closeAtEnd(t)
	if err := story.settled(ctx, `slot A is committed`); err != nil {
		t.Fatal(err)
	}
	for _, chapter := range []struct {
		name string
		tell func(context.Context) error
	}{
		{"the system is what it should be", story.soundSystem},
		{"first look", story.firstLook},
		{"application", story.runApplication},
		{"strangers", story.refuseStrangers},
		{"upgrade", story.upgrade},
	} {
		if !t.Run(chapter.name, func(t *testing.T) {
			if err := chapter.tell(ctx); err != nil {
				t.Fatal(err)
			}
		}) {
			return
		}
	}
}

// wic makes the disk from release 1.0, judges it, and gives it what is this machine's
// own, as `osctl install --etc` would.
func (s *Site) wic(ctx context.Context) error {
	// Installed once by osctl: slot A of that disk has the image, and the files for
	// /etc are ready.
	if err := s.Install(ctx); err != nil {
		return err
	}
	dir := filepath.Join(s.dir, "wic")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	image := filepath.Join(dir, "rootfs.ext4")
	sum, size, err := s.image("os-1.0")
	if err != nil {
		return err
	}
	layout := disk.DefaultLayout()
	if err := copySection(image, s.Disk(), disk.MiB+layout.ESP, size); err != nil {
		return err
	}
	block, err := boot.InitialBlock()
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "grubenv"), block, 0o644); err != nil {
		return err
	}
	for _, file := range []string{"BOOTX64.EFI", "grub.cfg"} {
		if err := s.quiet(ctx, "debugfs", "-R", "dump /usr/lib/osctl/boot/"+file+" "+filepath.Join(dir, file), image); err != nil {
			return err
		}
	}
	if err := os.Remove(s.Disk()); err != nil {
		return err
	}
	s.tell.Title("Make the disk of the Yocto layer")
	if err := s.quiet(ctx, filepath.Join(need.Top(), "test/yocto/disk.sh"), image, dir, s.Disk()); err != nil {
		return err
	}
	return s.judgeWic(ctx, sum, size)
}

// image is the checksum and the size of the raw image in a layout.
func (s *Site) image(layout string) (sum string, size int64, err error) {
	out, err := exec.Command(s.Osctl, "inspect", "--json", filepath.Join(s.dir, layout)).Output()
	if err != nil {
		return "", 0, fmt.Errorf("inspecting %s: %w", layout, err)
	}
	var found struct {
		Config struct {
			Rootfs struct {
				Size   int64
				Digest string
			}
		}
	}
	if err := json.Unmarshal(out, &found); err != nil {
		return "", 0, err
	}
	return strings.TrimPrefix(found.Config.Rootfs.Digest, "sha256:"), found.Config.Rootfs.Size, nil
}

// copySection writes a section of a file into a new file.
func copySection(to, from string, off, size int64) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close() //nolint:errcheck // only read
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	_, err = io.Copy(out, io.NewSectionReader(in, off, size))
	return err
}

// judgeWic holds the disk to what osctl expects of one, and slot A to the image.
func (s *Site) judgeWic(ctx context.Context, sum string, size int64) error {
	out, err := exec.CommandContext(ctx, "sfdisk", "--json", s.Disk()).Output()
	if err != nil {
		return fmt.Errorf("reading the partition table: %w", err)
	}
	var table struct {
		PartitionTable struct {
			Label      string
			Partitions []struct {
				Start int64
				Type  string
				Name  string
			}
		}
	}
	if err := json.Unmarshal(out, &table); err != nil {
		return err
	}
	const linux = "0FC63DAF-8483-4772-8E79-3D69D8477DE4"
	want := []string{"boot C12A7328-F81F-11D2-BA4B-00A0C93EC93B", "rootfsA " + linux, "rootfsB " + linux, "rescue " + linux, "data " + linux}
	var got []string
	starts := map[string]int64{}
	for _, p := range table.PartitionTable.Partitions {
		got = append(got, p.Name+" "+p.Type)
		starts[p.Name] = p.Start * disk.SectorSize
	}
	if diff := cmp.Diff(want, got); diff != "" || table.PartitionTable.Label != "gpt" {
		return fmt.Errorf("the partition table (%s) is not osctl's (-want +got)\n%s", table.PartitionTable.Label, diff)
	}
	f, err := os.Open(s.Disk())
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // only read
	h := sha256.New()
	if _, err := io.Copy(h, io.NewSectionReader(f, starts[disk.LabelSlotA], size)); err != nil {
		return err
	}
	if have := hex.EncodeToString(h.Sum(nil)); have != sum {
		return fmt.Errorf("slot A has the checksum %s, and the image %s", have, sum)
	}
	fmt.Fprintf(s.tell.Output(), "slot A is the image, byte for byte: sha256:%s\n", sum)
	return s.seed(ctx, starts[disk.LabelData])
}

// seed puts this machine's files for /etc on the data partition.
func (s *Site) seed(ctx context.Context, offset int64) error {
	var script strings.Builder
	script.WriteString("mkdir etc\nmkdir etc/A\nmkdir etc/A/upper\nmkdir etc/A/work\n")
	etc := filepath.Join(s.dir, "etc")
	err := filepath.WalkDir(etc, func(path string, d os.DirEntry, err error) error {
		if err != nil || path == etc {
			return err
		}
		to := "etc/A/upper/" + strings.TrimPrefix(path, etc+"/")
		if d.IsDir() {
			fmt.Fprintf(&script, "mkdir %s\n", to)
		} else {
			fmt.Fprintf(&script, "write %s %s\n", path, to)
		}
		return nil
	})
	if err != nil {
		return err
	}
	commands := filepath.Join(s.dir, "wic", "seed")
	if err := os.WriteFile(commands, []byte(script.String()), 0o644); err != nil {
		return err
	}
	return s.quiet(ctx, "debugfs", "-w", "-f", commands, fmt.Sprintf("%s?offset=%d", s.Disk(), offset))
}
