package rescue

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/kapernikov/osctl/pkg/disk"
)

// ErrDamagedData says that a check left errors in the data partition's file system.
var ErrDamagedData = errors.New("the file system of the data partition is damaged")

// CheckData runs e2fsck on the device of the data partition, which must not be
// mounted, and returns what it said. Without thorough only what is safe is mended;
// with it everything, whatever is lost. It fails with ErrDamagedData if errors
// remain.
func CheckData(ctx context.Context, device string, thorough bool) (string, error) {
	if err := free(device); err != nil {
		return "", fmt.Errorf("checking the data partition: %w", err)
	}
	program, err := disk.FindProgram("e2fsck", "e2fsprogs")
	if err != nil {
		return "", fmt.Errorf("checking the data partition: %w", err)
	}
	how := "-p"
	if thorough {
		how = "-y"
	}
	command := exec.CommandContext(ctx, program, "-f", how, device)
	command.Env = append(os.Environ(), "LC_ALL=C")
	output, err := command.CombinedOutput()
	said := string(bytes.TrimSpace(output))
	exit := (*exec.ExitError)(nil)
	switch {
	case err == nil:
		return said, nil
	case errors.As(err, &exit) && exit.ExitCode() >= 1 && exit.ExitCode() <= 3:
		// e2fsck(8): 1 errors corrected, 2 and a restart is due, which it is anyway.
		return said, nil
	case errors.As(err, &exit) && exit.ExitCode()&4 != 0:
		return said, fmt.Errorf("checking %s: %w", device, ErrDamagedData)
	}
	return said, fmt.Errorf("checking %s: e2fsck: %w: %s", device, err, said)
}

// free refuses a device that somebody uses.
func free(device string) error {
	d, err := disk.Open(device)
	if err != nil {
		return err
	}
	return d.Close()
}

// FormatData makes the data partition anew: empty but for the folders that a
// machine begins with, and the files to keep, by their names in it. Everything else
// on it is lost.
func FormatData(ctx context.Context, device string, keep map[string][]byte) (err error) {
	seed, err := os.MkdirTemp("", "osctl-data-*")
	if err != nil {
		return fmt.Errorf("formatting the data partition: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(seed)) }()
	if err := fillData(seed, keep); err != nil {
		return fmt.Errorf("formatting the data partition: %w", err)
	}
	d, err := disk.Open(device)
	if err != nil {
		return fmt.Errorf("formatting the data partition: %w", err)
	}
	return errors.Join(disk.WriteExt4(ctx, d, disk.LabelData, seed), d.Sync(), d.Close())
}

func fillData(seed string, keep map[string][]byte) error {
	if err := os.Chmod(seed, 0o755); err != nil {
		return err
	}
	for _, dir := range []string{"containerd", "etc", "osctl"} {
		if err := os.Mkdir(filepath.Join(seed, dir), 0o755); err != nil {
			return err
		}
	}
	for name, content := range keep {
		path := filepath.Join(seed, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, content, 0o644); err != nil {
			return err
		}
	}
	return nil
}
