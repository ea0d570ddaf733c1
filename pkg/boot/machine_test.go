package boot

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/diskfs/go-diskfs/backend/file"
	"github.com/diskfs/go-diskfs/partition/gpt"

	"github.com/kapernikov/osctl/pkg/device"
	"github.com/kapernikov/osctl/pkg/grubenv"
)

// grubConfig is the script that a machine runs.
const grubConfig = "../../images/rootfs/usr/lib/osctl/boot/grub.cfg"

// The test disk, in bytes: the ESP as on a machine, the slots small.
const (
	mib      = 1 << 20
	espStart = 1 * mib
	espSize  = 64 * mib
	slotSize = 2 * mib
	diskSize = espStart + espSize + 3*slotSize + mib
)

// places are the partitions that hold systems, in their order on the disk.
func places() []device.Slot { return []device.Slot{slotA, slotB, device.Rescue} }

func slotStart(name device.Slot) int64 {
	return espStart + espSize + slotSize*int64(slices.Index(places(), name))
}

// partUUID is the identity of a slot's partition as Linux writes it.
func partUUID(name device.Slot) string {
	return map[device.Slot]string{
		slotA: "aaaaaaaa-0000-4000-8000-00000000000a",
		slotB: "bbbbbbbb-0000-4000-8000-00000000000b",

		device.Rescue: "dddddddd-0000-4000-8000-00000000000d",
	}[name]
}

// machine is a disk and grub-emu, which runs the real grub.cfg from it. The
// emulator has neither "linux" nor "serial", so a prologue defines them as
// functions; what the script would have booted is noted on a second disk.
type machine struct {
	t     *testing.T
	dir   string
	disk  *os.File
	data  [2]int64 // where the content of each copy lies
	entry [2]int64 // where its directory entry lies
	whole [2][]byte
	note  int64 // where the note lies on the second disk

	// What a test may change before a boot.
	name    string   // the disk in GRUB, for example "hd0"
	root    string   // GRUB's variable root
	kernels string   // what "initrd" does: "exit" starts the system, "true" fails to
	wrapper []string // the command that starts grub-emu
	script  string   // what grub-emu runs: the prologue
	beside  *machine // another disk, under its own name
}

// result is what one boot did.
type result struct {
	cmdline string   // of the kernel that was started, "" for none
	tried   []string // the kernels that GRUB looked for, in order
	output  string
}

func needTools(t *testing.T, more ...string) {
	t.Helper()
	if testing.Short() {
		t.Skip("needs grub-emu")
	}
	for _, tool := range append([]string{"grub-emu", "mcopy", "mmd", "mkfs.vfat", "mkfs.ext4"}, more...) {
		if _, err := exec.LookPath(tool); err != nil {
			if os.Getenv("CI") != "" {
				t.Fatal(err)
			}
			t.Skip(err)
		}
	}
}

func run(t *testing.T, command string, args ...string) {
	t.Helper()
	if out, err := exec.Command(command, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v: %s", command, args, err, out)
	}
}

// newMachine makes the disk. The copy that order names first lies first.
func newMachine(t *testing.T, order string) *machine {
	t.Helper()
	m := &machine{t: t, dir: t.TempDir(), name: "hd0", root: "hd0,gpt1", kernels: "exit", script: prologue}
	disk, err := os.OpenFile(m.path("disk"), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { disk.Close() })
	m.disk = disk
	if err := disk.Truncate(diskSize); err != nil {
		t.Fatal(err)
	}
	partition := func(i int, name, guid string, kind gpt.Type, start, size int64) *gpt.Partition {
		return &gpt.Partition{Index: i, Name: name, GUID: guid, Type: kind, Start: uint64(start / 512), Size: uint64(size)}
	}
	table := gpt.Table{LogicalSectorSize: 512, PhysicalSectorSize: 512, ProtectiveMBR: true, Partitions: []*gpt.Partition{
		partition(1, "boot", "cccccccc-0000-4000-8000-00000000000c", gpt.EFISystemPartition, espStart, espSize),
		partition(2, "rootfsA", partUUID(slotA), gpt.LinuxFilesystem, slotStart(slotA), slotSize),
		partition(3, "rootfsB", partUUID(slotB), gpt.LinuxFilesystem, slotStart(slotB), slotSize),
		partition(4, "rescue", partUUID(device.Rescue), gpt.LinuxFilesystem, slotStart(device.Rescue), slotSize),
	}}
	writable, err := file.New(disk, false).Writable()
	if err != nil {
		t.Fatal(err)
	}
	if err := table.Write(writable, diskSize); err != nil {
		t.Fatal(err)
	}
	m.makeESP(order)
	for _, name := range places() {
		m.makeSlot(name)
	}
	m.makeNote()
	return m
}

