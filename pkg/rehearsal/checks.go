package rehearsal

import (
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// unitsCheck is the one check that is judged line by line.
const unitsCheck = "units"

// goneWords are in what is said of a unit that is enabled and does not exist.
const goneWords = "is enabled, and there is no such unit"

// check is something that a system is asked. prepare looks into it, which is mounted
// on root, and returns the commands to run, the lines that it can say itself, and why
// there is nothing to ask.
type check struct {
	name    string
	prepare func(root tree) (commands []command, lines []string, skipped string)
	// reads are the beginnings of paths below /etc that the answer depends on.
	reads []string
}

// command is a program of the system with its arguments.
type command struct {
	argv []string
	// stdout says that what it prints there counts as well.
	stdout bool
}

// checks are all of them, the cheapest first.
func checks() []check {
	list := []check{
		{"sshd", checkSSH, []string{"ssh/", "crypto-policies/"}},
		{"nft", checkFirewall, []string{"nftables"}},
	}
	for _, name := range []string{"osctl", "containerd", "runc"} {
		list = append(list, check{"program " + name, func(root tree) ([]command, []string, string) { return checkProgram(root, name) }, []string{"ld.so"}})
	}
	return append(list,
		check{"containerd configuration", checkContainerd, []string{"containerd/"}},
		check{unitsCheck, checkUnits, []string{"systemd/"}},
	)
}

func checkNames() []string {
	var names []string
	for _, c := range checks() {
		names = append(names, c.name)
	}
	return names
}

// configuration is what a check reads of /etc.
func configuration(name string) []string {
	for _, c := range checks() {
		if c.name == name {
			return c.reads
		}
	}
	return nil
}

// tree is a system, seen from outside of it.
type tree string

// stat follows links as the system itself would.
func (t tree) stat(path string) (st unix.Stat_t, err error) {
	fd, err := t.openat(path, unix.O_PATH)
	if err != nil {
		return st, err
	}
	defer unix.Close(fd) //nolint:errcheck // nothing was written
	return st, unix.Fstat(fd, &st)
}

func (t tree) openat(path string, flags uint64) (int, error) {
	root, err := unix.Open(string(t), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &fs.PathError{Op: "open", Path: string(t), Err: err}
	}
	defer unix.Close(root) //nolint:errcheck // nothing was written
	fd, err := unix.Openat2(root, strings.TrimLeft(path, "/"), &unix.OpenHow{Flags: flags | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT})
	if err != nil {
		return -1, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return fd, nil
}

func (t tree) exists(path string) bool {
	_, err := t.stat(path)
	return err == nil
}

// list returns the names in a directory, none if there is no such directory.
func (t tree) list(dir string) []string {
	fd, err := t.openat(dir, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil
	}
	f := os.NewFile(uintptr(fd), dir)
	defer f.Close()
	names, _ := f.Readdirnames(-1) //nolint:errcheck // a directory that cannot be read has nothing to say
	slices.Sort(names)
	return names
}

// find returns where a program is, or "".
func (t tree) find(name string) string {
	for _, dir := range []string{"/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"} {
		path := filepath.Join(dir, name)
		if st, err := t.stat(path); err == nil && st.Mode&unix.S_IFMT == unix.S_IFREG && st.Mode&0o111 != 0 {
			return path
		}
	}
	return ""
}

func lacks(name string) string { return "the image has no " + name }

// checkSSH asks sshd whether it would start. It refuses to answer without the directory
// that systemd makes for it.
func checkSSH(root tree) ([]command, []string, string) {
	sshd := root.find("sshd")
	switch {
	case sshd == "":
		return nil, nil, lacks("sshd")
	case !root.exists("/etc/ssh/sshd_config"):
		return nil, nil, "there is no /etc/ssh/sshd_config"
	case !slices.ContainsFunc(root.list("/etc/ssh"), func(name string) bool {
		return strings.HasPrefix(name, "ssh_host_") && strings.HasSuffix(name, "_key")
	}):
		return nil, nil, "this machine has no host key in /etc/ssh, without which sshd checks nothing"
	}
	if err := os.Mkdir(filepath.Join(string(root), "run/sshd"), 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, nil, err.Error()
	}
	return []command{{argv: []string{sshd, "-t"}}}, nil, ""
}

func checkFirewall(root tree) ([]command, []string, string) {
	const file = "/etc/nftables.conf"
	nft := root.find("nft")
	switch {
	case nft == "":
		return nil, nil, lacks("nft")
	case !root.exists(file):
		return nil, nil, "there is no " + file
	}
	return []command{{argv: []string{nft, "-c", "-f", file}}}, nil, ""
}

// checkProgram asks the dynamic loader for all that a program needs, and the program
// for its version.
func checkProgram(root tree, name string) ([]command, []string, string) {
	path := root.find(name)
	if path == "" {
		return nil, nil, lacks(name)
	}
	var commands []command
	if loader := root.loader(path); loader != "" {
		if !root.exists(loader) {
			return []command{{argv: []string{path, "--version"}}}, []string{fmt.Sprintf("%s needs the loader %s, which is not there", path, loader)}, ""
		}
		commands = append(commands, command{[]string{loader, "--list", path}, true})
	}
	return append(commands, command{argv: []string{path, "--version"}}), nil, ""
}

// loader is what the kernel starts for a program that is linked dynamically: the
// segment PT_INTERP of elf(5).
func (t tree) loader(path string) string {
	fd, err := t.openat(path, unix.O_RDONLY)
	if err != nil {
		return ""
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	program, err := elf.NewFile(f)
	if err != nil {
		return ""
	}
	for _, p := range program.Progs {
		if p.Type == elf.PT_INTERP && p.Filesz < 4096 {
			name := make([]byte, p.Filesz)
			if _, err := p.ReadAt(name, 0); err == nil {
				return strings.TrimRight(string(name), "\x00")
			}
		}
	}
	return ""
}

// checkContainerd has the configuration parsed, with all that it imports.
func checkContainerd(root tree) ([]command, []string, string) {
	const file = "/etc/containerd/config.toml"
	containerd := root.find("containerd")
	switch {
	case containerd == "":
		return nil, nil, lacks("containerd")
	case !root.exists(file):
		return nil, nil, "there is no " + file
	}
	return []command{{argv: []string{containerd, "--config", file, "config", "dump"}}}, nil, ""
}

// unitDirs are where systemd looks for units, the first one first (systemd.unit(5)).
func unitDirs() []string {
	return []string{"/etc/systemd/system", "/usr/local/lib/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"}
}

// checkUnits has systemd read all units that another one wants or requires by a link,
// which is how units are enabled, with everything that these need in turn.
func checkUnits(root tree) ([]command, []string, string) {
	analyze := root.find("systemd-analyze")
	if analyze == "" {
		return nil, nil, lacks("systemd-analyze")
	}
	var lines, paths []string
	for _, dir := range unitDirs() {
		for _, group := range root.list(dir) {
			if !strings.HasSuffix(group, ".wants") && !strings.HasSuffix(group, ".requires") {
				continue
			}
			for _, unit := range root.list(filepath.Join(dir, group)) {
				path, masked := root.unit(unit)
				switch {
				case masked, slices.Contains(paths, path):
				case path != "":
					paths = append(paths, path)
				case dir == unitDirs()[0]: // the image's own leftovers are not this machine's choice
					lines = append(lines, fmt.Sprintf("%s: %s %s", filepath.Join(dir, group, unit), unit, goneWords))
				}
			}
		}
	}
	if len(paths) == 0 && len(lines) == 0 {
		return nil, nil, "no unit is enabled"
	}
	if len(paths) == 0 {
		return nil, lines, ""
	}
	// systemd-analyze also searches the directories of its arguments, in their order.
	slices.SortFunc(paths, func(a, b string) int { return unitRank(a) - unitRank(b) })
	return []command{{argv: append([]string{analyze, "verify", "--man=no"}, paths...)}}, lines, ""
}

func unitRank(path string) int { return slices.Index(unitDirs(), filepath.Dir(path)) }

// unit returns the file of a unit, or of the template that it is an instance of.
func (t tree) unit(name string) (path string, masked bool) {
	candidates := []string{name}
	if stem, rest, ok := strings.Cut(name, "@"); ok {
		candidates = append(candidates, stem+"@"+filepath.Ext(rest))
	}
	for _, candidate := range candidates {
		for _, dir := range unitDirs() {
			path := filepath.Join(dir, candidate)
			if st, err := t.stat(path); err == nil {
				return path, st.Mode&unix.S_IFMT != unix.S_IFREG || st.Size == 0
			}
		}
	}
	return "", false
}
