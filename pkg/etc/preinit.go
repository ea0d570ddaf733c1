package etc

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kapernikov/osctl/pkg/atomicfile"
	"github.com/kapernikov/osctl/pkg/device"
	"github.com/kapernikov/osctl/pkg/disk"
)

// The places of a machine. They are part of the image's contract: the mount
// points exist in it, as it is mounted read-only.
const (
	// DataDir is where the partition "data" is mounted.
	DataDir = "/data"
	// ESPDir is where the partition "boot" is mounted, readable by root only.
	ESPDir = "/efi"
	// UppersDir holds one directory a slot.
	UppersDir = DataDir + "/etc"
	// StateDir is where Preinit looks for the order of a factory reset.
	StateDir = DataDir + "/osctl"
	// ReportPath is where Preinit leaves its Report, in memory: it tells of this boot.
	ReportPath = "/run/osctl/preinit.json"
	// MemoryDir holds an upper directory that lasts until the next boot.
	MemoryDir = "/run/osctl/etc"
	// InitPath is the program that Handover becomes.
	InitPath = "/sbin/init"
)

// Source says where the changes of the running /etc are.
type Source string

// The sources.
const (
	// FromSlot: in the upper directory of the booted slot, as on a good start.
	FromSlot Source = "slot"
	// FromMemory: in memory, and lost at the next boot.
	FromMemory Source = "memory"
	// FromImage: nowhere; /etc is the image's own and read-only.
	FromImage Source = "image"
)

// Access is what a partition permits.
type Access string

// The kinds of access.
const (
	Missing  Access = "missing" // not mounted
	ReadOnly Access = "read-only"
	Writable Access = "writable"
)

// PristineBoot is the osctl.boot= of a boot that is to leave the slot's own /etc
// alone, because the slot did not come up with it.
const PristineBoot = "pristine"

// Report is what Preinit found and did.
type Report struct {
	// Slot is the slot that runs, empty if unknown.
	Slot device.Slot `json:"slot"`
	// Boot is why GRUB chose it (docs/boot-states.md).
	Boot string `json:"boot"`
	// Etc says where changes of /etc are.
	Etc Source `json:"etc"`
	// Data is how the data partition is mounted.
	Data Access `json:"data"`
	// Done are the orders that were carried out, for people.
	Done []string `json:"done"`
	// Problems are the steps that did not succeed, in order; none on a good start.
	Problems []Problem `json:"problems"`
}

// Problem is one step that did not succeed.
type Problem struct {
	// Step is what was attempted, for example "mounting /data".
	Step string `json:"step"`
	// Error is the message.
	Error string `json:"error"`
}

// ReadReport reads the report of this boot, usually from ReportPath. It fails
// with fs.ErrNotExist where the machine was not started through Preinit.
func ReadReport(path string) (Report, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return Report{}, fmt.Errorf("reading the report of preinit: %w", err)
	}
	var r Report
	if err := json.Unmarshal(data, &r); err != nil {
		return Report{}, fmt.Errorf("reading the report of preinit: %s: %w", path, err)
	}
	return r, nil
}

// Preinit prepares the machine for systemd, and carries out the resets that were
// ordered before. It never fails: a step that does not succeed is a Problem of the
// report, and the machine comes up with what is there, at worst with the image's
// own read-only /etc. The report is also written to ReportPath. The caller prints
// the problems and calls Handover.
func Preinit() Report {
	s := starter{root: "/", mount: unix.Mount, find: disk.FindPartition}
	return s.run()
}

// Handover turns this process into systemd, with the arguments and the
// environment that the kernel gave. It returns only with an error; the caller
// then exits, the kernel panics, and panic= on the command line restarts the
// machine, so that a trial loses a try.
func Handover(args, env []string) error {
	argv := append([]string{InitPath}, args...)
	return fmt.Errorf("starting %s: %w", InitPath, unix.Exec(InitPath, argv, env))
}

// starter is the machine that Preinit works on; a test has its own.
type starter struct {
	root   string
	mount  func(source, target, fstype string, flags uintptr, data string) error
	find   func(label string) (string, error)
	report Report
}

func (s *starter) path(name string) string { return filepath.Join(s.root, name) }

