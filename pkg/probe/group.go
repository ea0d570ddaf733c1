package probe

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
	"time"

	"golang.org/x/sys/unix"
)

// groupPrefix begins the names of the control groups of commands.
const groupPrefix = "osctl-probe-"

// mostNames is how many processes are named.
const mostNames = 5

// ownGroup is the folder of this process's control group in the hierarchy of cgroup
// v2 (cgroups(7)).
func ownGroup() (string, error) {
	groups, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return "", err
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	return groupFolder(string(groups), string(mounts))
}

// groupFolder finds the group by what the kernel says of a process and of the mounts
// (proc_pid_mountinfo(5)).
func groupFolder(groups, mounts string) (string, error) {
	own := ""
	for line := range strings.Lines(groups) {
		if path, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "0::"); ok {
			own = path
		}
	}
	if !strings.HasPrefix(own, "/") {
		return "", errors.New("this process has no group of cgroup v2")
	}
	for line := range strings.Lines(mounts) {
		before, after, ok := strings.Cut(line, " - ")
		fields := strings.Fields(before)
		if !ok || len(fields) < 5 || !strings.HasPrefix(after, "cgroup2 ") {
			continue
		}
		root, at := unescape.Replace(fields[3]), unescape.Replace(fields[4])
		// Of a group beside or above the mount's root, the kernel says /../.
		rest, ok := strings.CutPrefix(own, strings.TrimSuffix(root, "/"))
		if ok && (rest == "" || rest[0] == '/') && !slices.Contains(strings.Split(rest, "/"), "..") {
			return filepath.Join(at, rest), nil
		}
	}
	return "", errors.New("the group of this process is not to be seen in any mount of cgroup v2")
}

// unescape undoes what mountinfo does to the characters that separate its fields.
var unescape = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)

// canGroup tries whether groups that can be killed at once (Linux 5.14) may be made in
// a folder.
func canGroup(dir string) bool {
	g, err := newGroup(dir, fmt.Sprintf("%stry.%d", groupPrefix, os.Getpid()))
	if err != nil {
		return false
	}
	g.close()
	return true
}

// group is a control group with the processes of one command.
type group struct {
	dir  string
	open *os.File
}

func newGroup(parent, name string) (*group, error) {
	g := &group{dir: filepath.Join(parent, name)}
	if err := os.Mkdir(g.dir, 0o755); err != nil {
		return nil, err
	}
	// One that cannot be killed or waited for is of no use.
	_, err := os.Stat(g.file("cgroup.kill"))
	if err == nil {
		_, err = g.populated()
	}
	if err == nil {
		g.open, err = os.OpenFile(g.dir, unix.O_DIRECTORY|os.O_RDONLY, 0)
	}
	if err != nil {
		g.close()
		return nil, err
	}
	return g, nil
}

func (g *group) file(name string) string { return filepath.Join(g.dir, name) }

func (g *group) byGroup() bool { return true }

func (g *group) prepare(attr *syscall.SysProcAttr) {
	attr.UseCgroupFD, attr.CgroupFD = true, int(g.open.Fd())
}

// refused reports whether the kernel may have refused to start a process in a group, as
// clone(2) says, and not the program.
func refused(err error) bool {
	return slices.ContainsFunc([]error{unix.EBUSY, unix.EOPNOTSUPP, unix.ENOSYS, unix.EINVAL, unix.ENODEV, unix.EPERM}, func(e error) bool {
		return errors.Is(err, e)
	})
}

// end kills the group, and the groups that were made within it, in one step: nothing
// can be forked in between.
func (g *group) end(int) (killed int, names []string, remain int) {
	pids := g.processes()
	for _, pid := range pids[:min(len(pids), mostNames)] {
		if name := nameOf(pid); name != "" {
			names = append(names, name)
		}
	}
	if there, err := g.populated(); err == nil && !there {
		return 0, nil, 0
	}
	if err := os.WriteFile(g.file("cgroup.kill"), []byte("1"), 0); err != nil || !g.empty(endLimit) {
		return len(pids), names, max(len(g.processes()), 1)
	}
	return len(pids), names, 0
}

// processes are those in the group and in the groups within.
func (g *group) processes() []int {
	var pids []int
	//nolint:errcheck // a group within that goes away meanwhile has no processes
	_ = filepath.WalkDir(g.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.Name() != "cgroup.procs" {
			return nil //nolint:nilerr // likewise
		}
		list, err := os.ReadFile(path)
		if err != nil {
			return nil //nolint:nilerr // likewise
		}
		for _, word := range strings.Fields(string(list)) {
			if pid, err := strconv.Atoi(word); err == nil {
				pids = append(pids, pid)
			}
		}
		return nil
	})
	return pids
}

// populated reports whether a process is in the group or within.
func (g *group) populated() (bool, error) {
	text, err := os.ReadFile(g.file("cgroup.events"))
	if err != nil {
		return false, err
	}
	return isPopulated(string(text))
}

func isPopulated(events string) (bool, error) {
	for line := range strings.Lines(events) {
		if value, ok := strings.CutPrefix(strings.TrimSpace(line), "populated "); ok {
			return value != "0", nil
		}
	}
	return false, errors.New("cgroup.events does not say whether the group is populated")
}

// empty waits until no process is left. The kernel tells of changes of the file by
// POLLPRI, and only from what was read last on.
func (g *group) empty(limit time.Duration) bool {
	f, err := os.Open(g.file("cgroup.events"))
	if err != nil {
		return false
	}
	defer f.Close() //nolint:errcheck // read only
	end := time.Now().Add(limit)
	buf := make([]byte, 256)
	for {
		n, err := f.ReadAt(buf, 0)
		if n == 0 && err != nil {
			return false
		}
		if there, err := isPopulated(string(buf[:n])); err != nil || !there {
			return err == nil
		}
		left := time.Until(end)
		if left <= 0 {
			return false
		}
		fds := []unix.PollFd{{Fd: int32(f.Fd()), Events: unix.POLLPRI}} //nolint:gosec // descriptors are small
		if _, err := unix.Poll(fds, int(left.Milliseconds())+1); err != nil && !errors.Is(err, unix.EINTR) {
			return false
		}
	}
}

// close removes the group, and those that were made within it, from the leaves up. One
// that is not empty stays.
func (g *group) close() {
	if g.open != nil {
		g.open.Close() //nolint:errcheck // read only
	}
	var dirs []string
	_ = filepath.WalkDir(g.dir, func(path string, d fs.DirEntry, err error) error { //nolint:errcheck // see processes
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		return nil
	})
	for _, dir := range slices.Backward(dirs) {
		_ = unix.Rmdir(dir) //nolint:errcheck // what stays is empty of meaning
	}
}

// nameOf is the name of a process, "" if it has gone.
func nameOf(pid int) string {
	name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil {
		return ""
	}
	return strings.ToValidUTF8(strings.TrimSpace(string(name)), "?")
}
