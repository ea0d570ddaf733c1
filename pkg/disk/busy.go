package disk

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// ErrBusy is matched by every [*BusyError].
var ErrBusy = errors.New("in use")

// BusyError says that a device or file is in use, and by whom as far as this
// process can see.
type BusyError struct {
	Path string
	By   []string // such as "mounted on /data"; empty if not known
}

func (e *BusyError) Error() string {
	if len(e.By) == 0 {
		return e.Path + " is in use by another process"
	}
	return e.Path + " is in use: " + strings.Join(e.By, ", ")
}

// Unwrap returns [ErrBusy].
func (e *BusyError) Unwrap() error { return ErrBusy }

// lockFile takes both kinds of lock that others look at: flock(2), as
// flock(1) and osctl itself do, and an open file description lock on all
// bytes, which conflicts with the ones that QEMU holds on its disk images.
// Both go away with the descriptor, however the process ends.
func lockFile(file *os.File, path string) error {
	info, err := file.Stat()
	if err != nil {
		return fmt.Errorf("locking %s: %w", path, err)
	}
	facts := hostFacts()
	if loops := facts.loopsOf(path); len(loops) > 0 {
		return &BusyError{Path: path, By: loops}
	}
	err = unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		all := unix.Flock_t{Type: unix.F_WRLCK}
		err = unix.FcntlFlock(file.Fd(), unix.F_OFD_SETLK, &all)
	}
	switch {
	case errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES):
		return &BusyError{Path: path, By: facts.lockers(info)}
	case err != nil:
		return fmt.Errorf("locking %s: %w", path, err)
	}
	return nil
}

// facts reads who uses what from sysfs and procfs below given folders. It
// never fails: it serves messages, and the kernel has already refused.
type facts struct {
	sys  string
	proc string
}

func hostFacts() facts { return facts{sys: "/sys", proc: "/proc"} }

// blockUsers says who holds the block device of info or a partition of it.
func (f facts) blockUsers(info fs.FileInfo) []string {
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return nil
	}
	return f.usersOfNumber(stat.Rdev)
}

func (f facts) usersOfNumber(device uint64) []string {
	node := filepath.Join(f.sys, "dev/block", deviceNumber(device).String())
	var users []string
	for _, dir := range append([]string{node}, partitionDirs(node)...) {
		users = append(users, f.usersOf(dir)...)
	}
	return users
}

// partitionDirs returns the sysfs folders of the partitions of a disk.
func partitionDirs(disk string) []string {
	entries, _ := filepath.Glob(filepath.Join(disk, "*", "partition"))
	for i, entry := range entries {
		entries[i] = filepath.Dir(entry)
	}
	return entries
}

func (f facts) usersOf(sysDir string) []string {
	number := readLine(filepath.Join(sysDir, "dev"))
	device := "/dev/" + ueventValue(sysDir, "DEVNAME")
	var users []string
	for _, point := range f.mountPoints("self", number) {
		users = append(users, fmt.Sprintf("%s is mounted on %s", device, point))
	}
	if len(users) == 0 {
		users = f.mountedElsewhere(device, number)
	}
	if slices.Contains(f.swaps(), device) {
		users = append(users, device+" is swap")
	}
	holders, _ := os.ReadDir(filepath.Join(sysDir, "holders"))
	for _, holder := range holders {
		users = append(users, fmt.Sprintf("%s belongs to %s", device, holder.Name()))
	}
	return users
}

// mountPoints returns where the device with this major:minor is mounted, in
// the mount namespace of a process. The format is that of proc_pid_mountinfo(5).
func (f facts) mountPoints(process, number string) []string {
	var points []string
	for _, line := range readLines(filepath.Join(f.proc, process, "mountinfo")) {
		fields := strings.Fields(line)
		if len(fields) > 4 && number != "" && fields[2] == number {
			points = append(points, unescapeMount(fields[4]))
		}
	}
	return points
}

// mountedElsewhere names a process for each other mount namespace that has the
// device: a service with namespaces of its own (systemd.exec(5), PrivateMounts)
// keeps what was mounted when it started, also after it was unmounted here.
func (f facts) mountedElsewhere(device, number string) []string {
	own, _ := os.Readlink(filepath.Join(f.proc, "self/ns/mnt"))
	seen := []string{own}
	processes, _ := filepath.Glob(filepath.Join(f.proc, "[0-9]*"))
	var users []string
	for _, process := range processes {
		namespace, err := os.Readlink(filepath.Join(process, "ns/mnt"))
		if err != nil || slices.Contains(seen, namespace) {
			continue
		}
		seen = append(seen, namespace)
		pid := filepath.Base(process)
		for _, point := range f.mountPoints(pid, number) {
			users = append(users, fmt.Sprintf("%s is mounted on %s for process %s (%s) only",
				device, point, pid, readLine(filepath.Join(process, "comm"))))
		}
	}
	return users
}

