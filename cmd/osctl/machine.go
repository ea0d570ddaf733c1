package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/kapernikov/osctl/pkg/admit"
	"github.com/kapernikov/osctl/pkg/boot"
	"github.com/kapernikov/osctl/pkg/config"
	"github.com/kapernikov/osctl/pkg/device"
	"github.com/kapernikov/osctl/pkg/disk"
	"github.com/kapernikov/osctl/pkg/etc"
	"github.com/kapernikov/osctl/pkg/health"
	"github.com/kapernikov/osctl/pkg/ledger"
	"github.com/kapernikov/osctl/pkg/probe"
	"github.com/kapernikov/osctl/pkg/proof"
	"github.com/kapernikov/osctl/pkg/upgrade"
	"github.com/kapernikov/osctl/pkg/workload"
)

// Where a machine keeps its configuration: the image's own, and what replaces it.
const (
	imageConfig   = "/usr/lib/osctl/osctl.yaml"
	machineConfig = "/etc/osctl/osctl.yaml"
	imagePolicy   = "/usr/lib/osctl/policy.yaml"
	machinePolicy = "/etc/osctl/policy.yaml"
	imageHealth   = "/usr/lib/osctl/health.yaml"
	machineHealth = "/etc/osctl/health.yaml"
)

// policyError is a policy that cannot be used: nothing is verified by it.
type policyError struct{ error }

func (e policyError) Unwrap() error { return e.error }

// machineFlags are the flags of every command on the machine.
type machineFlags struct{ config string }

func (f *machineFlags) add(flags *pflag.FlagSet) {
	flags.StringVar(&f.config, "config", "", "configuration `file` (default "+machineConfig+", else "+imageConfig+")")
}

// machine is this machine as its configuration describes it.
type machine struct {
	config  config.Config
	booted  device.Boot
	err     error // why the booted slot is unknown
	release device.Release
	boot    *boot.Store
	ledger  *ledger.Store
	log     *slog.Logger
	expects config.Health
	bad     error         // why what is expected is not what the machine's owner wrote
	runner  *probe.Runner // of the operator's own checks; nil until there are any
}

// open reads the configuration and finds out which slot runs.
func (f *machineFlags) open(s streams) (*machine, error) {
	files := []string{machineConfig, imageConfig}
	if f.config != "" {
		if _, err := os.Stat(f.config); err != nil {
			return nil, fmt.Errorf("reading the configuration: %w", err)
		}
		files = []string{f.config}
	}
	c, err := config.Load(files...)
	if err != nil {
		return nil, err
	}
	m := &machine{config: c, ledger: ledger.Open(c.StateDir), log: logger(s, slog.LevelWarn)}
	if m.boot, err = boot.Open([2]string{c.Env[0], c.Env[1]}); err != nil {
		return nil, err
	}
	m.expects, m.bad = loadHealth(c.Health)
	if c.BootedSlot == config.Auto {
		m.booted, m.err = device.BootedFrom("/proc/cmdline")
	} else {
		m.booted = device.Boot{Slot: device.Slot(c.BootedSlot), Kind: "committed"}
	}
	// The image's own file: the one in /etc may be an old copy on the overlay.
	m.release, err = device.ReadRelease("/usr/lib/os-release")
	if errors.Is(err, fs.ErrNotExist) {
		m.release, err = device.ReadRelease("/etc/os-release")
	}
	if err != nil {
		m.log.Warn("the running version is unknown", "error", err)
	}
	return m, nil
}

// logger writes to standard error: warnings for a person, and for the journal
// what the gate saw.
func logger(s streams, level slog.Level) *slog.Logger {
	return slog.New(slog.NewTextHandler(s.err, &slog.HandlerOptions{Level: level}))
}

// lock keeps other changes of this machine out.
func (m *machine) lock() (func() error, error) {
	held, err := boot.Lock(filepath.Join(m.config.RuntimeDir, "lock"))
	if err != nil {
		return nil, err
	}
	return held.Release, nil
}

// slotPath is the device of a slot.
func (m *machine) slotPath(s device.Slot) (string, error) {
	path := m.config.Slots.A
	switch s {
	case device.SlotB:
		path = m.config.Slots.B
	case device.Rescue:
		path = m.config.Slots.Rescue
	}
	if path != config.Auto {
		return path, nil
	}
	return disk.FindPartition(s.Label())
}

