package etc

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

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
	// ReportPath is where Preinit leaves its Report, in memory: it tells of this boot.
	ReportPath = "/run/osctl/preinit.json"
	// InitPath is the program that Handover becomes.
	InitPath = "/sbin/init"
)

// Report is what Preinit found and did.
type Report struct {
	// Slot is the slot that runs, empty if unknown.
	Slot device.Slot `json:"slot"`
	// Boot is why GRUB chose it: committed, trial, fallback or unsaved.
	Boot string `json:"boot"`
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

// Preinit prepares the machine for systemd. It never fails: a step that does not
// succeed is a Problem of the report, and the machine comes up with what is there,
// at worst with the image's own read-only /etc. The report is also written to
// ReportPath. The caller prints the problems and calls Handover.
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
	s.report.Problems = []Problem{}
	s.mountKernel()
	booted, err := device.BootedFrom(s.path("/proc/cmdline"))
	s.try("finding the booted slot", err)
	s.report.Slot, s.report.Boot = booted.Slot, booted.Kind

	s.mountPartition("boot", ESPDir, unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC|unix.MS_NOATIME,
		fileSystem{"vfat", "umask=0077"})
	// Containers live here, so neither nosuid nor nodev nor noexec.
	data := s.mountPartition("data", DataDir, unix.MS_NOATIME, fileSystem{"ext4", ""}, fileSystem{"btrfs", ""})
	if data && booted.Slot != "" {
		s.try("mounting the overlay on /etc", s.mountOverlay(booted.Slot))
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

// fileSystem is a type to try and its mount options.
type fileSystem struct{ name, options string }

// mountPartition mounts a partition of the disk that the root file system is on,
// as the first of the types that fits.
func (s *starter) mountPartition(label, target string, flags uintptr, types ...fileSystem) bool {
	step := "mounting " + target
	dev, err := s.find(label)
	if err != nil {
		return s.try(step, err)
	}
	var failed error
	for _, t := range types {
		err := s.mount(dev, s.path(target), t.name, flags, t.options)
		if err == nil {
			return true
		}
		failed = errors.Join(failed, fmt.Errorf("%s as %s: %w", dev, t.name, err))
	}
	return s.try(step, failed)
}

// mountOverlay mounts the slot's upper directory over /etc, and makes it first if
// this is the slot's first start. The features that tie an upper directory to the
// identity of the files below it are off: an upgrade changes those.
func (s *starter) mountOverlay(slot device.Slot) error {
	return s.mountUpper(s.path("/etc"), filepath.Join(s.path(UppersDir), string(slot)))
}

// mountUpper mounts the overlay over the lower directory itself.
func (s *starter) mountUpper(lower, dir string) error {
	upper, work := filepath.Join(dir, "upper"), filepath.Join(dir, "work")
	for _, d := range []struct {
		path string
		mode os.FileMode
	}{{dir, 0o700}, {upper, 0o755}, {work, 0o700}} {
		if err := makeDir(d.path, d.mode); err != nil {
			return err
		}
	}
	options := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s,index=off,metacopy=off,redirect_dir=off,xino=off", lower, upper, work)
	return s.mount("overlay", lower, "overlay", unix.MS_NOATIME, options)
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