// try notes the error of a step and says whether there was none.
func (s *starter) try(step string, err error) bool {
	if err != nil {
		s.report.Problems = append(s.report.Problems, Problem{step, err.Error()})
	}
	return err == nil
}

func (s *starter) run() Report {
	s.report.Problems, s.report.Done, s.report.Etc = []Problem{}, []string{}, FromImage
	s.mountKernel()
	booted, err := device.BootedFrom(s.path("/proc/cmdline"))
	s.try("finding the booted slot", err)
	s.report.Slot, s.report.Boot = booted.Slot, booted.Kind

	const noPrograms = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC | unix.MS_NOATIME
	s.mountPartition("boot", ESPDir, fileSystem{"vfat", noPrograms, "umask=0077"})
	// Containers live here, so neither nosuid nor nodev nor noexec. Read-only is
	// better than nothing; a journal that cannot be replayed stays unread.
	const readOnly = unix.MS_NOATIME | unix.MS_RDONLY
	data := s.mountPartition("data", DataDir, fileSystem{"ext4", unix.MS_NOATIME, ""}, fileSystem{"btrfs", unix.MS_NOATIME, ""},
		fileSystem{"ext4", readOnly, ""}, fileSystem{"ext4", readOnly, "noload"}, fileSystem{"btrfs", readOnly, ""})
	s.report.Data = data
	if data == Writable {
		s.carryOut()
	}
	if booted.Slot != "" {
		s.mountEtc(booted, data)
	}
	s.try("writing "+ReportPath, s.writeReport())
	return s.report
}

