package etc

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/kapernikov/osctl/pkg/device"
)

// Apps says what a factory reset does with the applications: their images,
// containers and data, which is all on the data partition that is not osctl's.
type Apps string

// The choices. There is no default.
const (
	KeepApps Apps = "keep"
	WipeApps Apps = "wipe"
)

// ParseApps accepts "keep" and "wipe" and nothing else.
func ParseApps(s string) (Apps, error) {
	switch Apps(s) {
	case KeepApps, WipeApps:
		return Apps(s), nil
	}
	return "", fmt.Errorf("applications %q: keep or wipe", s)
}

// FactoryReset is an order that Preinit carries out at the next start, whichever
// slot that is, before anything uses the data partition.
type FactoryReset struct {
	Apps Apps `json:"apps"`
}

// Names on the data partition. The order lies in the state directory, where
// preinit expects it.
const (
	factoryFile = "reset.json"
	trashDir    = ".osctl-reset" // what a reset has put aside, to be removed
	seedDir     = "factory"      // beside the slots: the /etc that install gave
	homeDir     = "root"         // home of root: credentials of registries
)

// OrderFactory notes durably in the state directory (StateDir on a machine) that
// the machine is to be reset at its next start. A later order replaces it; the caller
// keeps other writers of orders out.
func OrderFactory(stateDir string, apps Apps) error {
	if _, err := ParseApps(string(apps)); err != nil {
		return fmt.Errorf("ordering the factory reset: %w", err)
	}
	data, err := json.Marshal(FactoryReset{apps})
	if err == nil {
		err = writeOrder(filepath.Join(stateDir, factoryFile), data)
	}
	if err != nil {
		return fmt.Errorf("ordering the factory reset: %w", err)
	}
	return nil
}

// PendingFactory reads the order, nil if there is none.
func PendingFactory(stateDir string) (*FactoryReset, error) {
	path := filepath.Join(stateDir, factoryFile)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the order for a factory reset: %w", err)
	}
	var order FactoryReset
	if err := json.Unmarshal(data, &order); err != nil {
		return nil, fmt.Errorf("reading the order for a factory reset: %s: %w", path, err)
	}
	if _, err := ParseApps(string(order.Apps)); err != nil {
		return nil, fmt.Errorf("reading the order for a factory reset: %s: %w", path, err)
	}
	return &order, nil
}

// CancelFactory takes the order back, durably; none is no error.
func CancelFactory(stateDir string) error {
	if err := dropOrder(filepath.Join(stateDir, factoryFile)); err != nil {
		return fmt.Errorf("taking the factory reset back: %w", err)
	}
	return nil
}

// factory is a data partition that is reset, while nothing uses it.
type factory struct {
	data  string // where it is mounted
	lower string // the image's /etc
}

// carryOut resets the data partition. What goes is first put aside by renames,
// which are quick, and is no part of the machine from then on; it is removed
// before anything is made, which may need its space. A cut in the middle costs
// nothing while the order stands: twice is as good as once.
func (f factory) carryOut(order FactoryReset) error {
	if err := os.MkdirAll(filepath.Join(f.data, trashDir), 0o700); err != nil {
		return err
	}
	names, err := f.goes(order)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := f.putAside(filepath.Join(f.data, name)); err != nil {
			return err
		}
	}
	failed := f.emptyTrash()
	for _, slot := range []device.Slot{device.SlotA, device.SlotB} {
		if err := f.resetSlot(slot); err != nil {
			failed = errors.Join(failed, fmt.Errorf("resetting /etc of slot %s: %w", slot, err))
		}
	}
	// The old /etc lies where no later boot would look, until it is put aside for good.
	return errors.Join(failed, syncFileSystem(f.data))
}

// goes lists what is removed beside the /etc of the slots.
func (f factory) goes(order FactoryReset) ([]string, error) {
	names, err := sortedNames(f.data)
	if err != nil {
		return nil, err
	}
	// What the slots hold, the floor and the history are facts, not settings.
	stays := []string{"etc", "osctl", "lost+found", trashDir}
	return slices.DeleteFunc(names, func(name string) bool {
		return slices.Contains(stays, name) || order.Apps == KeepApps && name != homeDir
	}), nil
}

// resetSlot gives a slot the /etc of the day of the installation, and lets it
// keep what identifies the machine. A slot that never had one gets none.
func (f factory) resetSlot(slot device.Slot) error {
	dir := filepath.Join(f.data, "etc")
	path := filepath.Join(dir, string(slot))
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	next := filepath.Join(dir, "."+string(slot)+".new")
	if err := os.RemoveAll(next); err != nil {
		return err
	}
	if err := build(filepath.Join(dir, seedDir), next); err != nil {
		return err
	}
	// An identity that cannot be kept is a loss, but no reason to keep the rest.
	lost := f.identify(filepath.Join(path, "upper"), filepath.Join(next, "upper"))
	if err := syncFileSystem(next); err != nil {
		return errors.Join(lost, err)
	}
	return errors.Join(lost, replace(dir, next, path), os.MkdirAll(filepath.Join(f.data, trashDir), 0o700), f.putAside(next))
}

// identify takes over who the machine is. The keys of those who may log in come
// from the seed; without a seed nobody knows what they were, so they stay.
func (f factory) identify(old, upper string) error {
	seeded, err := sortedNames(filepath.Join(f.data, "etc", seedDir, "upper"))
	if err != nil {
		return err
	}
	return takeOver(old, f.lower, upper, func(name string) bool { return len(seeded) == 0 || !isAccess(name) })
}

// putAside moves a file or directory into the trash, under a free name.
func (f factory) putAside(path string) error {
	for n := 0; ; n++ {
		target := filepath.Join(f.data, trashDir, strconv.Itoa(n))
		err := unix.Renameat2(unix.AT_FDCWD, path, unix.AT_FDCWD, target, unix.RENAME_NOREPLACE)
		switch {
		case errors.Is(err, fs.ErrExist):
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case err != nil:
			return &os.LinkError{Op: "rename", Old: path, New: target, Err: err}
		default:
			return nil
		}
	}
}

// emptyTrash removes what a reset has put aside; it may take a while.
func (f factory) emptyTrash() error { return os.RemoveAll(filepath.Join(f.data, trashDir)) }
