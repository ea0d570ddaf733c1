package disk

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/diskfs/go-diskfs/backend/file"
	"github.com/diskfs/go-diskfs/filesystem/fat12"
	"github.com/diskfs/go-diskfs/filesystem/fat32"
)

// needPrograms skips the test where a program is missing, but not in CI.
func needPrograms(t *testing.T, names ...string) {
	t.Helper()
	for _, name := range names {
		if _, err := FindProgram(name, name); err == nil {
			continue
		} else if os.Getenv("CI") != "" {
			t.Fatal(err)
		} else {
			t.Skip(err)
		}
	}
}

// runTool runs a program and returns what it said.
func runTool(t *testing.T, name string, args ...string) string {
	t.Helper()
	program, err := FindProgram(name, name)
	if err != nil {
		t.Fatal(err)
	}
	output, err := exec.Command(program, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, output)
	}
	return string(output)
}

func newDisk(t *testing.T, size int64) *Device {
	t.Helper()
	d, err := CreateFile(filepath.Join(t.TempDir(), "disk.img"), size)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d
}

func espFiles() []File {
	return []File{
		{"EFI/BOOT/BOOTX64.EFI", bytes.Repeat([]byte("loader "), 300001)},
		{"EFI/BOOT/grub.cfg", []byte("echo hello\n")},
		{"osctl/a/grubenv", bytes.Repeat([]byte("A"), 1024)},
		{"osctl/b/grubenv", bytes.Repeat([]byte("B"), 1024)},
		{"empty", nil},
	}
}

// TestESPReadByAnotherReader reads the file system with go-diskfs, and checks
// what makes writing in place safe.
func TestESPReadByAnotherReader(t *testing.T) {
	for _, size := range []int64{minESP, 64 * MiB, 64*MiB + 37*SectorSize, 260 * MiB, 600 * MiB} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			d := newDisk(t, size)
			if _, err := d.WriteAt(bytes.Repeat([]byte("old"), 2*MiB), 0); err != nil {
				t.Fatal(err)
			}
			if err := WriteESP(d, espFiles()); err != nil {
				t.Fatal(err)
			}
			system, err := fat32.Read(file.New(&stream{device: d}, true), size, 0, SectorSize)
			if err != nil {
				t.Fatal(err)
			}
			blocks := map[uint64]string{}
			for _, want := range espFiles() {
				opened, err := system.OpenFile(want.Path, os.O_RDONLY)
				if err != nil {
					t.Fatal(err)
				}
				if len(want.Content) == 0 {
					continue
				}
				got := make([]byte, len(want.Content))
				if _, err := io.ReadFull(opened, got); err != nil || !bytes.Equal(got, want.Content) {
					t.Errorf("%s: %v, or other bytes than were written", want.Path, err)
				}
				ranges, err := opened.(*fat12.File).GetDiskRanges()
				if err != nil || len(ranges) != 1 {
					t.Fatalf("%s is in %d pieces: %v", want.Path, len(ranges), err)
				}
				if ranges[0].Offset%fatBlock != 0 {
					t.Errorf("%s starts at %d, not on a block", want.Path, ranges[0].Offset)
				}
				for at := ranges[0].Offset; at < ranges[0].Offset+uint64(len(want.Content)); at += fatBlock {
					if other := blocks[at]; other != "" {
						t.Errorf("%s shares the block at %d with %s", want.Path, at, other)
					}
					blocks[at] = want.Path
				}
			}
		})
	}
}

func TestESPReadByTools(t *testing.T) {
	if testing.Short() {
		t.Skip("runs fsck.vfat and mtools")
	}
	needPrograms(t, "fsck.vfat", "mtype", "mdir")
	for _, size := range []int64{minESP, 64 * MiB, 260 * MiB, 600 * MiB} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			d := newDisk(t, size)
			if err := WriteESP(d, espFiles()); err != nil {
				t.Fatal(err)
			}
			path, _ := d.Path()
			runTool(t, "fsck.vfat", "-n", path)
			for _, f := range espFiles() {
				if got := runTool(t, "mtype", "-i", path, "::"+f.Path); got != string(f.Content) {
					t.Errorf("%s: mtools reads %d bytes, or other ones than the %d written", f.Path, len(got), len(f.Content))
				}
			}
			want := "::/osctl/a/grubenv"
			if out := runTool(t, "mdir", "-b", "-/", "-i", path, "::"); !strings.Contains(out, want) {
				t.Errorf("mdir shows no %s:\n%s", want, out)
			}
		})
	}
}