// mountKernel mounts what the initrd usually has mounted already.
func (s *starter) mountKernel() {
	for _, m := range []struct {
		target, fstype string
		magic          int64
		flags          uintptr
		data           string
	}{
		{"/proc", "proc", unix.PROC_SUPER_MAGIC, unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
		{"/sys", "sysfs", unix.SYSFS_MAGIC, unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
		{"/dev", "devtmpfs", unix.TMPFS_MAGIC, unix.MS_NOSUID, "mode=0755"},
		{"/run", "tmpfs", unix.TMPFS_MAGIC, unix.MS_NOSUID | unix.MS_NODEV, "mode=0755"},
	} {
		var now unix.Statfs_t
		if err := unix.Statfs(s.path(m.target), &now); err == nil && int64(now.Type) == m.magic {
			continue
		}
		s.try("mounting "+m.target, s.mount(m.fstype, s.path(m.target), m.fstype, m.flags, m.data))
	}
}

// fileSystem is a way to try of mounting a partition.
type fileSystem struct {
	name    string
	flags   uintptr
	options string
}

// mountPartition mounts a partition of the disk that the root file system is on,
// in the first of the ways that works.
func (s *starter) mountPartition(label, target string, ways ...fileSystem) Access {
	step := "mounting " + target
	dev, err := s.find(label)
	if err != nil {
		s.try(step, err)
		return Missing
	}
	var failed error
	for _, way := range ways {
		err := s.mount(dev, s.path(target), way.name, way.flags, way.options)
		switch {
		case err == nil && way.flags&unix.MS_RDONLY == 0:
			return Writable
		case err == nil:
			s.try(step, fmt.Errorf("it is mounted read-only: %w", failed))
			return ReadOnly
		case way.flags&unix.MS_RDONLY == 0:
			failed = errors.Join(failed, fmt.Errorf("%s as %s: %w", dev, way.name, err))
		}
	}
	s.try(step, failed)
	return Missing
}

// carryOut does what was ordered for this start. An order that failed is dropped
// as well: done again much later, it would take away what was made since.
func (s *starter) carryOut() {
	f := factory{data: s.path(DataDir), lower: s.path("/etc")}
	order, err := PendingFactory(s.path(StateDir))
	if s.try("reading the order for a factory reset", err) && order != nil {
		if s.try("resetting the machine", f.carryOut(*order)) {
			s.report.Done = append(s.report.Done, "factory reset, applications: "+string(order.Apps))
		}
		s.try("ending the factory reset", CancelFactory(s.path(StateDir)))
	}
	s.try("removing what was reset", f.emptyTrash())
	for _, slot := range []device.Slot{device.SlotA, device.SlotB} {
		dir := filepath.Join(s.path(UppersDir), string(slot))
		order, err := readReset(dir)
		if !s.try("reading the order to reset /etc", err) || order == nil {
			continue
		}
		err = order.carryOut(filepath.Join(dir, "upper"), s.path("/etc"))
		if s.try("resetting /etc of slot "+string(slot), errors.Join(err, syncFileSystem(dir))) {
			s.report.Done = append(s.report.Done, "reset of /etc in slot "+string(slot))
		}
		s.try("ending the reset of /etc", dropOrder(filepath.Join(dir, resetFile)))
	}
}

// mountEtc mounts the overlay over /etc: on the upper directory of the slot; where
// that cannot be written, in memory above it; and where it cannot be used, or the
// slot did not come up with it, in memory with what identifies the machine.
func (s *starter) mountEtc(booted device.Boot, data Access) {
	lower, memory := s.path("/etc"), s.path(MemoryDir)
	slotDir := filepath.Join(s.path(UppersDir), string(booted.Slot))
	own := booted.Kind != PristineBoot
	if own && data == Writable {
		err := s.mountUpper(lower, slotDir, nil)
		if err == nil {
			err = wantWritable(lower)
		}
		if s.try("mounting the overlay on /etc", err) {
			s.report.Etc = FromSlot
			return
		}
	}
	s.report.Etc = FromMemory
	upper := filepath.Join(slotDir, "upper")
	info, err := os.Stat(upper)
	if data != Missing && err == nil && info.IsDir() {
		if own && s.try("mounting /etc in memory above that of the slot", s.mountUpper(lower, memory, []string{upper})) {
			return
		}
		s.try("taking over what identifies the machine", s.identify(upper, memory))
	}
	if !s.try("mounting /etc in memory", s.mountUpper(lower, memory, nil)) {
		s.report.Etc = FromImage
	}
}

// identify fills the upper directory in memory with what the machine keeps.
func (s *starter) identify(upper, memory string) error {
	target := filepath.Join(memory, "upper")
	if err := errors.Join(makeDir(memory, 0o700), makeDir(target, 0o755)); err != nil {
		return err
	}
	return takeOver(upper, s.path("/etc"), target, func(string) bool { return true })
}

// mountUpper mounts an overlay over the lower directory itself, with layers, the
// highest first, in between. It makes the upper directory if this is its first
// use. The features that tie an upper directory to the identity of the files below
// it are off: an upgrade changes those.
func (s *starter) mountUpper(lower, dir string, layers []string) error {
	upper, work := filepath.Join(dir, "upper"), filepath.Join(dir, "work")
	for _, d := range []struct {
		path string
		mode os.FileMode
	}{{dir, 0o700}, {upper, 0o755}, {work, 0o700}} {
		if err := makeDir(d.path, d.mode); err != nil {
			return err
		}
	}
	options := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s,index=off,metacopy=off,redirect_dir=off,xino=off",
		strings.Join(append(slices.Clone(layers), lower), ":"), upper, work)
	return s.mount("overlay", lower, "overlay", unix.MS_NOATIME, options)
}

// wantWritable takes an overlay away that the kernel has mounted read-only, as it
// does when the partition of the upper directory has no room.
func wantWritable(target string) error {
	var st unix.Statfs_t
	if err := unix.Statfs(target, &st); err != nil || st.Flags&unix.ST_RDONLY == 0 {
		return err
	}
	return errors.Join(fmt.Errorf("%s came up read-only; is the data partition full?", target), unix.Unmount(target, 0))
}

// makeDir makes a directory with exactly this mode, whatever the umask of process
// 1. One that exists stays as it is: the mode of an upper directory is that of /etc.
func makeDir(path string, mode os.FileMode) error {
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		return nil
	}
	if err := os.MkdirAll(path, mode); err != nil {
		return err
	}
	return os.Chmod(path, mode)
}

func (s *starter) writeReport() error {
	data, err := json.MarshalIndent(s.report, "", "  ")
	if err != nil {
		return err
	}
	path := s.path(ReportPath)
	if err := makeDir(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return atomicfile.Write(path, append(data, '\n'), 0o644)
}
