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
			return errors.Join(m.images().Keep(ctx, m.booted.Slot), m.releaseBooted(ctx))
		},
		Back:  func(ctx context.Context, slot device.Slot) error { return m.images().Restore(ctx, slot) },
		Green: m.green, Red: m.red,
	}
}

// releaseBooted lets the packs of the running image go, which its slot has: a power cut
// right after arming leaves them held.
func (m *machine) releaseBooted(ctx context.Context) error {
	l, err := m.ledger.Load()
	if err != nil {
		return err
	}
	e := l.Slot(m.booted.Slot)
	if e == nil {
		return nil
	}
	store, err := fetch.Dial(ctx, m.config.Containerd.Address, m.config.Containerd.Namespace)
	if err != nil {
		return err
	}
	return errors.Join(store.Forget(ctx, e.Digest), store.Close())
}
