package main

import (
	"context"
	"errors"

	"github.com/kapernikov/osctl/pkg/upgrade"
)

// runUpgradeRepair mends the other slot with its own image.
func runUpgradeRepair(ctx context.Context, o upgradeOptions, m *machine, s streams) error {
	named := o.reference
	if named == "" && o.from == "" {
		// The policy is asked about where the slot's image came from.
		if l, err := m.ledger.Load(); err == nil && m.err == nil {
			if e := l.Slot(m.booted.Slot.Other()); e != nil {
				named = e.Reference
			}
		}
	}
	deps, err := m.upgrade(named)
	if err != nil {
		return err
	}
	display, err := o.progressFlags.display(s)
	if err != nil {
		return err
	}
	v, err := m.verifier(named)
	if err != nil {
		return err
	}
	from := source{machine: m, judge: everything{v}, imageFlags: o.imageFlags}
	result, err := upgrade.Repair(ctx, deps, func(ctx context.Context, reference, digest string) (upgrade.Offer, error) {
		from.reference, from.digest = reference, digest
		if o.reference != "" {
			from.reference = o.reference
		}
		if o.from != "" {
			// A layout says itself what it holds; another image is refused by its name.
			from.reference, from.digest = "", ""
		}
		if err := from.check(); err != nil {
			return nil, err
		}
		return from.resolve(ctx)
	}, upgrade.Options{Progress: display.sink})
	display.finish()
	if err = errors.Join(err, from.close()); err != nil {
		return err
	}
	return printUpgrade(s, o, m, result, nil)
}
