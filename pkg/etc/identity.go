package etc

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// What a machine keeps of its own when the rest of its /etc gives way: the files
// by which others know it, and the keys of those who may come and repair it.
const (
	machineID      = "machine-id"
	sshDir         = "ssh"
	hostKeyPrefix  = "ssh_host_"
	authorizedKeys = "ssh/authorized_keys"
)

// Limits of what is taken over: it may go into memory.
const (
	maxKept     = 64 << 10 // bytes of one file
	maxKeptKeys = 256      // files
)

// validID is the format of machine-id(5).
var validID = regexp.MustCompile(`^[0-9a-f]{32}\n?$`)

// isKept reports whether a path, relative to /etc, survives a reset that does not
// name it.
func isKept(path string) bool {
	dir, name := filepath.Split(path)
	return path == machineID || isAccess(path) || dir == sshDir+"/" && strings.HasPrefix(name, hostKeyPrefix)
}

// isAccess reports whether a path belongs to the keys of those who may log in.
func isAccess(path string) bool {
	return path == authorizedKeys || strings.HasPrefix(path, authorizedKeys+"/")
}

// leadsToKept reports whether a kept file may lie below a directory.
func leadsToKept(path string) bool {
	return path == "." || path == sshDir || isAccess(path)
}

// keptFiles lists the kept files that an upper directory has, relative to it.
// Only plain files count: a whiteout, a link or a device is no identity.
func keptFiles(upper string) ([]string, error) {
	var found []string
	err := filepath.WalkDir(upper, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		name, err := filepath.Rel(upper, path)
		switch {
		case err != nil:
			return err
		case d.IsDir() && !leadsToKept(name):
			return filepath.SkipDir
		case d.Type().IsRegular() && isKept(name):
			found = append(found, name)
		}
		return nil
	})
	if err == nil && len(found) > maxKeptKeys {
		err = fmt.Errorf("%s has %d keys, at most %d are taken over", upper, len(found), maxKeptKeys)
		found = found[:maxKeptKeys]
	}
	return found, err
}

// takeOver copies those kept files of one upper directory that are wanted into
// another one; lower is the image's /etc, which says what their directories are
// like. A file that
// cannot be copied does not keep the others from it. What exists is replaced.
func takeOver(from, lower, to string, want func(name string) bool) error {
	names, failed := keptFiles(from)
	for _, name := range names {
		if !want(name) {
			continue
		}
		if err := takeFile(from, lower, to, name); err != nil {
			failed = errors.Join(failed, fmt.Errorf("taking over %s: %w", name, err))
		}
	}
	return failed
}

func takeFile(from, lower, to, name string) error {
	source, target := filepath.Join(from, name), filepath.Join(to, name)
	info, err := os.Lstat(source)
	if err != nil {
		return err
	}
	if info.Size() > maxKept {
		return fmt.Errorf("it has %d bytes, at most %d are taken over", info.Size(), maxKept)
	}
	if name == machineID {
		id, err := os.ReadFile(source)
		if err != nil {
			return err
		}
		if !validID.Match(id) {
			return fmt.Errorf("%q is no machine-id", bytes.TrimSpace(id[:min(len(id), 40)]))
		}
	}
	if err := takeParents(from, lower, to, filepath.Dir(name)); err != nil {
		return err
	}
	if err := os.RemoveAll(target); err != nil {
		return err
	}
	c := copier{links: map[inode]string{}}
	return c.copyEntry(source, target)
}

// takeParents makes a directory and those above it, with the attributes that
// they have in the image, or else in the upper directory.
func takeParents(from, lower, to, dir string) error {
	if dir == "." {
		return nil
	}
	if err := takeParents(from, lower, to, filepath.Dir(dir)); err != nil {
		return err
	}
	target := filepath.Join(to, dir)
	if err := os.Mkdir(target, 0o755); errors.Is(err, fs.ErrExist) {
		return nil
	} else if err != nil {
		return err
	}
	for _, like := range []string{filepath.Join(lower, dir), filepath.Join(from, dir)} {
		var st unix.Stat_t
		if err := unix.Lstat(like, &st); err == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR {
			return errors.Join(os.Chown(target, int(st.Uid), int(st.Gid)), unix.Chmod(target, st.Mode&0o7777))
		}
	}
	return nil
}

// sortedNames are the entries of a directory; one that is missing has none.
func sortedNames(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	slices.Sort(names)
	return names, nil
}
