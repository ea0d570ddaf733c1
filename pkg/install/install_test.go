package install

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

	"github.com/kapernikov/osctl/pkg/disk"
)

// needPrograms skips the test where a program is missing, but not in CI.
func needPrograms(t *testing.T, names ...string) {
	t.Helper()
	for _, name := range names {
		if _, err := disk.FindProgram(name, name); err == nil {
			continue
		} else if os.Getenv("CI") != "" {
			t.Fatal(err)
		} else {
			t.Skip(err)
		}
	}
}

// run runs a program and returns what it said.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	program, err := disk.FindProgram(name, name)
	if err != nil {
		t.Fatal(err)
	}
	output, err := exec.Command(program, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, output)
	}
	return string(output)
}

// loader looks like an EFI program, and has blocks of zeroes in the middle
// and at the end, which become holes in an ext4.
func loader() []byte {
	content := bytes.Repeat([]byte("MZ loader "), 20000)
	clear(content[40960 : 40960+5*4096])
	return append(content, make([]byte, 9000)...)
}

// imageTree makes a folder with what an image needs, and returns it.
func imageTree(t *testing.T, files map[string][]byte) string {
	t.Helper()
	tree := t.TempDir()
	for name, content := range files {
		path := filepath.Join(tree, bootFolder, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return tree
}

func goodFiles() map[string][]byte {
	return map[string][]byte{"BOOTX64.EFI": loader(), "grub.cfg": []byte("echo booting\n")}
}

func ext4Image(t *testing.T, files map[string][]byte) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image")
	run(t, "mkfs.ext4", "-q", "-F", "-d", imageTree(t, files), path, "4M")
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return content
}

var smallLayout = disk.Layout{ESP: 36 * disk.MiB, Slot: 8 * disk.MiB, Rescue: 2 * disk.MiB}

const smallSize = 160 * disk.MiB

// goodOptions installs image to a new file.
func goodOptions(t *testing.T, image []byte) Options {
	t.Helper()
	return Options{
		Target: filepath.Join(t.TempDir(), "disk.img"), Size: smallSize, Layout: smallLayout,
		ImageSize: int64(len(image)),
		WriteSlot: func(_ context.Context, slot *disk.Device) error {
			if _, err := slot.WriteAt(image, 0); err != nil {
				return err
			}
			return slot.Sync()
		},
		EnvA:   bytes.Repeat([]byte("A"), envSize),
		EnvB:   bytes.Repeat([]byte("B"), envSize),
		Ledger: []byte(`{"slots":{}}`),
	}
}

// blankFile makes a file of size bytes.
func blankFile(t *testing.T, path string, size int64) {
	t.Helper()
	d, err := disk.CreateFile(path, size)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
}

// contents says what is on the disk at path.
func contents(t *testing.T, path string) string {
	t.Helper()
	d, err := disk.OpenReadOnly(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = d.Close() }()
	what, err := disk.Contents(d)
	if err != nil {
		t.Fatal(err)
	}
	return what
}

func TestInstall(t *testing.T) {
	if testing.Short() {
		t.Skip("runs mkfs.ext4, mtools and more")
	}
	needPrograms(t, "mkfs.ext4", "debugfs", "e2fsck", "fsck.vfat", "mtype", "sgdisk", "mksquashfs")
	etc := t.TempDir()
	for path, content := range map[string]string{"hostname": "machine-7\n", "ssh/key": "secret"} {
		path = filepath.Join(etc, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(filepath.Join(etc, "hostname"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/usr/share/zoneinfo/UTC", filepath.Join(etc, "localtime")); err != nil {
		t.Fatal(err)
	}
	squashfs := filepath.Join(t.TempDir(), "image.squashfs")
	run(t, "mksquashfs", imageTree(t, goodFiles()), squashfs, "-quiet", "-no-progress")
	packed, err := os.ReadFile(squashfs)
	if err != nil {
		t.Fatal(err)
	}
	for name, image := range map[string][]byte{"ext4": ext4Image(t, goodFiles()), "squashfs": packed} {
		t.Run(name, func(t *testing.T) {
			opts := goodOptions(t, image)
			opts.Etc = etc
			if err := os.WriteFile(opts.Target, bytes.Repeat([]byte("old"), smallSize/3+1)[:smallSize], 0o600); err != nil {
				t.Fatal(err)
			}
			opts.Force = true
			partitions, err := Install(t.Context(), opts)
			if err != nil {
				t.Fatal(err)
			}
			checkDisk(t, opts, partitions, image)
			checkData(t, opts.Target, partitions[4].Offset)
		})
	}
}

// checkDisk checks everything but the data partition, with other programs'
// eyes.
func checkDisk(t *testing.T, opts Options, partitions []disk.Partition, image []byte) {
	t.Helper()
	if out := run(t, "sgdisk", "--verify", opts.Target); !strings.Contains(out, "No problems found") {
		t.Errorf("sgdisk: %s", out)
	}
	content, err := os.ReadFile(opts.Target)
	if err != nil {
		t.Fatal(err)
	}
	if at := partitions[1].Offset; !bytes.Equal(content[at:at+int64(len(image))], image) {
		t.Error("slot A does not hold the image")
	}
	for _, p := range partitions[2:4] {
		if !bytes.Equal(content[p.Offset:p.Offset+disk.MiB], make([]byte, disk.MiB)) {
			t.Errorf("the old start of %s is still there", p.Label)
		}
	}
	esp := filepath.Join(t.TempDir(), "esp")
	if err := os.WriteFile(esp, content[partitions[0].Offset:][:partitions[0].Size], 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, "fsck.vfat", "-n", esp)
	for path, want := range map[string][]byte{
		"EFI/BOOT/BOOTX64.EFI": loader(), "EFI/BOOT/grub.cfg": goodFiles()["grub.cfg"],
		"osctl/a/grubenv": opts.EnvA, "osctl/b/grubenv": opts.EnvB, "osctl/lost/grubenv": opts.EnvA,
	} {
		if got := run(t, "mtype", "-i", esp, "::"+path); got != string(want) {
			t.Errorf("%s on the ESP has %d bytes, or other ones than the %d wanted", path, len(got), len(want))
		}
	}
}

func checkData(t *testing.T, target string, offset int64) {
	t.Helper()
	system := fmt.Sprintf("%s?offset=%d", target, offset)
	run(t, "e2fsck", "-fn", system)
	for path, want := range map[string]string{
		"osctl/ledger.json": `{"slots":{}}`, "etc/A/upper/hostname": "machine-7\n", "etc/A/upper/ssh/key": "secret",
	} {
		program, err := disk.FindProgram("debugfs", "")
		if err != nil {
			t.Fatal(err)
		}
		got, err := exec.Command(program, "-R", "cat /"+path, system).Output()
		if err != nil || string(got) != want {
			t.Errorf("%s on data: %q, %v; want %q", path, got, err, want)
		}
	}
	// inode/mode/uid/gid/name/size, see debugfs(8)
	for path, want := range map[string][]string{
		"/":                {"/040755/0/0/./", "/040755/0/0/containerd/", "/040755/0/0/etc/", "/040755/0/0/osctl/"},
		"/etc/A":           {"/040755/0/0/upper/", "/040755/0/0/work/"},
		"/etc/A/upper/ssh": {"/100600/0/0/key/"},
		"/etc/A/upper":     {"/100644/0/0/hostname/", "/040750/0/0/ssh/", "/120777/0/0/localtime/", "/040755/0/0/./"},
	} {
		out := run(t, "debugfs", "-R", "ls -p "+path, system)
		for _, entry := range want {
			if !strings.Contains(out, entry) {
				t.Errorf("%s on data has no entry %s:\n%s", path, entry, out)
			}
		}
	}
}

func TestInstallRefuses(t *testing.T) {
	needPrograms(t, "mkfs.ext4", "debugfs")
	image := []byte("an image that is never written")
	for _, test := range []struct {
		name  string
		setup func(t *testing.T, o *Options)
		check func(err error) bool
	}{
		{"an image that is larger than the slot", func(_ *testing.T, o *Options) {
			o.ImageSize = o.Layout.Slot + 1
		}, func(err error) bool {
			large, ok := errors.AsType[*ImageTooLargeError](err)
			return ok && strings.Contains(large.Error(), "9 MiB") && strings.Contains(large.Error(), "8 MiB")
		}},
		{"a new file that is too small", func(_ *testing.T, o *Options) {
			o.Size = smallLayout.MinDiskSize() - 1
		}, isTooSmall},
		{"a disk that is too small", func(t *testing.T, o *Options) {
			blankFile(t, o.Target, smallLayout.MinDiskSize()-1)
			o.Size = 0
		}, isTooSmall},
		{"a disk that holds something", func(t *testing.T, o *Options) {
			if err := os.WriteFile(o.Target, bytes.Repeat([]byte("old"), smallSize/3), 0o600); err != nil {
				t.Fatal(err)
			}
			o.Size = 0
		}, func(err error) bool { _, ok := errors.AsType[*NotBlankError](err); return ok }},
		{"a disk that is in use", func(t *testing.T, o *Options) {
			d, err := disk.CreateFile(o.Target, smallSize)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = d.Close() })
			o.Size = 0
		}, func(err error) bool { return errors.Is(err, disk.ErrBusy) }},
		{"a disk that is not there", func(_ *testing.T, o *Options) { o.Size = 0 },
			func(err error) bool {
				return errors.Is(err, fs.ErrNotExist) && strings.Contains(err.Error(), "a new file needs a size")
			}},
		{"a device that is not there, with a size", func(_ *testing.T, o *Options) { o.Target = "/dev/osctl-no-such-disk" },
			func(err error) bool {
				return errors.Is(err, fs.ErrNotExist) && strings.Contains(err.Error(), "no device")
			}},
		{"a file of another size", func(t *testing.T, o *Options) { blankFile(t, o.Target, smallSize+disk.MiB) },
			func(err error) bool { return strings.Contains(err.Error(), "do not give a size") }},
		{"a folder", func(t *testing.T, o *Options) { o.Target, o.Size = t.TempDir(), 0 },
			func(err error) bool { return errors.Is(err, disk.ErrNotDisk) }},
		{"an env block of the wrong size", func(_ *testing.T, o *Options) { o.EnvB = o.EnvB[1:] },
			func(err error) bool { return strings.Contains(err.Error(), "1024 and 1023 bytes") }},
		{"no ledger", func(_ *testing.T, o *Options) { o.Ledger = nil },
			func(err error) bool { return strings.Contains(err.Error(), "no ledger") }},
		{"an etc folder that is not there", func(t *testing.T, o *Options) { o.Etc = filepath.Join(t.TempDir(), "none") },
			func(err error) bool {
				return errors.Is(err, fs.ErrNotExist) && strings.Contains(err.Error(), "files for /etc")
			}},
		{"a device in the etc folder", func(t *testing.T, o *Options) {
			o.Etc = t.TempDir()
			if err := syscall.Mkfifo(filepath.Join(o.Etc, "pipe"), 0o600); err != nil {
				t.Fatal(err)
			}
		}, func(err error) bool { return strings.Contains(err.Error(), "pipe: it is neither") }},
	} {
		t.Run(test.name, func(t *testing.T) {
			opts := goodOptions(t, image)
			opts.WriteSlot = func(context.Context, *disk.Device) error {
				t.Error("the slot was written")
				return nil
			}
			test.setup(t, &opts)
			before, _ := os.ReadFile(opts.Target)
			_, err := Install(t.Context(), opts)
			if err == nil || !test.check(err) {
				t.Errorf("Install = %v", err)
			}
			if after, _ := os.ReadFile(opts.Target); !bytes.Equal(before, after) {
				t.Error("a refused install changed the disk")
			}
		})
	}
}

func isTooSmall(err error) bool {
	small, ok := errors.AsType[*disk.TooSmallError](err)
	return ok && small.Have == smallLayout.MinDiskSize()-1 && small.Want == smallLayout.MinDiskSize()
}

func TestInstallRefusesAnImageThatCannotBoot(t *testing.T) {
	if testing.Short() {
		t.Skip("runs mkfs.ext4 and debugfs")
	}
	needPrograms(t, "mkfs.ext4", "debugfs")
	for _, test := range []struct {
		name  string
		image []byte
		file  string
		want  string
	}{
		{"no loader", ext4Image(t, map[string][]byte{"grub.cfg": {'x'}}), "BOOTX64.EFI", fs.ErrNotExist.Error()},
		{"no grub.cfg", ext4Image(t, map[string][]byte{"BOOTX64.EFI": loader()}), "grub.cfg", fs.ErrNotExist.Error()},
		{"empty grub.cfg", ext4Image(t, map[string][]byte{"BOOTX64.EFI": loader(), "grub.cfg": nil}), "grub.cfg", "it is empty"},
		{"no EFI program", ext4Image(t, map[string][]byte{"BOOTX64.EFI": []byte("\x7fELF"), "grub.cfg": {'x'}}), "BOOTX64.EFI", "not an EFI program"},
		{"endless loader", ext4Image(t, map[string][]byte{"BOOTX64.EFI": append([]byte("MZ"), make([]byte, maxBootFile)...), "grub.cfg": {'x'}}), "BOOTX64.EFI", "more than 16777216 bytes"},
		{"nothing at all", ext4Image(t, nil), "grub.cfg", fs.ErrNotExist.Error()},
		{"no file system", make([]byte, 8192), "", "neither ext4 nor squashfs"},
		{"a damaged file system", append(ext4Image(t, goodFiles())[:4096], make([]byte, 1<<20)...), "grub.cfg", "debugfs: "},
	} {
		t.Run(test.name, func(t *testing.T) {
			opts := goodOptions(t, test.image)
			blankFile(t, opts.Target, smallSize)
			_, err := Install(t.Context(), opts)
			bad, ok := errors.AsType[*BadImageError](err)
			if !ok || !strings.HasSuffix(bad.File, test.file) || !strings.Contains(err.Error(), test.want) {
				t.Fatalf("Install = %v", err)
			}
			if what := contents(t, opts.Target); what != "" {
				t.Errorf("after the failure the disk holds %s", what)
			}
		})
	}
}