// openSlot opens a slot that does not run, or the rescue partition, and refuses the root file system whatever the
// configuration says.
func (m *machine) openSlot(s device.Slot) (upgrade.Target, error) {
	path, err := m.slotPath(s)
	if err != nil {
		return nil, storageError{err}
	}
	same, err := disk.SameAsRoot(path)
	if err != nil {
		return nil, storageError{err}
	}
	if same {
		return nil, storageError{fmt.Errorf("%s holds the running system and is never written; check slots in the configuration", path)}
	}
	for _, other := range []device.Slot{device.SlotA, device.SlotB, device.Rescue} {
		if place, err := m.slotPath(other); other == s || err != nil || !samePlace(path, place) {
			continue
		}
		if other == m.booted.Slot {
			return nil, storageError{fmt.Errorf("%s is the same as slot %s, which runs, and is never written; check slots in the configuration", path, other)}
		}
		return nil, storageError{fmt.Errorf("%s is both %s and %s; check slots in the configuration", path, s.Label(), other.Label())}
	}
	d, err := disk.Open(path)
	if errors.Is(err, disk.ErrBusy) {
		return nil, err
	}
	if err != nil {
		return nil, storageError{err}
	}
	return d, nil
}

// samePlace reports whether two paths lead to one file or one block device.
func samePlace(a, b string) bool {
	var x, y unix.Stat_t
	if unix.Stat(a, &x) != nil || unix.Stat(b, &y) != nil {
		return false
	}
	blocks := x.Mode&unix.S_IFMT == unix.S_IFBLK && y.Mode&unix.S_IFMT == unix.S_IFBLK
	return x.Dev == y.Dev && x.Ino == y.Ino || blocks && x.Rdev == y.Rdev
}

// containers reads the workloads from containerd.
func (m *machine) containers() *workload.Reader {
	return workload.New(m.config.Containerd.Address, m.config.Containerd.Namespace)
}

// gate is the configured health gate.
func (m *machine) gate(b health.Baseline) health.Options {
	e := m.expects
	return health.Options{
		Systemd: &health.Systemd{Socket: m.config.Systemd.Address}, Containers: m.containers(), Network: &gateNetwork{}, Baseline: b, Log: m.log,
		RequiredUnits: e.Units.Required, Tolerated: e.Units.Tolerated, NetworkLevel: health.Level(e.Network), Probes: m.checks(),
		Deadline: time.Duration(e.Deadline), Steady: time.Duration(e.Soak), Retry: time.Duration(e.Retry),
	}
}

// gateNetwork is this machine's network as the gate asks for it.
type gateNetwork struct{ device.Network }

func (n *gateNetwork) Facts(ctx context.Context) (health.Network, error) {
	f, err := n.Network.Facts(ctx)
	return health.Network(f), err
}

// cloneEtc gives the target slot the running slot's changes of /etc.
func (m *machine) cloneEtc(_ context.Context, from, to device.Slot) error {
	if m.config.EtcDir == "" {
		return nil
	}
	if err := m.copyEtc(from, to); err != nil {
		return storageError{err}
	}
	return nil
}

// upgrade is what an upgrade needs of this machine. reference is what it was asked
// for by; empty for a layout.
func (m *machine) upgrade(reference string) (upgrade.Machine, error) {
	if m.err != nil {
		return upgrade.Machine{}, m.err
	}
	if order, err := etc.PendingFactory(m.config.StateDir); err == nil && order != nil {
		return upgrade.Machine{}, errResetPending
	}
	policy, err := loadPolicy(m.policyFiles()...)
	if err != nil {
		return upgrade.Machine{}, err
	}
	v := policy.Under(circumstances(reference, m.passed()...))
	guard, err := policy.channel(reference, m.config.Product, m.passed()...)
	if err != nil {
		return upgrade.Machine{}, err
	}
	return upgrade.Machine{
		Booted: m.booted.Slot, Channel: guard,
		Facts: admit.Machine{
			Product: m.config.Product, Architecture: device.Architecture(), Version: m.version(),
			Downgrade: admit.Downgrade{Permitted: policy.AllowDowngrade},
		},
		Lock: m.lock, OpenSlot: m.openLeft, Verifier: v, Boot: m.boot, Ledger: m.ledger, Committed: m.committedFloors(),
		Records: proof.Open(m.config.StateDir), CloneEtc: m.cloneEtc, Ready: m.ready, Room: m.room, Images: m.images(), Log: m.log,
		Record: func(ctx context.Context) (health.Baseline, error) {
			return health.Record(ctx, m.gate(health.Baseline{}))
		},
	}, nil
}

// version is the running version: the ledger's, which is the signed one, or else
// that of os-release.
func (m *machine) version() string {
	if l, err := m.ledger.Load(); err == nil {
		if e := l.Slot(m.booted.Slot); e != nil {
			return e.Version
		}
	}
	return m.release.Version
}
