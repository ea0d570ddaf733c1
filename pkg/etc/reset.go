package etc

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kapernikov/osctl/pkg/atomicfile"
	"github.com/kapernikov/osctl/pkg/device"
)

// resetFile holds the order to reset a slot's /etc, beside its upper directory.
const resetFile = "reset.json"

// ErrPath is returned for a path that cannot be reset.
var ErrPath = errors.New("this cannot be reset")

// Reset is an order that Preinit carries out at the next start of a slot, before
// /etc is mounted: a mounted overlay may not be changed from below.
type Reset struct {
	// All brings everything back to the image's version but machine-id, the host
	// keys of ssh and ssh/authorized_keys.
	All bool `json:"all"`
	// Paths are relative to /etc. What is named is reset whatever it is; of what
	// lies below a named directory, the same files stay as with All.
	Paths []string `json:"paths,omitempty"`
}

// ParsePath turns what a person names, "/etc/fstab" or "fstab", into a path
// relative to /etc. Errors wrap ErrPath.
func ParsePath(name string) (string, error) {
	path := filepath.Clean(name)
	if filepath.IsAbs(path) {
		inside, ok := strings.CutPrefix(path, "/etc/")
		if !ok {
			return "", fmt.Errorf("%w: %s is not in /etc", ErrPath, name)
		}
		path = inside
	}
	if name == "" || path == "." || !filepath.IsLocal(path) {
		return "", fmt.Errorf("%w: %q names nothing in /etc", ErrPath, name)
	}
	return path, nil
}

// OrderReset notes durably, within dir (UppersDir on a machine), that the paths of
// a slot's /etc are to be reset at its next start; no paths stand for all of it.
// Orders add up; the caller keeps other writers of orders out. It returns what is
// ordered now. It fails with ErrPath if a path lies below something that was itself
// removed or replaced: that has to be named then.
func OrderReset(dir string, slot device.Slot, paths []string) (Reset, error) {
	order, err := PendingReset(dir, slot)
	if err != nil {
		return Reset{}, fmt.Errorf("ordering the reset of /etc: %w", err)
	}
	if order == nil {
		order = &Reset{}
	}
	for _, path := range paths {
		if parent := blocked(filepath.Join(dir, string(slot), "upper"), path); parent != "" {
			return Reset{}, fmt.Errorf("%w: %s: %s itself was removed or replaced, so name that", ErrPath, path, parent)
		}
		order.Paths = append(order.Paths, path)
	}
	slices.Sort(order.Paths)
	order.Paths = slices.Compact(order.Paths)
	order.All = order.All || len(paths) == 0
	data, err := json.Marshal(order)
	if err == nil {
		err = writeOrder(filepath.Join(dir, string(slot), resetFile), data)
	}
	if err != nil {
		return Reset{}, fmt.Errorf("ordering the reset of /etc: %w", err)
	}
	return *order, nil
}

// writeOrder replaces an order durably, and sweeps what a cut left of an earlier one.
func writeOrder(path string, data []byte) error {
	if err := atomicfile.Sweep(path); err != nil {
		return err
	}
	return atomicfile.Write(path, append(data, '\n'), 0o600)
}

// PendingReset reads the order for a slot, nil if there is none.
func PendingReset(dir string, slot device.Slot) (*Reset, error) {
	return readReset(filepath.Join(dir, string(slot)))
}

func readReset(slotDir string) (*Reset, error) {
	path := filepath.Join(slotDir, resetFile)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the order to reset: %w", err)
	}
	var order Reset
	if err := json.Unmarshal(data, &order); err != nil {
		return nil, fmt.Errorf("reading the order to reset: %s: %w", path, err)
	}
	for _, p := range order.Paths {
		if clean, err := ParsePath(p); err != nil || clean != p {
			return nil, fmt.Errorf("reading the order to reset: %s: %w: %q", path, ErrPath, p)
		}
	}
	return &order, nil
}

// CancelReset takes the order for a slot back, durably; none is no error.
func CancelReset(dir string, slot device.Slot) error {
	if err := dropOrder(filepath.Join(dir, string(slot), resetFile)); err != nil {
		return fmt.Errorf("taking the order to reset back: %w", err)
	}
	return nil
}

