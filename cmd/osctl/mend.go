package main

import (
	"errors"
	"time"

	"github.com/kapernikov/osctl/pkg/boot"
	"github.com/kapernikov/osctl/pkg/config"
	"github.com/kapernikov/osctl/pkg/device"
	"github.com/kapernikov/osctl/pkg/etc"
	"github.com/kapernikov/osctl/pkg/ledger"
	"github.com/kapernikov/osctl/pkg/osimage"
	"github.com/kapernikov/osctl/pkg/proof"
)

// mendLedger rebuilds what the ledger lost or missed, at the end of a boot, from
// the boot state and from what the slots hold. Nothing fails for want of it.
func (m *machine) mendLedger() {
	if err := m.rebuildLedger(); err != nil {
		m.log.Warn("the ledger is not up to the boot state", "error", err)
	}
}

func (m *machine) rebuildLedger() (err error) {
	release, err := m.lock()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, release()) }()
	state, _, err := m.boot.Load()
	if errors.Is(err, boot.ErrUnknown) {
		return nil // settle has said so
	}
	if err != nil {
		return err
	}
	// On trial, nothing is committed yet, and the slot that is proven does not run.
	if state.Phase != boot.Committed || state.Rootfs != m.booted.Slot {
		return nil
	}
	facts := ledger.Facts{Proven: []device.Slot{state.Rootfs}, Held: map[device.Slot]ledger.Entry{}}
	if state.Other {
		facts.Proven = append(facts.Proven, state.Rootfs.Other())
	}
	l, err := m.ledger.Load()
	lost := errors.Is(err, ledger.ErrCorrupt)
	if err != nil && !lost {
		return err
	}
	for _, slot := range facts.Proven {
		if e, ok := m.holds(slot, l.Slot(slot) == nil); ok {
			facts.Held[slot] = e
		}
	}
	// A look first: a sound ledger is not written at every boot.
	if changed, err := l.Rebuild(facts, time.Now().UTC()); err != nil || !changed && !lost {
		return err
	}
	return m.ledger.Update(func(l *ledger.Ledger) error {
		_, err := l.Rebuild(facts, time.Now().UTC())
		return err
	})
}

// holds is what a slot tells of its image: by the record that staging kept, and
// by the system itself if it runs, or if look says to mount it.
func (m *machine) holds(slot device.Slot, look bool) (ledger.Entry, bool) {
	var e ledger.Entry
	if r, err := proof.Open(m.config.StateDir).Load(slot); err == nil {
		c := r.Image().Config()
		e = ledger.Entry{
			Digest: r.Image().Digest().String(), Product: c.Product, Version: c.Version, Epoch: c.Epoch, Created: c.Created, Reference: r.Reference(),
		}
	}
	// A name in the configuration is no proof that this system is the slot's.
	runs := slot == m.booted.Slot && m.config.BootedSlot == config.Auto
	var release device.Release
	switch {
	case runs:
		release = m.release
	case e.Version == "" && look:
		if image, err := m.image(slot); err == nil {
			release = releaseIn(image)
			defer image.Close() //nolint:errcheck // nothing was written
		}
	}
	if release.Version != "" && release.Version != e.Version {
		e = ledger.Entry{Product: m.config.Product, Version: release.Version} // the record is of another image
	}
	e.Epoch = max(e.Epoch, release.Epoch)
	return e, e.Version != ""
}

// committed are the committed slots as they tell of themselves, whatever the ledger
// says: one that was deleted, or put back from an old copy, opens no way down. A slot
// on trial tells nothing. With look, a slot without any record is looked into.
func (m *machine) committed(look bool) []ledger.Entry {
	state, _, err := m.boot.Load()
	if err != nil {
		return nil // an upgrade stops at that by itself
	}
	l, _ := m.ledger.Load() //nolint:errcheck // whoever decides says that it is lost
	committed := state.Rootfs
	if state.Phase == boot.Trial {
		committed = state.Rootfs.Other()
	}
	slots := []device.Slot{committed}
	if state.Other && state.Phase != boot.Trial {
		slots = append(slots, committed.Other())
	}
	var list []ledger.Entry
	for _, slot := range slots {
		e, ok := m.holds(slot, look && l.Slot(slot) == nil)
		if ok && osimage.CheckVersion(e.Version) == nil {
			list = append(list, e)
		}
	}
	return list
}

// committedFloors are the floors of the same.
func (m *machine) committedFloors() []ledger.Floor {
	var list []ledger.Floor
	for _, e := range m.committed(true) {
		list = append(list, e.Floor())
	}
	return list
}

// releaseIn is what an image says of itself; zero if it says nothing.
func releaseIn(image *etc.Image) device.Release {
	for _, name := range []string{"usr/lib/os-release", "etc/os-release"} {
		if release, err := device.ReadRelease(image.Path(name)); err == nil {
			return release
		}
	}
	return device.Release{}
}
