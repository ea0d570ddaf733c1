// Package status takes one read-only snapshot of the machine: what runs, what is
// on trial, what waits in the other slot, what failed and why.
//
// It tells the truth as far as it can be known and never fails: what cannot be
// read is a problem in the snapshot. The boot state decides what boots; the ledger
// only explains what the slots hold, and where the two disagree the snapshot says
// so.
package status

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/kapernikov/osctl/pkg/boot"
	"github.com/kapernikov/osctl/pkg/clock"
	"github.com/kapernikov/osctl/pkg/device"
	"github.com/kapernikov/osctl/pkg/health"
	"github.com/kapernikov/osctl/pkg/ledger"
)

// Snapshot is the answer of "osctl status --json"; its schema is
// docs/status.schema.json.
type Snapshot struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Product    string `json:"product"`
	// Architecture is a GOARCH name.
	Architecture string `json:"architecture"`
	// State is committed, trial, armed, fell back or unknown.
	State string `json:"state"`
	// TriesLeft counts the boots that a trial has left.
	TriesLeft int `json:"triesLeft,omitempty"`
	// Boot is why GRUB chose the running system: committed, trial, fallback,
	// unsaved, pristine, other or rescue (docs/boot-states.md).
	Boot string `json:"boot,omitempty"`
	// Gate is the health gate that runs at this moment; nil if none does.
	Gate *Gate `json:"gate,omitempty"`
	// Why explains a boot that is not as it should be, with the reason of the one
	// before if that is known.
	Why string `json:"why,omitempty"`
	// NextBoot is the slot that GRUB will boot, or "rescue".
	NextBoot device.Slot `json:"nextBoot,omitempty"`
	// Booted is the running system, Other what the other slot holds.
	Booted System `json:"booted"`
	Other  System `json:"other"`
	// Last is the newest event of the history.
	Last *ledger.Event `json:"last,omitempty"`
	// LastFailure is the newest digest that did not pass its trial.
	LastFailure *ledger.Failure `json:"lastFailure,omitempty"`
	Floor       ledger.Floor    `json:"floor"`
	Workloads   []Workload      `json:"workloads"`
	Space       *Space          `json:"space,omitempty"`
	// Etc says where changes of /etc go: slot, memory or image.
	Etc string `json:"etc,omitempty"`
	// Lost is what does not work on a degraded machine, in words.
	Lost []string `json:"lost"`
	// Pending are resets that the next boot carries out, Done those of this boot.
	Pending  []string `json:"pending"`
	Done     []string `json:"done"`
	Problems []string `json:"problems"`
}

// System is what one slot holds.
type System struct {
	Slot    device.Slot `json:"slot,omitempty"`
	Version string      `json:"version,omitempty"`
	// Name is the running system's PRETTY_NAME.
	Name      string `json:"name,omitempty"`
	Digest    string `json:"digest,omitempty"`
	Reference string `json:"reference,omitempty"`
	SignedBy  string `json:"signedBy,omitempty"`
	// Basis is the policy that admitted the image; nil where that is not known.
	Basis *ledger.Basis `json:"basis,omitempty"`
	// State is the ledger's: staged, committed, failed; empty for a slot that
	// holds nothing that is known.
	State       ledger.State `json:"state,omitempty"`
	StagedAt    time.Time    `json:"stagedAt,omitzero"`
	CommittedAt time.Time    `json:"committedAt,omitzero"`
	// Size is the image's, SlotSize that of the partition, in bytes; 0 if not known.
	Size     int64 `json:"size,omitempty"`
	SlotSize int64 `json:"slotSize,omitempty"`
}

// Workload is a container and what it does now.
type Workload struct {
	Name   string `json:"name"`
	Image  string `json:"image"`
	Status string `json:"status"`
}