func (m *machine) path(name string) string { return filepath.Join(m.dir, name) }

func (m *machine) write(name string, data []byte) {
	m.t.Helper()
	if err := os.WriteFile(m.path(name), data, 0o600); err != nil {
		m.t.Fatal(err)
	}
}

func (m *machine) read(name string) []byte {
	m.t.Helper()
	data, err := os.ReadFile(m.path(name))
	if err != nil {
		m.t.Fatal(err)
	}
	return data
}

// find returns the offset of what occurs n-th.
func find(t *testing.T, data, what []byte, n int) int64 {
	t.Helper()
	at := 0
	for ; ; n-- {
		i := bytes.Index(data[at:], what)
		if i < 0 {
			t.Fatalf("%.20q is not there %d times", what, n+1)
		}
		if at += i; n == 0 {
			return int64(at)
		}
		at++
	}
}

// makeESP puts the script and two copies onto a FAT32, and finds the copies and
// their directory entries in it, so that a test damages them by writing bytes.
func (m *machine) makeESP(order string) {
	m.t.Helper()
	esp := m.path("esp")
	m.write("esp", nil)
	if err := os.Truncate(esp, espSize); err != nil {
		m.t.Fatal(err)
	}
	run(m.t, "mkfs.vfat", "-F", "32", "-s", "1", esp)
	run(m.t, "mmd", "-i", esp, "::/EFI", "::/EFI/BOOT", "::/osctl", "::/osctl/a", "::/osctl/b")
	run(m.t, "mcopy", "-i", esp, grubConfig, "::/EFI/BOOT/grub.cfg")
	for _, name := range strings.Split(order, "") {
		m.write("marker", bytes.Repeat([]byte("copy-"+name+"--"), grubenv.Size/8))
		run(m.t, "mcopy", "-i", esp, m.path("marker"), "::/osctl/"+name+"/grubenv")
	}
	image := m.read("esp")
	for i, name := range []string{"a", "b"} {
		m.data[i] = espStart + find(m.t, image, bytes.Repeat([]byte("copy-"+name+"--"), grubenv.Size/8), 0)
	}
	first := strings.Index("ab", order[:1])
	for n, i := range []int{first, 1 - first} { // the entry with the lower cluster is of the copy that lies first
		at := m.entryOf(image, n)
		m.entry[i] = espStart + at
		m.whole[i] = bytes.Clone(image[at : at+32])
	}
	m.writeSparse(image, espStart)
}

// entryOf finds the directory entries of the copies, ordered by first cluster.
func (m *machine) entryOf(image []byte, n int) int64 {
	m.t.Helper()
	at := [2]int64{}
	var cluster [2]uint16
	for i := range at {
		at[i] = find(m.t, image, []byte("GRUBENV    "), i)
		cluster[i] = binary.LittleEndian.Uint16(image[at[i]+26:])
	}
	if cluster[0] > cluster[1] {
		at[0], at[1] = at[1], at[0]
	}
	return at[n]
}

func (m *machine) writeSparse(image []byte, off int64) {
	m.t.Helper()
	zero := make([]byte, 4096)
	for i := 0; i < len(image); i += len(zero) {
		part := image[i:min(i+len(zero), len(image))]
		if !bytes.Equal(part, zero[:len(part)]) {
			m.writeAt(part, off+int64(i))
		}
	}
}

func (m *machine) writeAt(data []byte, off int64) {
	m.t.Helper()
	if _, err := m.disk.WriteAt(data, off); err != nil {
		m.t.Fatal(err)
	}
}

func (m *machine) readAt(off, size int64) []byte {
	m.t.Helper()
	data := make([]byte, size)
	if _, err := m.disk.ReadAt(data, off); err != nil {
		m.t.Fatal(err)
	}
	return data
}

// makeSlot puts a file system with a kernel and an initrd into a slot.
func (m *machine) makeSlot(name device.Slot) {
	m.t.Helper()
	tree, image := m.path("tree"+string(name)), "slot"+string(name)
	if err := os.MkdirAll(filepath.Join(tree, "boot"), 0o755); err != nil {
		m.t.Fatal(err)
	}
	for _, file := range []string{"vmlinuz", "initrd.img"} {
		if err := os.WriteFile(filepath.Join(tree, "boot", file), []byte(name), 0o600); err != nil {
			m.t.Fatal(err)
		}
	}
	m.write(image, nil)
	run(m.t, "mkfs.ext4", "-q", "-O", "^has_journal", "-d", tree, m.path(image), fmt.Sprint(slotSize/1024))
	m.writeSparse(m.read(image), slotStart(name))
}

