package main

import (
	"context"
	"errors"

	"github.com/kapernikov/osctl/pkg/device"
	"github.com/kapernikov/osctl/pkg/fetch"
	"github.com/kapernikov/osctl/pkg/lease"
	"github.com/kapernikov/osctl/pkg/upgrade"
)

// slotImages holds the images of this machine's workloads for its slots.
type slotImages struct {
	lease.Keeper
	machine *machine
}

func (m *machine) images() upgrade.Images {
	c := m.config.Containerd
	return slotImages{lease.Keeper{Address: c.Address, Own: c.Namespace, Log: m.log}, m}
}

// Keep holds what runs now.
func (i slotImages) Keep(ctx context.Context, slot device.Slot) error {
	list, err := i.machine.containers().List(ctx)
	if err != nil {
		return err
	}
	return i.Keeper.Keep(ctx, slot, list)
}

// hooks are what follows a verdict on this machine.
func (m *machine) hooks() upgrade.Hooks {
	return upgrade.Hooks{
		Kept: func(ctx context.Context) error {
			return errors.Join(m.images().Keep(ctx, m.booted.Slot), m.releasePacks(ctx, m.booted.Slot))
		},
		Back: func(ctx context.Context, slot device.Slot) error {
			return errors.Join(m.images().Restore(ctx, slot), m.releasePacks(ctx, slot.Other()))
		},
		Green: m.green, Red: m.red,
	}
}

// releasePacks lets the packs of a slot's image go once it was judged: the slot has them.
// A power cut right after arming leaves them held, and so does an installation from
// elsewhere than they were downloaded from.
func (m *machine) releasePacks(ctx context.Context, slot device.Slot) error {
	l, err := m.ledger.Load()
	if err != nil {
		return err
	}
	e := l.Slot(slot)
	if e == nil {
		return nil
	}
	store, err := fetch.Dial(ctx, m.config.Containerd.Address, m.config.Containerd.Namespace)
	if err != nil {
		return err
	}
	return errors.Join(store.Forget(ctx, e.Digest), store.Close())
}
