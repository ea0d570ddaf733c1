package main

import (
	"context"
	"fmt"
	"math"
	"os"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/kapernikov/osctl/pkg/artifact"
)

type buildOptions struct {
	progressFlags
	artifact.Options
	created string
	sizeMiB int64
	json    bool
}

func buildCmd(s streams) *cobra.Command {
	var o buildOptions
	cmd := &cobra.Command{
		Use:   "build --rootfs FILE|DIR|TAR --product P --version V -o LAYOUT",
		Short: "Make an OS image: a root file system becomes an OCI layout",
		Long: `build packs an ext4 or squashfs image, a directory or a tar archive (these two
become ext4) into an OCI image layout. Equal inputs give equal digests.

` + exitTable(),
		Args: exactArgs(0, 0, "rootfs", "product", "version", "output"),
		RunE: func(cmd *cobra.Command, _ []string) error { return runBuild(cmd.Context(), o, s) },
	}
	o.progressFlags.add(cmd.Flags())
	f := cmd.Flags()
	f.StringVar(&o.Rootfs, "rootfs", "", "ext4 or squashfs image, directory or tar `path`")
	f.StringVarP(&o.Output, "output", "o", "", "folder of the OCI layout to make")
	f.StringVar(&o.Product, "product", "", "kind of machine that the image is for")
	f.StringVar(&o.Version, "version", "", "version, for example 1.2 or 1.2.0-rc1")
	f.Uint32Var(&o.Epoch, "epoch", 0, "anti-rollback generation; machines never go below a committed one")
	f.StringVar(&o.Architecture, "arch", "", "architecture in Go's names (default: this machine's)")
	f.StringVar(&o.MinVersion, "min-version", "", "oldest `version` that may upgrade to this one")
	f.StringVar(&o.Kernel, "kernel", "/boot/vmlinuz", "path of the kernel in the root file system")
	f.StringVar(&o.Initrd, "initrd", "/boot/initrd.img", "path of the initrd in the root file system; empty for none")
	f.StringVar(&o.created, "created", "", "time of the release, RFC 3339 (default: SOURCE_DATE_EPOCH, else the newest time in the root file system)")
	f.Int64Var(&o.sizeMiB, "size", 0, "size in `MiB` of the ext4 that is made of a directory or a tar (default: as small as it fits)")
	f.BoolVar(&o.json, "json", false, "print the result as JSON")
	return cmd
}

// buildResult is the answer of build --json.
type buildResult struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Digest     string `json:"digest"`
	Layout     string `json:"layout"`
	Size       int64  `json:"size"`
	Compressed int64  `json:"compressed"`
	Packs      int    `json:"packs"`
}

func runBuild(ctx context.Context, o buildOptions, s streams) error {
	var err error
	if o.Created, err = releaseTime(o.created, os.Getenv("SOURCE_DATE_EPOCH")); err != nil {
		return usageError{err}
	}
	if err := checkMiB("size", o.sizeMiB, 0); err != nil {
		return err
	}
	o.Size = o.sizeMiB << 20
	display, err := o.display(s)
	if err != nil {
		return err
	}
	o.Progress = display.sink
	r, err := artifact.Build(ctx, o.Options)
	display.finish()
	if err != nil {
		return err
	}
	c := r.Config
	if o.json {
		return printJSON(s.out, buildResult{apiVersion, "Build", r.Descriptor.Digest.String(), o.Output, c.Rootfs.Size, r.Compressed, r.Packs})
	}
	_, err = fmt.Fprintf(s.out, "%s %s (%s, %s) is in %s\n  digest  %s\n  size    %s, compressed %s in %d packs\n",
		c.Product, c.Version, c.Architecture, c.Rootfs.Filesystem, o.Output, r.Descriptor.Digest, size(c.Rootfs.Size), size(r.Compressed), r.Packs)
	return err
}

// releaseTime is the flag's time, or SOURCE_DATE_EPOCH's, or zero.
func releaseTime(flag, epoch string) (time.Time, error) {
	if flag != "" {
		t, err := time.Parse(time.RFC3339, flag)
		if err != nil || !artifact.Plausible(t) {
			return t, fmt.Errorf("--created %q: expected is a time such as 2026-11-23T12:00:00Z", flag)
		}
		return t, nil
	}
	if epoch == "" {
		return time.Time{}, nil
	}
	seconds, err := strconv.ParseInt(epoch, 10, 64)
	t := time.Unix(seconds, 0)
	if err != nil || !artifact.Plausible(t) {
		return time.Time{}, fmt.Errorf("SOURCE_DATE_EPOCH %q: expected are seconds since 1970", epoch)
	}
	return t, nil
}

// checkMiB checks the value of a flag in MiB, so that it can be counted in bytes.
func checkMiB(flag string, value, least int64) error {
	if most := int64(math.MaxInt64 >> 20); value < least || value > most {
		return usageError{fmt.Errorf("--%s %d: expected is a number of MiB, from %d to %d", flag, value, least, most)}
	}
	return nil
}