// unbootable makes the slot what it is while it is written: without a first
// block. The returned function undoes it.
func (m *machine) unbootable(name device.Slot) (restore func()) {
	m.t.Helper()
	saved := m.readAt(slotStart(name), 8192)
	m.writeAt(make([]byte, 8192), slotStart(name))
	return func() { m.writeAt(saved, slotStart(name)) }
}

// noteSize is the length in bytes of the file that takes what GRUB did.
const noteSize = 8192

func (m *machine) makeNote() {
	m.t.Helper()
	m.write("note", bytes.Repeat([]byte("note"), noteSize/4))
	m.write("disk2", nil)
	if err := os.Truncate(m.path("disk2"), 128*1024); err != nil {
		m.t.Fatal(err)
	}
	run(m.t, "mkfs.vfat", m.path("disk2"))
	run(m.t, "mcopy", "-i", m.path("disk2"), m.path("note"), "::/note")
	m.note = find(m.t, m.read("disk2"), bytes.Repeat([]byte("note"), noteSize/4), 0)
}

// set gives a copy its content: nil for no file, any length up to 1024 bytes.
func (m *machine) set(i int, data []byte) {
	m.t.Helper()
	entry := bytes.Clone(m.whole[i])
	switch {
	case data == nil:
		entry[0] = 0xe5 // a deleted entry
	case len(data) == 0:
		copy(entry[20:22], []byte{0, 0}) // no first cluster
		copy(entry[26:28], []byte{0, 0})
	}
	binary.LittleEndian.PutUint32(entry[28:], uint32(len(data)))
	m.writeAt(entry, m.entry[i])
	content := make([]byte, grubenv.Size)
	copy(content, data)
	m.writeAt(content, m.data[i])
}

// get returns the first n bytes of a copy's content.
func (m *machine) get(i, n int) []byte { return m.readAt(m.data[i], int64(n)) }

const prologue = `
function serial { return 1; }
function linux {
  set tried="$tried $1"
  save_env --file (hd9)/note tried
  set kernel="$*"
  [ -f "$1" ]
}
function initrd {
  if [ ! -f "$1" ]; then return 1; fi
  set booted="$kernel initrd=$1"
  save_env --file (hd9)/note booted
  KERNELS
}
set root=ROOT
set prefix=(NAME,gpt1)/EFI/BOOT
source (NAME,gpt1)/EFI/BOOT/grub.cfg
`

// boot runs grub.cfg until it starts a kernel or restarts.
func (m *machine) boot() result {
	m.t.Helper()
	script := strings.NewReplacer("KERNELS", m.kernels, "ROOT", m.root, "NAME", m.name).Replace(m.script)
	m.write("grub.cfg", []byte(script))
	disks := "(" + m.name + ") " + m.path("disk") + "\n(hd9) " + m.path("disk2") + "\n"
	if m.beside != nil {
		disks = "(" + m.beside.name + ") " + m.beside.path("disk") + "\n" + disks
	}
	m.write("device.map", []byte(disks))
	m.clearNote()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	args := append(m.wrapper[:len(m.wrapper):len(m.wrapper)],
		"grub-emu", "-m", m.path("device.map"), "-r", "host", "-d", m.dir)
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Env = append(os.Environ(), "TERM=dumb")
	out, err := cmd.CombinedOutput()
	if err != nil {
		m.t.Fatalf("%v: %v: %s", args, err, out)
	}
	data := m.read("disk2")[m.note:][:noteSize]
	block, err := grubenv.Parse(data)
	if err != nil {
		m.t.Fatalf("the note: %v: %s", err, out)
	}
	r := result{output: string(out)}
	r.cmdline, _ = block.Get("booted")
	tried, _ := block.Get("tried")
	r.tried = strings.Fields(tried)
	return r
}

func (m *machine) clearNote() {
	m.t.Helper()
	data, err := grubenv.Block{}.Encode()
	if err != nil {
		m.t.Fatal(err)
	}
	f, err := os.OpenFile(m.path("disk2"), os.O_WRONLY, 0)
	if err != nil {
		m.t.Fatal(err)
	}
	_, err = f.WriteAt(append(data, bytes.Repeat([]byte("#"), noteSize-len(data))...), m.note)
	if err != nil {
		m.t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		m.t.Fatal(err)
	}
}

// booted reads slot and kind from the kernel's command line.
func (r result) booted() device.Boot {
	var b device.Boot
	for _, field := range strings.Fields(r.cmdline) {
		if v, ok := strings.CutPrefix(field, "osctl.slot="); ok {
			b.Slot = device.Slot(v)
		}
		if v, ok := strings.CutPrefix(field, "osctl.boot="); ok {
			b.Kind = v
		}
	}
	return b
}
