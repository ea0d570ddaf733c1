package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/kapernikov/osctl/pkg/device"
	"github.com/kapernikov/osctl/pkg/disk"
	"github.com/kapernikov/osctl/pkg/progress"
	"github.com/kapernikov/osctl/pkg/proof"
	"github.com/kapernikov/osctl/pkg/slot"
)

type verifyOptions struct {
	machineFlags
	progressFlags
	slot string
	json bool
}

func verifyCmd(s streams) *cobra.Command {
	var o verifyOptions
	cmd := &cobra.Command{
		Use:   "verify [A|B]",
		Short: "Prove, offline, that a slot holds the signed bytes",
		Long: `verify reads a slot (default: the booted one) from the medium and compares every
segment with the signed config that was kept when the slot was written; the
signature is verified again by the present policy. It needs no network and writes
nothing. A damaged slot ends with 50, and the damaged ranges are named.

` + exitTable(),
		Args: exactArgs(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				o.slot = args[0]
			}
			return runVerify(cmd.Context(), o, s)
		},
	}
	o.machineFlags.add(cmd.Flags())
	o.progressFlags.add(cmd.Flags())
	cmd.Flags().BoolVar(&o.json, "json", false, "print JSON")
	return cmd
}

func runVerify(ctx context.Context, o verifyOptions, s streams) (err error) {
	if o.slot != "" {
		if _, err := device.ParseSlot(o.slot); err != nil {
			return usageError{err}
		}
	}
	m, err := o.open(s)
	if err != nil {
		return err
	}
	name := device.Slot(o.slot)
	if name == "" {
		if m.err != nil {
			return m.err
		}
		name = m.booted.Slot
	}
	display, err := o.display(s)
	if err != nil {
		return err
	}
	if name != m.booted.Slot {
		// The running slot cannot change; the other one may be written at any time.
		release, err := m.lock()
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, release()) }()
	}
	record, verdict, err := m.prove(ctx, name, display.sink)
	display.finish()
	if err != nil {
		return err
	}
	if err := printVerdict(s.out, o, verification(name, record, verdict), name == m.booted.Slot); err != nil {
		return err
	}
	if !verdict.Whole() {
		return exitError(exitStorage)
	}
	return nil
}

// record is what is kept of a slot, if it is about the image that the ledger has
// there. Without a ledger the record stands alone: nothing else knows better.
func (m *machine) record(name device.Slot) (proof.Record, error) {
	r, err := proof.Open(m.config.StateDir).Load(name)
	if err != nil {
		return proof.Record{}, err
	}
	l, err := m.ledger.Load()
	if err != nil {
		m.log.Warn("the ledger is lost; the slot's record stands alone", "error", err)
		return r, nil
	}
	if e := l.Slot(name); e != nil && e.Digest != r.Image().Digest().String() {
		return proof.Record{}, storageError{fmt.Errorf("slot %s: %w: it is about %s, and the ledger says %s", name, proof.ErrCorrupt, r.Image().Digest(), e.Digest)}
	}
	return r, nil
}

// prove proves a slot from its record and the medium.
func (m *machine) prove(ctx context.Context, name device.Slot, sink progress.Sink) (r proof.Record, v proof.Verdict, err error) {
	if r, err = m.record(name); err != nil {
		return r, v, err
	}
	verifier, err := m.verifier(r.Reference())
	if err != nil {
		return r, v, err
	}
	path, err := m.slotPath(name)
	if err != nil {
		return r, v, storageError{err}
	}
	d, err := disk.OpenReadOnly(path)
	if err != nil {
		return r, v, storageError{err}
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	v, err = r.Prove(ctx, verifier, d, sink)
	return r, v, err
}

// verifyResult is the answer of verify --json.
type verifyResult struct {
	APIVersion string       `json:"apiVersion"`
	Kind       string       `json:"kind"`
	Slot       device.Slot  `json:"slot"`
	Whole      bool         `json:"whole"`
	Product    string       `json:"product"`
	Version    string       `json:"version"`
	Digest     string       `json:"digest"`
	Reference  string       `json:"reference"`
	SignedBy   string       `json:"signedBy"`
	Bytes      int64        `json:"bytes"`
	Damage     []slot.Range `json:"damage"`
}

func verification(name device.Slot, r proof.Record, v proof.Verdict) verifyResult {
	c := r.Image().Config()
	return verifyResult{
		APIVersion: apiVersion, Kind: "Verification", Slot: name, Whole: v.Whole(), Product: c.Product, Version: c.Version,
		Digest: r.Image().Digest().String(), Reference: r.Reference(), SignedBy: v.Verified.KeyName(), Bytes: c.Rootfs.Size,
		Damage: append([]slot.Range{}, v.Damage...),
	}
}

func (r verifyResult) damaged() int64 {
	var n int64
	for _, d := range r.Damage {
		n += d.Last - d.First + 1
	}
	return n
}

// shownRanges is how many damaged ranges are listed for people.
const shownRanges = 20

func printVerdict(w io.Writer, o verifyOptions, r verifyResult, booted bool) error {
	if o.json {
		return printJSON(w, r)
	}
	detail := fmt.Sprintf("  digest     %s\n  signed by  %s\n", r.Digest, r.SignedBy)
	if r.Whole {
		_, err := fmt.Fprintf(w, "Slot %s holds %s %s, every one of its %d bytes.\n%s", r.Slot, r.Product, r.Version, r.Bytes, detail)
		return err
	}
	fmt.Fprintf(w, "Slot %s is DAMAGED: %s of the %s of %s %s are not what was signed.\n%s",
		r.Slot, size(r.damaged()), size(r.Bytes), r.Product, r.Version, detail)
	for i, d := range r.Damage {
		if i == shownRanges {
			fmt.Fprintf(w, "  … and %d more ranges\n", len(r.Damage)-i)
			break
		}
		fmt.Fprintf(w, "  %s\n", d)
	}
	next := "osctl upgrade --repair rewrites what is damaged."
	if booted {
		next = "It runs, so it is not written: start the other slot, then osctl upgrade --repair."
	}
	_, err := fmt.Fprintln(w, next)
	return err
}
