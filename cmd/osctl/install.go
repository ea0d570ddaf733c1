package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/kapernikov/osctl/pkg/boot"
	"github.com/kapernikov/osctl/pkg/device"
	"github.com/kapernikov/osctl/pkg/disk"
	"github.com/kapernikov/osctl/pkg/fetch"
	"github.com/kapernikov/osctl/pkg/install"
	"github.com/kapernikov/osctl/pkg/ledger"
	"github.com/kapernikov/osctl/pkg/proof"
	"github.com/kapernikov/osctl/pkg/publish"
	"github.com/kapernikov/osctl/pkg/trust"
	"github.com/kapernikov/osctl/pkg/upgrade"
)

type installOptions struct {
	machineFlags
	progressFlags
	source, disk, etc, policy string
	reference, hostsDir       string
	rescue                    string
	sizeMiB, slotMiB          int64
	force                     bool
	// passed are times that have certainly passed on this machine.
	passed []time.Time
}

func installCmd(s streams) *cobra.Command {
	var o installOptions
	layout := disk.DefaultLayout()
	cmd := &cobra.Command{
		Use:   "install --disk DEV|FILE --policy FILE REF|LAYOUT",
		Short: "Install an OS image on an empty disk: partitions, boot loader, slot A, data",
		Long: `install makes a bootable disk, or an image file of one, from a signed OS image. The
boot loader comes out of the image itself and is written last. With --rescue the
rescue partition gets its system too; --rescue without --disk writes only that, on
the machine that runs.

` + exitTable(),
		Args: func(cmd *cobra.Command, args []string) error {
			if cmd.Flags().Changed("rescue") && !cmd.Flags().Changed("disk") {
				return exactArgs(0, 0)(cmd, args)
			}
			return exactArgs(1, 1, "disk")(cmd, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return runInstallRescue(cmd.Context(), o, s)
			}
			o.source = args[0]
			return runInstall(cmd.Context(), o, s)
		},
	}
	o.machineFlags.add(cmd.Flags())
	o.progressFlags.add(cmd.Flags())
	f := cmd.Flags()
	f.StringVar(&o.disk, "disk", "", "disk or image `file` to install to; all of it is overwritten")
	f.StringVar(&o.rescue, "rescue", "", "rescue image (`REF|LAYOUT`) for the rescue partition; without --disk, of this machine")
	f.StringVar(&o.policy, "policy", "", "policy `file` that the image must satisfy (default "+machinePolicy+", else "+imagePolicy+")")
	f.StringVar(&o.etc, "etc", "", "`folder` of files that this machine's /etc has beyond the image's (keys, host name, credentials)")
	f.StringVar(&o.reference, "reference", "", "reference to record as the image's origin, and to choose the policy's rule by (default: REF)")
	f.StringVar(&o.hostsDir, "hosts-dir", "/etc/containerd/certs.d", "`folder` of containerd's hosts.toml files")
	f.Int64Var(&o.sizeMiB, "size", 0, "size in `MiB` of an image file to create")
	f.Int64Var(&o.slotMiB, "slot-size", layout.Slot/disk.MiB, "size in `MiB` of each slot")
	f.BoolVar(&o.force, "force", false, "overwrite a disk that is not blank")
	return cmd
}

// imageSource opens a reference or a layout where no containerd runs.
type imageSource struct {
	offer fetch.Ref
	// reference is what a registry was asked for; empty for a layout.
	reference string
	close     func() error
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
		return imageSource{offer, "", layout.Close}, nil
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
	offer, err := fetch.NewRegistry(ctx, store, hostsDir).SetTime(present().Now).Resolve(ctx, name)
	if err != nil {
		return imageSource{}, errors.Join(err, remove())
	}
	return imageSource{offer, name, remove}, nil
}

// vouched is an image that the policy accepts, where its packs are, and what is
// kept of it.
type vouched struct {
	trust.Verified
	offer  fetch.Ref
	record proof.Record
	close  func() error
}