// Sources are where the facts come from.
type Sources struct {
	Product string
	// Booted is the slot that runs; BootedErr says why that is unknown.
	Booted    device.Boot
	BootedErr error
	Release   device.Release
	Boot      interface {
		Load() (boot.State, []boot.Problem, error)
	}
	Ledger *ledger.Store
	// Containers lists what runs; nil leaves the workloads out.
	Containers func(ctx context.Context) ([]health.Container, error)
	// Sizes says how large a slot is, and the image in it, in bytes; 0 is not known. nil
	// leaves them out.
	Sizes func(slot device.Slot) (slotSize, imageSize int64)
	// Held asks containerd for the space that it takes; nil leaves that out.
	Held func(ctx context.Context) (Held, error)
	// DataDir is a path on the data partition.
	DataDir string
	// RuntimeDir is where a gate notes its progress; empty leaves that out.
	RuntimeDir string
	// Degraded are the problems that preinit found, Etc and Data what it made of
	// /etc and of the data partition (package etc); empty if it did not run.
	Degraded  []string
	Etc, Data string
	// Pending and Done are resets that are ordered, and were carried out.
	Pending, Done []string
	// Clock is the time, as far as it can be known.
	Clock clock.Clock
	// LastWords is what the system said that stopped before this one.
	LastWords string
}

// Take takes the snapshot.
func Take(ctx context.Context, s Sources) Snapshot {
	shot := Snapshot{
		APIVersion: "osctl.kapernikov.com/v1", Kind: "Status", Product: s.Product,
		Architecture: device.Architecture(), State: "unknown",
		Boot: s.Booted.Kind, Etc: s.Etc, Workloads: []Workload{},
		Problems: list(s.Degraded), Lost: []string{}, Pending: list(s.Pending), Done: list(s.Done),
	}
	if s.BootedErr != nil {
		shot.complain("the booted slot is unknown", s.BootedErr)
	}
	if now, floor, behind := s.Clock.Behind(); behind {
		shot.Problems = append(shot.Problems, fmt.Sprintf("the clock says %s, and it is %s at least: set it (timedatectl)",
			now.UTC().Format(time.RFC3339), floor.UTC().Format(time.RFC3339)))
	}
	l, err := s.Ledger.Load()
	if err != nil {
		shot.complain("what the slots hold is unknown", err)
	}
	shot.systems(s, l)
	shot.bootState(s)
	if len(l.History) > 0 {
		shot.Last = &l.History[len(l.History)-1]
	}
	if len(l.Failed) > 0 {
		shot.LastFailure = &l.Failed[len(l.Failed)-1]
	}
	shot.Floor = l.Floor
	shot.why(l, s.LastWords)
	shot.since(l)
	answers := shot.containers(ctx, s)
	if s.RuntimeDir != "" {
		if shot.Gate, err = ReadGate(s.RuntimeDir); err != nil {
			shot.complain("whether the gate runs is unknown", err)
		}
	}
	if s.Data != "missing" {
		shot.space(s.DataDir)
	}
	shot.held(ctx, s, answers)
	shot.losses(s)
	return shot
}

// list is a copy that is never nil, for JSON.
func list(in []string) []string { return append([]string{}, in...) }

// why explains how the machine came to run what it runs: by the boot loader's
// word, and by what the boots before left to be read.
func (shot *Snapshot) why(l *ledger.Ledger, lastWords string) {
	if shot.Boot == boot.KindTrial && shot.State != "trial" {
		return // the verdict has been spoken since
	}
	shot.Why = boot.Why(shot.Boot)
	if !slices.Contains([]string{boot.KindPristine, boot.KindOther, boot.KindRescue, boot.KindFallback}, shot.Boot) {
		return
	}
	for _, e := range slices.Backward(l.History) {
		if e.Kind == "not up" {
			shot.Why += "; slot " + string(e.Slot) + " lacked " + e.Reason
			break
		}
		if e.Kind == "committed" || e.Kind == "installed" {
			break // what was before that has passed
		}
	}
	if lastWords != "" {
		shot.Why += "; it stopped with: " + lastWords
	}
}