// TestESPReadByGRUB lists and reads a file on the partitioned disk with the
// file-system code of the real boot loader.
func TestESPReadByGRUB(t *testing.T) {
	if testing.Short() {
		t.Skip("runs grub-fstest")
	}
	needPrograms(t, "grub-fstest")
	d := newDisk(t, 200*MiB)
	partitions, err := Layout{ESP: 64 * MiB, Slot: MiB, Rescue: MiB}.Place(d.Size())
	if err != nil {
		t.Fatal(err)
	}
	esp, err := d.Section(partitions[0].Offset, partitions[0].Size)
	if err != nil {
		t.Fatal(err)
	}
	if err := WriteESP(esp, espFiles()); err != nil {
		t.Fatal(err)
	}
	if err := WriteTable(d, partitions); err != nil {
		t.Fatal(err)
	}
	path, _ := d.Path()
	out := runTool(t, "grub-fstest", path, "ls", "(loop0,gpt1)/osctl/a/")
	if !strings.Contains(out, "grubenv") {
		t.Errorf("ls: %s", out)
	}
	for _, f := range espFiles() {
		if got := runTool(t, "grub-fstest", path, "cat", "(loop0,gpt1)/"+f.Path); got != string(f.Content) {
			t.Errorf("%s: GRUB reads %d bytes, or other ones than the %d written", f.Path, len(got), len(f.Content))
		}
	}
}

func TestESPRefusals(t *testing.T) {
	for _, test := range []struct {
		name  string
		size  int64
		files []File
		want  error
	}{
		{"long name", minESP, []File{{"EFI/BOOT/verylongname.efi", nil}}, errName},
		{"mixed case", minESP, []File{{"Efi/x", nil}}, errName},
		{"no extension after the dot", minESP, []File{{"x.", nil}}, errName},
		{"two dots", minESP, []File{{"a.b.c", nil}}, errName},
		{"umlaut", minESP, []File{{"ä", nil}}, errName},
		{"absolute", minESP, []File{{"/x", nil}}, fs.ErrInvalid},
		{"out of the root", minESP, []File{{"../x", nil}}, fs.ErrInvalid},
		{"the root", minESP, []File{{".", nil}}, fs.ErrInvalid},
		{"twice", minESP, []File{{"a/x", nil}, {"A/X", nil}}, fs.ErrExist},
		{"file as folder", minESP, []File{{"a", nil}, {"a/x", nil}}, fs.ErrExist},
		{"folder as file", minESP, []File{{"a/x", nil}, {"a", nil}}, fs.ErrExist},
		{"too much", minESP, []File{{"x", make([]byte, 20*MiB)}, {"y", make([]byte, 20*MiB)}}, errFull},
	} {
		d := newDisk(t, test.size)
		if err := WriteESP(d, test.files); !errors.Is(err, test.want) {
			t.Errorf("%s: WriteESP = %v, want %v", test.name, err, test.want)
		}
	}
	if err := WriteESP(newDisk(t, 32*MiB), nil); err == nil || !strings.Contains(err.Error(), "too few for FAT32") {
		t.Errorf("WriteESP on 32 MiB = %v, want too few clusters", err)
	}
}

// lie makes d read back from a medium that has lost all writes from now on.
func lie(t *testing.T, d *Device) {
	t.Helper()
	path, _ := d.Path()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	other := filepath.Join(t.TempDir(), "medium")
	if err := os.WriteFile(other, content, 0o600); err != nil {
		t.Fatal(err)
	}
	stale, err := os.Open(other)
	if err != nil {
		t.Fatal(err)
	}
	// Writes go to the file itself, by the page cache.
	d.medium.direct.file, d.medium.direct.buffered = stale, true
}

func TestWritesThatDoNotReachTheMediumAreFound(t *testing.T) {
	d := newDisk(t, testLayout.MinDiskSize())
	partitions, err := testLayout.Place(d.Size())
	if err != nil {
		t.Fatal(err)
	}
	if err := WriteTable(d, partitions); err != nil {
		t.Fatal(err)
	}
	lie(t, d)
	if err := WriteESP(d, espFiles()); !errors.Is(err, ErrReadBack) {
		t.Errorf("WriteESP = %v, want ErrReadBack", err)
	}
	partitions[4].Size -= MiB
	if err := WriteTable(d, partitions); !errors.Is(err, ErrTable) {
		t.Errorf("WriteTable = %v, want ErrTable", err)
	}
}

func TestESPFillsUpToTheLastCluster(t *testing.T) {
	size := int64(minESP)
	empty, err := newFAT(size, 0, []File{{"x", nil}})
	if err != nil {
		t.Fatal(err)
	}
	info := make([]byte, SectorSize)
	empty.fill(info, SectorSize)
	free := int64(binary.LittleEndian.Uint32(info[488:]))
	// The root has cluster 2; the file starts on the next block.
	most := (free + 1 - fatBlock/SectorSize) * SectorSize
	if _, err := newFAT(size, 0, []File{{"x", make([]byte, most)}}); err != nil {
		t.Errorf("a file of all free clusters: %v", err)
	}
	if _, err := newFAT(size, 0, []File{{"x", make([]byte, most+1)}}); !errors.Is(err, errFull) {
		t.Errorf("a file of one byte more: %v", err)
	}
}