// vouch opens an image, reads its small parts and checks its signatures.
// reference is what is recorded as its origin, and what the policy decides by;
// empty means its name.
func (o installOptions) vouch(ctx context.Context, v *trust.Verifier, name, reference string) (_ vouched, err error) {
	source, err := openSource(ctx, name, o.hostsDir)
	if err != nil {
		return vouched{}, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, source.close())
		}
	}()
	asked := reference
	if asked == "" {
		asked = source.reference
	}
	v = v.Under(circumstances(asked, o.passed...))
	source.offer = source.offer.For(v)
	img, err := source.offer.Describe(ctx)
	if err != nil {
		return vouched{}, err
	}
	sigs, err := source.offer.Signatures(ctx)
	if err != nil {
		return vouched{}, err
	}
	verified, err := v.Verify(ctx, img, sigs)
	if err != nil {
		return vouched{}, err
	}
	if reference == "" {
		reference = source.offer.Name()
	}
	return vouched{verified, source.offer, proof.New(img, sigs, reference), source.close}, nil
}

func runInstall(ctx context.Context, o installOptions, s streams) (err error) {
	if err := errors.Join(checkMiB("size", o.sizeMiB, 0), checkMiB("slot-size", o.slotMiB, 1)); err != nil {
		return err
	}
	p, err := loadPolicy(o.policyFiles()...)
	if err != nil {
		return err
	}
	display, err := o.display(s)
	if err != nil {
		return err
	}
	image, err := o.vouch(ctx, p.Verifier, o.source, o.reference)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, image.close()) }()
	options, err := o.options(image)
	if err != nil {
		return err
	}
	options.Progress = display.sink
	options.WriteSlot = image.writer(device.SlotA, display)
	var rescue vouched
	if o.rescue != "" {
		if rescue, err = o.vouchRescue(ctx, image.Image().Config().Product); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, rescue.close()) }()
		options.RescueSize, options.WriteRescue = rescue.Image().Config().Rootfs.Size, rescue.writer(device.Rescue, display)
		if options.Records[filepath.ToSlash(proof.FileName(device.Rescue))], err = rescue.record.Encode(); err != nil {
			return err
		}
	}
	_, err = install.Install(ctx, options)
	display.finish()
	if err != nil {
		return err
	}
	if err := image.installed(s, o.disk); err != nil || o.rescue == "" {
		return err
	}
	return rescue.installed(s, "the rescue partition of "+o.disk)
}

// writer writes the image to a partition of a new disk.
func (i vouched) writer(name device.Slot, d display) func(context.Context, *disk.Device) error {
	return func(ctx context.Context, partition *disk.Device) error {
		_, err := upgrade.Fill(ctx, name, partition, i.Verified, i.offer, d.sink)
		return err
	}
}

func (i vouched) installed(s streams, where string) error {
	c := i.Image().Config()
	_, err := fmt.Fprintf(s.out, "%s %s is installed on %s\n  digest     %s\n  signed by  %s\n", c.Product, c.Version, where, i.Image().Digest(), i.KeyName())
	return err
}

func (o installOptions) policyFiles() []string {
	if o.policy != "" {
		return []string{o.policy}
	}
	return []string{machinePolicy, imagePolicy}
}

// options describes the disk: sizes, the first boot state, the first ledger, and
// the record of the first slot.
func (o installOptions) options(i vouched) (install.Options, error) {
	img := i.Image()
	c := img.Config()
	basis := ledger.Basis(i.Basis())
	l, err := ledger.New(ledger.Entry{
		Digest: img.Digest().String(), Product: c.Product, Version: c.Version, Epoch: c.Epoch, Created: c.Created,
		Reference: i.record.Reference(), SignedBy: i.KeyName(), Basis: &basis,
	}, time.Now().UTC())
	if err != nil {
		return install.Options{}, err
	}
	encoded, err := l.Encode()
	if err != nil {
		return install.Options{}, err
	}
	record, err := i.record.Encode()
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
		Records: map[string][]byte{filepath.ToSlash(proof.FileName(device.SlotA)): record},
	}, nil
}
