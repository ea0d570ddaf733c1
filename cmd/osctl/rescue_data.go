package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/kapernikov/osctl/pkg/device"
	"github.com/kapernikov/osctl/pkg/disk"
	"github.com/kapernikov/osctl/pkg/ledger"
	"github.com/kapernikov/osctl/pkg/proof"
	"github.com/kapernikov/osctl/pkg/rescue"
	"github.com/kapernikov/osctl/pkg/upgrade"
)

type dataOptions struct {
	rescueOptions
	device     string
	yes, erase bool
}

func rescueCheckCmd(s streams) *cobra.Command {
	var o dataOptions
	cmd := &cobra.Command{
		Use:   "check-data [DEVICE]",
		Short: "Check the file system of the data partition, and mend what is safe to mend",
		Long:  "check-data runs e2fsck. What it cannot mend without losing something it leaves, and\nends with 50; --yes mends all the same.\n\n" + exitTable(),
		Args:  exactArgs(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.named(args)
			return runCheckData(cmd.Context(), o, s)
		},
	}
	o.machineFlags.add(cmd.Flags())
	cmd.Flags().BoolVar(&o.yes, "yes", false, "mend everything, whatever is lost")
	return cmd
}

func rescueFormatCmd(s streams) *cobra.Command {
	var o dataOptions
	cmd := &cobra.Command{
		Use:   "format-data --erase-data [DEVICE]",
		Short: "Make the data partition anew; all applications and their data are lost",
		Long:  "format-data keeps the ledger and what the slots should hold, if they can be read.\nNothing else survives.\n\n" + exitTable(),
		Args:  exactArgs(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.named(args)
			return runFormatData(cmd.Context(), o, s)
		},
	}
	o.machineFlags.add(cmd.Flags())
	cmd.Flags().BoolVar(&o.erase, "erase-data", false, "say that all data on the partition may be lost")
	return cmd
}

func (o *dataOptions) named(args []string) {
	if len(args) == 1 {
		o.device = args[0]
	}
}

// readSlot opens a slot for reading: the running one, too.
func (m *machine) readSlot(s device.Slot) (upgrade.Target, error) {
	path, err := m.slotPath(s)
	if err != nil {
		return nil, storageError{err}
	}
	d, err := disk.OpenReadOnly(path)
	if err != nil {
		return nil, storageError{err}
	}
	return d, nil
}

// withoutData runs use on the device of the data partition, which is unmounted
// meanwhile if it was mounted.
func (m *machine) withoutData(named string, use func(device string) error) (err error) {
	path := named
	if path == "" {
		if path, err = disk.FindPartition(disk.LabelData); err != nil {
			return storageError{err}
		}
		dir := filepath.Dir(m.config.StateDir)
		if isMountPoint(dir) {
			if err := unix.Unmount(dir, 0); err != nil {
				return storageError{fmt.Errorf("unmounting %s: %w", dir, err)}
			}
			defer func() {
				if failed := unix.Mount(path, dir, "ext4", unix.MS_NOATIME, ""); failed != nil {
					err = errors.Join(err, storageError{fmt.Errorf("mounting %s again: %w", dir, failed)})
				}
			}()
		}
	}
	if _, err := os.Stat(path); err != nil {
		return storageError{err}
	}
	return use(path)
}

// isMountPoint reports whether a folder lies on another file system than the one above.
func isMountPoint(dir string) bool {
	var here, above unix.Stat_t
	return unix.Stat(dir, &here) == nil && unix.Stat(filepath.Dir(dir), &above) == nil && here.Dev != above.Dev
}

func runCheckData(ctx context.Context, o dataOptions, s streams) error {
	m, err := o.inRescue(s)
	if err != nil {
		return err
	}
	return m.withoutData(o.device, func(path string) error {
		said, err := rescue.CheckData(ctx, path, o.yes)
		if said != "" {
			fmt.Fprintln(s.out, said)
		}
		if err == nil {
			_, err = fmt.Fprintln(s.out, "The file system of the data partition is in order.")
		}
		return err
	})
}

func runFormatData(ctx context.Context, o dataOptions, s streams) error {
	if !o.erase {
		return usageError{errors.New("all applications and their data would be lost; say so with --erase-data")}
	}
	m, err := o.inRescue(s)
	if err != nil {
		return err
	}
	// Read before it is unmounted.
	keep := map[string][]byte{}
	for _, name := range []string{ledger.File, proof.FileName(device.SlotA), proof.FileName(device.SlotB), proof.FileName(device.Rescue)} {
		data, err := os.ReadFile(filepath.Join(m.config.StateDir, name))
		if err == nil {
			keep[filepath.ToSlash(filepath.Join("osctl", name))] = data
		} else if !errors.Is(err, os.ErrNotExist) {
			m.log.Warn("this is lost", "file", name, "error", err)
		}
	}
	return m.withoutData(o.device, func(path string) error {
		if err := rescue.FormatData(ctx, path, keep); err != nil {
			return err
		}
		_, err := fmt.Fprintf(s.out, "The data partition is made anew; %d files of osctl were kept.\n", len(keep))
		return err
	})
}
