// Package grub boots a disk with the real grub.cfg in grub-emu, in a tenth of a
// second. The disk has the partitions of a machine: an ESP with the script and two
// copies of the boot state, two slots, an empty rescue partition.
//
// The emulator has no Linux loader, so the commands linux and initrd are functions
// that look for the files and note the kernel's command line. What such a boot does
// not prove is that the kernel runs.
package grub

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/kapernikov/osctl/pkg/disk"
	"github.com/kapernikov/osctl/pkg/grubenv"
	"github.com/kapernikov/osctl/test/crash/model"
)

// Config is the script that a machine runs, below the top of the repository.
const Config = "images/rootfs/usr/lib/osctl/boot/grub.cfg"

// The partitions, in bytes.
const (
	espStart = disk.MiB
	espSize  = 64 * disk.MiB
	rescue   = disk.MiB
)

// Machine is a disk in a folder of its own. It is not safe for concurrent use.
type Machine struct {
	dir      string
	given    string // the path of the disk, if Attach was told one
	disk     *os.File
	slotSize int64
	data     [2]int64  // where the content of each copy lies
	entry    [2]int64  // where its directory entry lies
	whole    [2][]byte // the entry of a copy of 1024 bytes
	slots    [2]model.Volume
	note     int64
}

// Boot is what GRUB did.
type Boot struct {
	// Slot and Kind are what the kernel was told, empty when none was started.
	Slot, Kind string
	Output     string
}

// New makes the disk in dir, with slots of the given size. script is the content of
// grub.cfg.
func New(dir string, script []byte, slotSize int64, zeros model.Volume) (*Machine, error) {
	m := &Machine{dir: dir, slotSize: slotSize, slots: [2]model.Volume{zeros, zeros}}
	if err := m.makeDisk(script); err != nil {
		return nil, fmt.Errorf("making a disk for GRUB: %w", err)
	}
	if err := m.makeNote(); err != nil {
		return nil, errors.Join(err, m.Close())
	}
	return m, nil
}

// Attach makes a machine of a disk that exists, for Boot and Finds. What is to be on
// the disk the caller writes there.
func Attach(dir, path string) (*Machine, error) {
	m := &Machine{dir: dir, given: path}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	var err error
	if m.disk, err = os.OpenFile(path, os.O_RDWR, 0); err != nil {
		return nil, err
	}
	if err := m.makeNote(); err != nil {
		return nil, errors.Join(err, m.Close())
	}
	return m, nil
}

// Close closes the disk.
func (m *Machine) Close() error { return m.disk.Close() }

func (m *Machine) path(name string) string { return filepath.Join(m.dir, name) }

// Disk is the path of the disk.
func (m *Machine) Disk() string {
	if m.given != "" {
		return m.given
	}
	return m.path("disk")
}

func (m *Machine) slotStart(i int) int64 { return espStart + espSize + int64(i)*m.slotSize }

func marker(i int) []byte {
	return bytes.Repeat([]byte("copy-"+string(rune('a'+i))+"--"), grubenv.Size/8)
}

func (m *Machine) makeDisk(script []byte) error {
	rescueStart := m.slotStart(2)
	d, err := disk.CreateFile(m.Disk(), rescueStart+rescue+disk.MiB)
	if err != nil {
		return err
	}
	partitions := []disk.Partition{
		{Label: disk.LabelBoot, Offset: espStart, Size: espSize},
		{Label: disk.LabelSlotA, Offset: m.slotStart(0), Size: m.slotSize},
		{Label: disk.LabelSlotB, Offset: m.slotStart(1), Size: m.slotSize},
		{Label: disk.LabelRescue, Offset: rescueStart, Size: rescue},
	}
	esp, err := d.Section(espStart, espSize)
	if err == nil {
		err = disk.WriteESP(esp, []disk.File{
			{Path: "EFI/BOOT/grub.cfg", Content: pause.ReplaceAll(script, []byte("sleep 0"))},
			{Path: "osctl/a/grubenv", Content: marker(0)}, {Path: "osctl/b/grubenv", Content: marker(1)},
		})
	}
	if err == nil {
		err = disk.WriteTable(d, partitions)
	}
	if err := errors.Join(err, d.Close()); err != nil {
		return err
	}
	if m.disk, err = os.OpenFile(m.Disk(), os.O_RDWR, 0); err != nil {
		return err
	}
	return m.findCopies()
}