func (f facts) swaps() []string {
	var devices []string
	for _, line := range readLines(filepath.Join(f.proc, "swaps")) {
		if fields := strings.Fields(line); len(fields) > 0 {
			devices = append(devices, fields[0])
		}
	}
	return devices
}

// loopsOf says which loop devices have the file at path as their backing.
func (f facts) loopsOf(path string) []string {
	absolute, err := filepath.Abs(path)
	if err != nil {
		return nil
	}
	if resolved, err := filepath.EvalSymlinks(absolute); err == nil {
		absolute = resolved
	}
	files, _ := filepath.Glob(filepath.Join(f.sys, "block/loop*/loop/backing_file"))
	var users []string
	for _, file := range files {
		if readLine(file) != absolute {
			continue
		}
		loop := filepath.Base(filepath.Dir(filepath.Dir(file)))
		users = append(users, "it is attached to /dev/"+loop)
	}
	return users
}

// lockers names the processes that hold a lock on the file of info, from
// /proc/locks (proc(5)); pid -1 there is an open file description lock.
func (f facts) lockers(info fs.FileInfo) []string {
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return nil
	}
	inode := fmt.Sprintf("%02x:%02x:%d", unix.Major(stat.Dev), unix.Minor(stat.Dev), stat.Ino)
	var users []string
	for _, line := range readLines(filepath.Join(f.proc, "locks")) {
		fields := strings.Fields(line)
		if len(fields) < 6 || fields[1] == "->" || fields[5] != inode {
			continue
		}
		pid, err := strconv.Atoi(fields[4])
		if err != nil || pid == os.Getpid() {
			continue
		}
		if pid <= 0 {
			users = append(users, "locked, as QEMU does with the disk of a running machine")
			continue
		}
		name := readLine(filepath.Join(f.proc, fields[4], "comm"))
		users = append(users, fmt.Sprintf("locked by process %d (%s)", pid, name))
	}
	return users
}

// openers names the other processes that hold the block device of info open for
// writing. Readers do no harm, and udev is one whenever a device was closed.
func (f facts) openers(info fs.FileInfo) []string {
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return nil
	}
	processes, _ := filepath.Glob(filepath.Join(f.proc, "[0-9]*"))
	var users []string
	for _, process := range processes {
		pid := filepath.Base(process)
		if pid != strconv.Itoa(os.Getpid()) && f.writes(process, stat.Rdev) {
			users = append(users, fmt.Sprintf("held open by process %s (%s)", pid, readLine(filepath.Join(process, "comm"))))
		}
	}
	return users
}

// writes reports whether a process has a block device open for writing. The
// flags are octal, as in proc_pid_fdinfo(5).
func (f facts) writes(process string, device uint64) bool {
	files, _ := filepath.Glob(filepath.Join(process, "fd/*"))
	for _, file := range files {
		var st unix.Stat_t
		if unix.Stat(file, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFBLK || st.Rdev != device {
			continue
		}
		for _, line := range readLines(filepath.Join(process, "fdinfo", filepath.Base(file))) {
			text, ok := strings.CutPrefix(line, "flags:")
			flags, err := strconv.ParseUint(strings.TrimSpace(text), 8, 64)
			if ok && err == nil && flags&unix.O_ACCMODE != unix.O_RDONLY {
				return true
			}
		}
	}
	return false
}

// unescapeMount undoes the octal escapes of mountinfo: \040 is a space.
func unescapeMount(s string) string {
	for _, c := range []byte{' ', '\t', '\n', '\\'} {
		s = strings.ReplaceAll(s, fmt.Sprintf("\\%03o", c), string(c))
	}
	return s
}

func readLine(path string) string {
	lines := readLines(path)
	if len(lines) == 0 {
		return ""
	}
	return lines[0]
}

func readLines(path string) []string {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	return strings.Split(strings.TrimSuffix(string(data), "\n"), "\n")
}

// ueventValue returns a value of the uevent file in a sysfs folder.
func ueventValue(sysDir, key string) string {
	for _, line := range readLines(filepath.Join(sysDir, "uevent")) {
		if value, ok := strings.CutPrefix(line, key+"="); ok {
			return value
		}
	}
	return ""
}
