package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/kapernikov/osctl/pkg/admit"
	"github.com/kapernikov/osctl/pkg/device"
	"github.com/kapernikov/osctl/pkg/proof"
	"github.com/kapernikov/osctl/pkg/slot"
	"github.com/kapernikov/osctl/pkg/upgrade"
)

// rescueSuffix makes the product of a rescue image out of that of the machine: an
// upgrade never admits a rescue image, and the rescue partition nothing else.
const rescueSuffix = "-rescue"

// vouchRescue opens a rescue image under the policy's own rule for it, and holds
// that it is one for this product.
func (o installOptions) vouchRescue(ctx context.Context, product string) (vouched, error) {
	p, err := loadPolicy(o.policyFiles()...)
	if err != nil {
		return vouched{}, err
	}
	v, err := p.rescue()
	if err != nil {
		return vouched{}, err
	}
	image, err := o.vouch(ctx, v, o.rescue, "")
	if err != nil {
		return vouched{}, err
	}
	if err := admitRescue(image, product); err != nil {
		return vouched{}, errors.Join(err, image.close())
	}
	return image, nil
}

func admitRescue(image vouched, product string) error {
	c := image.Image().Config()
	switch want := product + rescueSuffix; {
	case product == "":
		return errors.New("the machine has no product: set it in /usr/lib/osctl/osctl.yaml")
	case c.Product != want:
		return &admit.Refusal{
			Rule: admit.RuleProduct, Have: fmt.Sprintf("%q", c.Product), Want: fmt.Sprintf("%q", want),
			Hint: "name a rescue image for this product",
		}
	case c.Architecture != device.Architecture():
		return &admit.Refusal{
			Rule: admit.RuleArchitecture, Have: fmt.Sprintf("%q", c.Architecture), Want: fmt.Sprintf("%q", device.Architecture()),
			Hint: "name a rescue image for this architecture",
		}
	}
	return nil
}

// runInstallRescue writes the rescue partition of the machine that runs. Neither
// slots nor boot state are touched: a cut leaves an empty rescue partition, which
// GRUB passes over.
func runInstallRescue(ctx context.Context, o installOptions, s streams) (err error) {
	if o.sizeMiB != 0 || o.etc != "" || o.force || o.reference != "" {
		return usageError{errors.New("--size, --etc, --force and --reference go with --disk")}
	}
	m, err := o.open(s)
	if err != nil {
		return err
	}
	if o.policy == "" {
		o.policy = m.config.Policy
	}
	o.passed = m.passed()
	if m.booted.Slot == device.Rescue {
		return usageError{errors.New("the rescue system runs, and is not replaced while it does")}
	}
	release, err := m.lock()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, release()) }()
	display, err := o.display(s)
	if err != nil {
		return err
	}
	image, err := o.vouchRescue(ctx, m.config.Product)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, image.close()) }()
	target, err := m.openSlot(device.Rescue)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, target.Close()) }()
	if have, most := image.Image().Config().Rootfs.Size, target.Size(); have > most {
		return fmt.Errorf("writing the rescue partition: %w: %d bytes, it has %d", slot.ErrTooSmall, have, most)
	}
	// What is kept is about the old bytes until the new ones are proven.
	records := proof.Open(m.config.StateDir)
	if err := records.Drop(device.Rescue); err != nil {
		return storageError{err}
	}
	_, err = upgrade.Fill(ctx, device.Rescue, target, image.Verified, image.offer, display.sink)
	display.finish()
	if err != nil {
		return err
	}
	if err := records.Keep(device.Rescue, image.record); err != nil {
		return storageError{err}
	}
	return image.installed(s, "the rescue partition")
}