// findCopies finds the copies and their directory entries on the disk, so that a
// copy is given any content by writing bytes.
func (m *Machine) findCopies() error {
	image := make([]byte, espSize)
	if _, err := m.disk.ReadAt(image, espStart); err != nil {
		return err
	}
	// The first cluster of each entry tells which copy it is of: data lies in the
	// order of the clusters.
	var entries [2]int
	at := 0
	for i := range entries {
		n := bytes.Index(image[at:], []byte("GRUBENV    "))
		if n < 0 {
			return errors.New("the directory entries are not found")
		}
		entries[i], at = at+n, at+n+1
	}
	cluster := func(i int) uint16 { return binary.LittleEndian.Uint16(image[entries[i]+26:]) }
	data := [2]int{bytes.Index(image, marker(0)), bytes.Index(image, marker(1))}
	if (cluster(0) < cluster(1)) != (data[0] < data[1]) {
		entries[0], entries[1] = entries[1], entries[0]
	}
	for i := range data {
		if data[i] < 0 {
			return errors.New("a copy is not found")
		}
		m.data[i], m.entry[i] = espStart+int64(data[i]), espStart+int64(entries[i])
		m.whole[i] = bytes.Clone(image[entries[i]:][:32])
	}
	return nil
}

// SetCopy gives a copy its content: nil for no file, at most 4096 bytes.
func (m *Machine) SetCopy(i int, data []byte) error {
	entry := bytes.Clone(m.whole[i])
	switch {
	case data == nil:
		entry[0] = 0xe5 // a deleted entry
	case len(data) == 0:
		clear(entry[20:22]) // no first cluster
		clear(entry[26:28])
	case len(data) > grubenv.Size:
		return fmt.Errorf("a copy of %d bytes: want at most %d", len(data), grubenv.Size)
	}
	binary.LittleEndian.PutUint32(entry[28:], uint32(len(data)))
	content := make([]byte, grubenv.Size)
	copy(content, data)
	_, err := m.disk.WriteAt(entry, m.entry[i])
	_, err2 := m.disk.WriteAt(content, m.data[i])
	return errors.Join(err, err2)
}

// Copy returns the first n bytes of a copy.
func (m *Machine) Copy(i, n int) ([]byte, error) {
	data := make([]byte, n)
	_, err := m.disk.ReadAt(data, m.data[i])
	return data, err
}

// CopyPlaces are the offsets of the copies on the disk, in bytes.
func (m *Machine) CopyPlaces() [2]int64 { return m.data }

// SetSlot gives a slot its content.
func (m *Machine) SetSlot(i int, v model.Volume) error {
	for c := range v.Chunks() {
		if v.SameChunk(m.slots[i], c) {
			continue
		}
		off := int64(c) * model.ChunkSize
		if _, err := m.disk.WriteAt(v.Chunk(c), m.slotStart(i)+off); err != nil {
			return err
		}
	}
	m.slots[i] = v
	return nil
}

// noteSize is the length in bytes of the file that takes what GRUB did.
const noteSize = 4096

func (m *Machine) makeNote() error {
	d, err := disk.CreateFile(m.path("disk2"), 36*disk.MiB)
	if err != nil {
		return err
	}
	err = disk.WriteESP(d, []disk.File{{Path: "note", Content: bytes.Repeat([]byte("note"), noteSize/4)}})
	if err := errors.Join(err, d.Close()); err != nil {
		return err
	}
	data, err := os.ReadFile(m.path("disk2"))
	if err != nil {
		return err
	}
	m.note = int64(bytes.Index(data, bytes.Repeat([]byte("note"), noteSize/4)))
	return nil
}

// pause is how long the script waits before it restarts a machine that has nothing to
// boot. GRUB finds commands before functions, so the wait is taken out of the text.
var pause = regexp.MustCompile(`\bsleep [0-9]+`)

const prologue = `
function serial { return 1; }
function linux {
  set kernel="$*"
  [ -f "$1" ]
}
function initrd {
  if [ ! -f "$1" ]; then return 1; fi
  set booted="$kernel"
  save_env --file (hd9)/note booted
  exit
}
set root=hd0,gpt1
set prefix=(hd0,gpt1)/EFI/BOOT
source (hd0,gpt1)/EFI/BOOT/grub.cfg
`

// Command is the program that boots the disk.
func (m *Machine) Command() (*exec.Cmd, error) {
	return m.command(prologue)
}