// since complains of what the proven system lacked after the last fall back, until
// something else is done to the machine.
func (shot *Snapshot) since(l *ledger.Ledger) {
	for _, e := range slices.Backward(l.History) {
		switch e.Kind {
		case ledger.NotAsBefore:
			shot.Problems = append(shot.Problems, "after the fall back not everything was as before the upgrade: "+e.Reason)
			return
		case "committed", "installed", "staged", "failed":
			return
		}
	}
}

// losses names what does not work because something is missing.
func (shot *Snapshot) losses(s Sources) {
	lose := func(text string) { shot.Lost = append(shot.Lost, text) }
	switch {
	case s.Etc == "memory" && s.Booted.Kind == boot.KindPristine:
		lose("this machine's changes of /etc are not in use, and changes made now are gone at the next boot")
	case s.Etc == "memory":
		lose("changes of /etc are kept in memory and gone at the next boot")
	case s.Etc == "image":
		lose("/etc is the image's own and cannot be changed")
	}
	switch full := shot.Space != nil && shot.Space.Free == 0; {
	case s.Data == "missing":
		lose("there is no data partition: no applications, no history, no upgrade; a rollback works")
	case s.Data == "read-only":
		lose("the data partition cannot be written: applications cannot work, and upgrades are refused; a rollback works")
	case full:
		lose("the data partition is full: upgrades are refused; a rollback works")
	}
}

func (shot *Snapshot) complain(what string, err error) {
	shot.Problems = append(shot.Problems, fmt.Sprintf("%s: %v", what, err))
}

func (shot *Snapshot) systems(s Sources, l *ledger.Ledger) {
	shot.Booted = system(s.Booted.Slot, l)
	shot.Other = system(s.Booted.Slot.Other(), l)
	shot.Booted.Name = s.Release.Name
	if s.Sizes != nil {
		for _, sys := range []*System{&shot.Booted, &shot.Other} {
			sys.SlotSize, sys.Size = s.Sizes(sys.Slot)
		}
	}
	switch {
	case shot.Booted.Version == "":
		shot.Booted.Version = s.Release.Version
	case s.Release.Version != "" && shot.Booted.Version != s.Release.Version:
		shot.complain("the ledger does not fit the system", fmt.Errorf("it says slot %s holds %s, but %s runs", s.Booted.Slot, shot.Booted.Version, s.Release.Version))
	}
}

func system(slot device.Slot, l *ledger.Ledger) System {
	e := l.Slot(slot)
	if e == nil {
		return System{Slot: slot}
	}
	return System{
		Slot: slot, Version: e.Version, Digest: e.Digest, Reference: e.Reference, SignedBy: e.SignedBy, Basis: e.Basis,
		State: e.State, StagedAt: e.StagedAt, CommittedAt: e.CommittedAt,
	}
}

func (shot *Snapshot) bootState(s Sources) {
	state, problems, err := s.Boot.Load()
	for _, p := range problems {
		shot.complain("boot state", errors.New(p.String()))
	}
	if err != nil {
		shot.complain("boot state", err)
		return
	}
	next, _ := boot.Next(state)
	shot.NextBoot = next.Slot
	switch {
	case state.Phase == boot.FellBack:
		shot.State = "fell back"
	case state.Phase == boot.Trial && state.Rootfs == s.Booted.Slot:
		shot.State, shot.TriesLeft = "trial", state.Tries
	case state.Phase == boot.Trial:
		shot.State, shot.TriesLeft = "armed", state.Tries
	case state.Rootfs != s.Booted.Slot && s.Booted.Slot != "":
		shot.State = "unknown"
		shot.complain("boot state", fmt.Errorf("slot %s is committed, but slot %s runs", state.Rootfs, s.Booted.Slot))
	default:
		shot.State = "committed"
	}
}

// containers reports whether containerd answers.
func (shot *Snapshot) containers(ctx context.Context, s Sources) bool {
	if s.Containers == nil {
		return false
	}
	list, err := s.Containers(ctx)
	if err != nil {
		shot.complain("the workloads are unknown", err)
		return false
	}
	for _, c := range list {
		shot.Workloads = append(shot.Workloads, Workload{Name: c.Workload.String(), Image: c.Image, Status: c.Status})
	}
	return true
}
