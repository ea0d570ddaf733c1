package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/kapernikov/osctl/pkg/boot"
	"github.com/kapernikov/osctl/pkg/device"
	"github.com/kapernikov/osctl/pkg/disk"
	"github.com/kapernikov/osctl/pkg/fetch"
	"github.com/kapernikov/osctl/pkg/install"
	"github.com/kapernikov/osctl/pkg/ledger"
	"github.com/kapernikov/osctl/pkg/publish"
	"github.com/kapernikov/osctl/pkg/trust"
	"github.com/kapernikov/osctl/pkg/upgrade"
)

type installOptions struct {
	progressFlags
	source, disk, etc, policy string
	reference, hostsDir       string
	sizeMiB, slotMiB          int64
	force                     bool
}

func installCmd(s streams) *cobra.Command {
	var o installOptions
	layout := disk.DefaultLayout()
	cmd := &cobra.Command{
		Use:   "install --disk DEV|FILE --policy FILE REF|LAYOUT",
		Short: "Install an OS image on an empty disk: partitions, boot loader, slot A, data",
		Long: `install makes a bootable disk, or an image file of one, from a signed OS image. The
boot loader comes out of the image itself and is written last.

` + exitTable(),
		Args: exactArgs(1, 1, "disk"),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.source = args[0]
			return runInstall(cmd.Context(), o, s)
		},
	}
	o.progressFlags.add(cmd.Flags())
	f := cmd.Flags()
	f.StringVar(&o.disk, "disk", "", "disk or image `file` to install to; all of it is overwritten")
	f.StringVar(&o.policy, "policy", "", "policy `file` that the image must satisfy (default "+machinePolicy+", else "+imagePolicy+")")
	f.StringVar(&o.etc, "etc", "", "`folder` of files that this machine's /etc has beyond the image's (keys, host name, credentials)")
	f.StringVar(&o.reference, "reference", "", "reference to record as the image's origin (default: REF)")
	f.StringVar(&o.hostsDir, "hosts-dir", "/etc/containerd/certs.d", "`folder` of containerd's hosts.toml files")
	f.Int64Var(&o.sizeMiB, "size", 0, "size in `MiB` of an image file to create")
	f.Int64Var(&o.slotMiB, "slot-size", layout.Slot/disk.MiB, "size in `MiB` of each slot")
	f.BoolVar(&o.force, "force", false, "overwrite a disk that is not blank")
	return cmd
}

// imageSource opens a reference or a layout where no containerd runs.
type imageSource struct {
	offer fetch.Ref
	close func() error
}

// openSource resolves a layout on disk, or a reference with a content store in
// a temporary folder.
func openSource(ctx context.Context, name, hostsDir string) (imageSource, error) {
	if info, err := os.Stat(name); err == nil && (publish.IsLayout(name) || info.Mode().IsRegular()) {
		layout, err := fetch.OpenLayout(name)
		if err != nil {
			return imageSource{}, err
		}
		offer, err := layout.Resolve(ctx, "")
		if err != nil {
			return imageSource{}, errors.Join(err, layout.Close())
		}
		return imageSource{offer, layout.Close}, nil
	}
	dir, err := os.MkdirTemp("", "osctl-content-*")
	if err != nil {
		return imageSource{}, err
	}
	remove := func() error { return os.RemoveAll(dir) }
	store, err := fetch.OpenStore(dir)
	if err != nil {
		return imageSource{}, errors.Join(err, remove())
	}
	offer, err := fetch.NewRegistry(ctx, store, hostsDir).Resolve(ctx, name)
	if err != nil {
		return imageSource{}, errors.Join(err, remove())
	}
	return imageSource{offer, remove}, nil
}

func runInstall(ctx context.Context, o installOptions, s streams) (err error) {
	v, err := o.verifier()
	if err != nil {
		return err
	}
	display, err := o.display(s)
	if err != nil {
		return err
	}
	source, err := openSource(ctx, o.source, o.hostsDir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, source.close()) }()
	verified, err := verify(ctx, v, source.offer)
	if err != nil {
		return err
	}
	options, err := o.options(verified, source.offer)
	if err != nil {
		return err
	}
	options.Progress = display.sink
	options.WriteSlot = func(ctx context.Context, d *disk.Device) error {
		_, err := upgrade.Fill(ctx, device.SlotA, d, verified, source.offer, display.sink)
		return err
	}
	_, err = install.Install(ctx, options)
	display.finish()
	if err != nil {
		return err
	}
	c := verified.Image().Config()
	_, err = fmt.Fprintf(s.out, "%s %s is installed on %s\n  digest     %s\n  signed by  %s\n", c.Product, c.Version, o.disk, verified.Image().Digest(), verified.KeyName())
	return err
}

func (o installOptions) verifier() (*trust.Verifier, error) {
	if o.policy != "" {
		return verifier(o.policy)
	}
	return verifier(machinePolicy, imagePolicy)
}

// verify reads the small parts of an image and checks its signatures.
func verify(ctx context.Context, v *trust.Verifier, offer fetch.Ref) (trust.Verified, error) {
	img, err := offer.Describe(ctx)
	if err != nil {
		return trust.Verified{}, err
	}
	sigs, err := offer.Signatures(ctx)
	if err != nil {
		return trust.Verified{}, err
	}
	return v.Verify(ctx, img, sigs)
}

// options describes the disk: sizes, the first boot state and the first ledger.
func (o installOptions) options(v trust.Verified, offer fetch.Ref) (install.Options, error) {
	img := v.Image()
	c := img.Config()
	reference := o.reference
	if reference == "" {
		reference = offer.Name()
	}
	l, err := ledger.New(ledger.Entry{
		Digest: img.Digest().String(), Product: c.Product, Version: c.Version, Epoch: c.Epoch, Created: c.Created,
		Reference: reference, SignedBy: v.KeyName(),
	}, time.Now().UTC())
	if err != nil {
		return install.Options{}, err
	}
	encoded, err := l.Encode()
	if err != nil {
		return install.Options{}, err
	}
	env, err := boot.InitialBlock()
	if err != nil {
		return install.Options{}, err
	}
	layout := disk.DefaultLayout()
	layout.Slot = o.slotMiB * disk.MiB
	return install.Options{
		Target: o.disk, Size: o.sizeMiB * disk.MiB, Layout: layout, Force: o.force, ImageSize: c.Rootfs.Size,
		EnvA: env, EnvB: env, Ledger: encoded, Etc: o.etc,
	}, nil
}