// dropOrder removes an order durably.
func dropOrder(path string) error {
	err := os.Remove(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return atomicfile.SyncDir(filepath.Dir(path))
}

// carryOut does what is ordered in the upper directory of a slot, which must not
// be mounted; lower is the image's /etc. Twice is as good as once, so a cut in
// the middle costs nothing while the order stands.
func (r Reset) carryOut(upper, lower string) error {
	paths := r.Paths
	if r.All {
		paths = append([]string{"."}, paths...)
	}
	var failed error
	for _, path := range paths {
		if parent := blocked(upper, path); parent != "" {
			failed = errors.Join(failed, fmt.Errorf("%w: %s: %s itself was removed or replaced", ErrPath, path, parent))
			continue
		}
		err := uncover(upper, lower, path)
		if err == nil {
			err = clearPath(upper, lower, path)
		}
		if err != nil {
			failed = errors.Join(failed, fmt.Errorf("resetting %s: %w", path, err))
		}
	}
	return failed
}

// blocked returns the first directory above path that the upper directory has as
// something else: a whiteout, a file, a link.
func blocked(upper, path string) string {
	for dir := filepath.Dir(path); dir != "."; dir = filepath.Dir(dir) {
		var st unix.Stat_t
		err := unix.Lstat(filepath.Join(upper, dir), &st)
		if err == nil && st.Mode&unix.S_IFMT != unix.S_IFDIR {
			return dir
		}
	}
	return ""
}

// clearPath removes a path from the upper directory, so that the image's shows
// again. Kept files below a directory stay, and the directory with them, which
// then gets the image's attributes.
func clearPath(upper, lower, path string) error {
	name := filepath.Join(upper, path)
	var st unix.Stat_t
	err := unix.Lstat(name, &st)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil
	}
	if err != nil {
		return &fs.PathError{Op: "lstat", Path: name, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR || !leadsToKept(path) || isKept(path) {
		return os.RemoveAll(name)
	}
	entries, err := sortedNames(name)
	if err != nil {
		return err
	}
	left := false
	for _, entry := range entries {
		below := filepath.Join(path, entry)
		if isKept(below) && isIdentity(filepath.Join(upper, below)) {
			left = true
			continue
		}
		if err := clearPath(upper, lower, below); err != nil {
			return err
		}
		_, err := os.Lstat(filepath.Join(upper, below))
		left = left || err == nil
	}
	if path != "." && !left {
		return os.Remove(name)
	}
	return likeLower(name, filepath.Join(lower, path))
}

// isIdentity: a whiteout under the name of a kept file is a change like others.
func isIdentity(path string) bool {
	info, err := os.Lstat(path)
	return err == nil && (info.Mode().IsRegular() || info.IsDir())
}

// likeLower gives a directory of the upper that stays the attributes of the one
// below it, and lets that one's entries show.
func likeLower(upper, lower string) error {
	if err := unix.Lremovexattr(upper, opaqueXattr); err != nil && !errors.Is(err, unix.ENODATA) && !errors.Is(err, unix.ENOTSUP) {
		return fmt.Errorf("removing attribute %s of %s: %w", opaqueXattr, upper, err)
	}
	var st unix.Stat_t
	if err := unix.Lstat(lower, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return nil // the image has none
	}
	return errors.Join(os.Chown(upper, int(st.Uid), int(st.Gid)), unix.Chmod(upper, st.Mode&0o7777))
}

// opaqueXattr marks a directory of the upper that hides the one below it: it was
// removed and made anew.
const opaqueXattr = "trusted.overlay.opaque"

func isOpaque(dir string) (bool, error) {
	value := make([]byte, 1)
	n, err := unix.Lgetxattr(dir, opaqueXattr, value)
	if errors.Is(err, unix.ENODATA) || errors.Is(err, unix.ENOTSUP) || errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil && !errors.Is(err, unix.ERANGE) {
		return false, fmt.Errorf("reading attribute %s of %s: %w", opaqueXattr, dir, err)
	}
	return n == 1 && value[0] == 'y', nil
}

// uncover lets a path of the image show through opaque directories above it,
// without letting anything else through: what they hid is hidden one by one.
func uncover(upper, lower, path string) error {
	if path == "." {
		return nil
	}
	dir := filepath.Dir(path)
	if err := uncover(upper, lower, dir); err != nil {
		return err
	}
	return spread(filepath.Join(upper, dir), filepath.Join(lower, dir), filepath.Base(path))
}

// spread turns an opaque directory into whiteouts for what it hides, but for one
// entry. The mark goes when they are durable: before that the whiteouts change
// nothing, and without them a cut would let through what was hidden.
func spread(upper, lower, but string) error {
	opaque, err := isOpaque(upper)
	if err != nil || !opaque {
		return err
	}
	hidden, err := sortedNames(lower)
	if err != nil && !errors.Is(err, unix.ENOTDIR) {
		return err
	}
	for _, name := range hidden {
		if name == but {
			continue
		}
		if err := hide(filepath.Join(upper, name)); err != nil {
			return err
		}
	}
	if err := syncFileSystem(upper); err != nil {
		return err
	}
	if err := unix.Lremovexattr(upper, opaqueXattr); err != nil {
		return fmt.Errorf("removing attribute %s of %s: %w", opaqueXattr, upper, err)
	}
	return nil
}

// hide keeps what is below an entry of the upper from showing: with a whiteout
// where there is nothing, and with the mark on a directory.
func hide(name string) error {
	info, err := os.Lstat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if err := unix.Mknod(name, unix.S_IFCHR, 0); err != nil {
			return &fs.PathError{Op: "mknod", Path: name, Err: err}
		}
		return nil
	case err != nil:
		return err
	case !info.IsDir():
		return nil
	}
	if err := unix.Lsetxattr(name, opaqueXattr, []byte("y"), 0); err != nil {
		return fmt.Errorf("setting attribute %s of %s: %w", opaqueXattr, name, err)
	}
	return nil
}

// isWhiteout reports whether an entry of the upper says that the one below it was
// removed: a character device 0:0.
func isWhiteout(st *unix.Stat_t) bool {
	return st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0
}
