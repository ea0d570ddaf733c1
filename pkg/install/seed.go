package install

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// newSeed makes a temporary folder with the first tree of the data partition:
//
//	containerd/          containerd's root
//	etc/A/upper          what this machine's /etc has beyond the image's
//	etc/A/work           of the overlay, same file system as upper
//	etc/factory/upper    the same, for a factory reset
//	osctl/ledger.json    what the slots hold
//	osctl/…              the records that come with it
func newSeed(opts Options) (string, error) {
	root, err := os.MkdirTemp("", "osctl-install-")
	if err != nil {
		return "", err
	}
	if err := fillSeed(root, opts); err != nil {
		return "", errors.Join(err, os.RemoveAll(root))
	}
	return root, nil
}

func fillSeed(root string, opts Options) error {
	// A mkfs.ext4 that copies the mode of the root folder too shall not copy
	// that of a temporary one.
	if err := os.Chmod(root, 0o755); err != nil {
		return err
	}
	upper := filepath.Join(root, "etc/A/upper")
	for _, dir := range []string{filepath.Join(root, "containerd"), upper, filepath.Join(root, "etc/A/work"), filepath.Join(root, "osctl")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	if err := writeFile(filepath.Join(root, "osctl/ledger.json"), opts.Ledger, 0o644); err != nil {
		return err
	}
	for name, content := range opts.Records {
		path := filepath.Join(root, "osctl", filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := writeFile(path, content, 0o644); err != nil {
			return err
		}
	}
	if opts.Etc == "" {
		return nil
	}
	// Stat first: a missing folder is a mistake, not an empty one.
	if info, err := os.Stat(opts.Etc); err != nil {
		return fmt.Errorf("reading the files for /etc: %w", err)
	} else if !info.IsDir() {
		return fmt.Errorf("reading the files for /etc: %s is not a folder", opts.Etc)
	}
	// What a factory reset goes back to.
	factory := filepath.Join(root, "etc/factory/upper")
	if err := os.MkdirAll(factory, 0o755); err != nil {
		return err
	}
	return errors.Join(copyTree(opts.Etc, upper), copyTree(opts.Etc, factory))
}

// copyTree copies folders, plain files and links with their modes. Anything
// else in an /etc is a mistake and named.
func copyTree(from, to string) error {
	return filepath.WalkDir(from, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		relative, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		target := filepath.Join(to, relative)
		info, err := entry.Info()
		if err != nil {
			return err
		}
		switch kind := entry.Type(); {
		case relative == ".":
			return nil // a link to a folder is followed at the top only
		case kind.IsDir():
			if err := os.Mkdir(target, 0o700); err != nil {
				return err
			}
			return os.Chmod(target, info.Mode().Perm())
		case kind == fs.ModeSymlink:
			link, err := os.Readlink(path)
			if err != nil {
				return err
			}
			return os.Symlink(link, target)
		case kind.IsRegular():
			return copyFile(path, target, info.Mode().Perm())
		default:
			return fmt.Errorf("copying %s: it is neither a plain file, nor a folder, nor a link", path)
		}
	})
}

func copyFile(from, to string, mode fs.FileMode) error {
	source, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { _ = source.Close() }() // read only
	content, err := io.ReadAll(source)
	if err != nil {
		return fmt.Errorf("copying %s: %w", from, err)
	}
	return writeFile(to, content, mode)
}

// writeFile writes a new file with this mode, whatever the umask is.
func writeFile(path string, content []byte, mode fs.FileMode) error {
	if err := os.WriteFile(path, content, 0o600); err != nil {
		return err
	}
	return os.Chmod(path, mode)
}