func (m *Machine) command(script string) (*exec.Cmd, error) {
	files := map[string]string{
		"grub.cfg": script, "device.map": "(hd0) " + m.Disk() + "\n(hd9) " + m.path("disk2") + "\n",
	}
	for name, content := range files {
		if err := os.WriteFile(m.path(name), []byte(content), 0o600); err != nil {
			return nil, err
		}
	}
	if err := m.clearNote(); err != nil {
		return nil, err
	}
	cmd := exec.Command("grub-emu", "-m", m.path("device.map"), "-r", "host", "-d", m.dir)
	cmd.Env = append(os.Environ(), "TERM=dumb")
	cmd.Dir = "/"
	return cmd, nil
}

// Values reads variables from the first copy, as a script of GRUB's does that uses
// one file without further ado. ok is false if it finds none of them.
func (m *Machine) Values(ctx context.Context, names ...string) (values string, ok bool, err error) {
	script := "load_env --file (hd0,gpt1)/osctl/a/grubenv " + strings.Join(names, " ") +
		"\nset booted=\"" + "$" + strings.Join(names, " $") + "\"\nsave_env --file (hd9)/note booted\nexit\n"
	cmd, err := m.command(script)
	if err != nil {
		return "", false, err
	}
	if out, err := runLimited(ctx, cmd); err != nil {
		return "", false, fmt.Errorf("asking GRUB for variables: %w: %s", err, out)
	}
	values, err = m.noted("booted")
	return values, strings.TrimSpace(values) != "", err
}

// Finds reports whether GRUB finds a kernel and an initrd in a slot, 0 or 1.
func (m *Machine) Finds(ctx context.Context, slot int) (bool, error) {
	script := strings.ReplaceAll(`
if [ -f (hd0,gptN)/boot/vmlinuz -a -f (hd0,gptN)/boot/initrd.img ]; then
  set booted=found
  save_env --file (hd9)/note booted
fi
exit
`, "N", strconv.Itoa(slot+2))
	cmd, err := m.command(script)
	if err != nil {
		return false, err
	}
	out, err := runLimited(ctx, cmd)
	if err != nil {
		return false, fmt.Errorf("asking GRUB for a kernel: %w: %s", err, out)
	}
	value, err := m.noted("booted")
	return value == "found", err
}

// Boot runs grub.cfg until it starts a kernel or restarts.
func (m *Machine) Boot(ctx context.Context) (Boot, error) {
	cmd, err := m.Command()
	if err != nil {
		return Boot{}, err
	}
	out, err := runLimited(ctx, cmd)
	if err != nil {
		return Boot{}, fmt.Errorf("running GRUB: %w: %s", err, out)
	}
	return m.Outcome(string(out))
}

func runLimited(ctx context.Context, cmd *exec.Cmd) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	limited := exec.CommandContext(ctx, cmd.Path, cmd.Args[1:]...)
	limited.Env, limited.Dir = cmd.Env, cmd.Dir
	return limited.CombinedOutput()
}

// Outcome reads what the last run of Command did.
func (m *Machine) Outcome(output string) (Boot, error) {
	b := Boot{Output: output}
	value, err := m.noted("booted")
	for _, field := range strings.Fields(value) {
		if v, ok := strings.CutPrefix(field, "osctl.slot="); ok {
			b.Slot = v
		}
		if v, ok := strings.CutPrefix(field, "osctl.boot="); ok {
			b.Kind = v
		}
	}
	return b, err
}

// noted is a variable that the script saved in the note.
func (m *Machine) noted(name string) (string, error) {
	f, err := os.Open(m.path("disk2"))
	if err != nil {
		return "", err
	}
	defer f.Close()
	block, err := grubenv.Parse(readAll(io.NewSectionReader(f, m.note, noteSize)))
	if err != nil {
		return "", fmt.Errorf("reading what GRUB noted: %w", err)
	}
	value, _ := block.Get(name)
	return value, nil
}

func readAll(r io.Reader) []byte {
	data, err := io.ReadAll(r)
	if err != nil {
		return nil
	}
	return data
}

func (m *Machine) clearNote() error {
	data, err := grubenv.Block{}.Encode()
	if err != nil {
		return err
	}
	f, err := os.OpenFile(m.path("disk2"), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(append(data, bytes.Repeat([]byte("#"), noteSize-len(data))...), m.note)
	return errors.Join(err, f.Close())
}
