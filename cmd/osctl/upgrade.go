package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"

	"github.com/kapernikov/osctl/pkg/fetch"
	"github.com/kapernikov/osctl/pkg/rehearsal"
	"github.com/kapernikov/osctl/pkg/upgrade"
)

// imageFlags name the image to install.
type imageFlags struct {
	from   string
	digest string
}

type upgradeOptions struct {
	machineFlags
	imageFlags
	progressFlags
	rehearseFlag
	reference    string
	check        bool
	downloadOnly bool
	retry        bool
	downgrade    bool
	repair       bool
	reboot       bool
	json         bool
}

// softLimit is where an upgrade's garbage is collected however little there is, in
// bytes: about what its buffers need and half as much. The memory of a gateway is
// for its applications (docs/benchmarks.md).
const softLimit = 40 << 20

func upgradeCmd(s streams) *cobra.Command {
	var o upgradeOptions
	cmd := &cobra.Command{
		Use:   "upgrade [REF]",
		Short: "Bring a signed OS image into the other slot and start it at the next boot",
		Long: `upgrade resolves REF (default: the reference of the configuration) to a digest,
verifies its signature and decides whether it may be installed. Only then it
fetches what the other slot lacks, writes it, proves it from the medium, rehearses
it with the /etc of this machine and arms the slot. After the reboot a health gate commits the new system, or the machine
goes back by itself. The same command again goes on where it stopped.

` + exitTable(),
		Args: exactArgs(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				o.reference = args[0]
			}
			if os.Getenv("GOMEMLIMIT") == "" {
				debug.SetMemoryLimit(softLimit)
			}
			return runUpgrade(cmd.Context(), o, s)
		},
	}
	o.machineFlags.add(cmd.Flags())
	o.progressFlags.add(cmd.Flags())
	o.rehearseFlag.add(cmd.Flags())
	f := cmd.Flags()
	f.BoolVar(&o.check, "check", false, "only say whether there is something to install (exit code 10)")
	f.BoolVar(&o.downloadOnly, "download-only", false, "fetch the packs and leave the slot alone; a later upgrade asks the registry for the signatures only")
	f.StringVar(&o.from, "from", "", "install from an OCI layout `folder or archive`, without network or containerd's content")
	f.StringVar(&o.digest, "digest", "", "install exactly this `sha256:…`")
	f.BoolVar(&o.retry, "retry", false, "permit an image that failed its trial here")
	f.BoolVar(&o.downgrade, "allow-downgrade", false, "permit an older image that was committed here once, if the policy does")
	f.BoolVar(&o.repair, "repair", false, "write again what is damaged of the other slot's own image, and nothing else")
	f.BoolVar(&o.reboot, "reboot", false, "reboot when the new system is armed")
	f.BoolVar(&o.json, "json", false, "print the result as JSON")
	return cmd
}

func checkCmd(s streams) *cobra.Command {
	o := upgradeOptions{check: true}
	cmd := &cobra.Command{
		Use:   "check [REF]",
		Short: "Say whether there is something newer",
		Long: `check resolves and verifies REF (default: the reference of the configuration) and
decides as upgrade would. It ends with 0 when that image runs already, with 10
when it would be installed, and with another code when that is refused or fails.

` + exitTable(),
		Args: exactArgs(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				o.reference = args[0]
			}
			return runUpgrade(cmd.Context(), o, s)
		},
	}
	o.machineFlags.add(cmd.Flags())
	cmd.Flags().BoolVar(&o.json, "json", false, "print the result as JSON")
	o.progressFlags.mode = "none"
	return cmd
}

// check refuses combinations of flags that contradict each other.
func (o upgradeOptions) checkFlags() error {
	switch {
	case o.from != "" && o.reference != "":
		return usageError{errors.New("both --from and a reference; name one source")}
	case o.check && o.downloadOnly:
		return usageError{errors.New("both --check and --download-only; choose one")}
	case o.downloadOnly && o.from != "":
		return usageError{errors.New("--download-only with --from: there is nothing to download")}
	case o.repair && (o.check || o.downloadOnly || o.retry || o.downgrade || o.reboot || o.digest != ""):
		return usageError{errors.New("--repair is for what the slot holds already; it goes with --from, a reference and --progress only")}
	case o.repair && o.rehearseFlag.mode == string(rehearsal.Always):
		return usageError{errors.New("--repair arms nothing, so there is nothing to rehearse")}
	case (o.check || o.downloadOnly) && o.reboot:
		return usageError{errors.New("--reboot goes with an installation")}
	}
	return checkDigestFlag(o.digest)
}

// checkDigestFlag checks the value of a --digest.
func checkDigestFlag(value string) error {
	if value == "" {
		return nil
	}
	if err := digest.Digest(value).Validate(); err != nil || !strings.HasPrefix(value, "sha256:") {
		return usageError{fmt.Errorf("--digest %q: expected is sha256: and 64 hexadecimal digits", value)}
	}
	return nil
}

func runUpgrade(ctx context.Context, o upgradeOptions, s streams) error {
	if err := o.checkFlags(); err != nil {
		return err
	}
	m, err := o.machineFlags.open(s)
	if err != nil {
		return err
	}
	mode, err := o.rehearseFlag.parse()
	if err != nil {
		return err
	}
	if o.repair {
		return runUpgradeRepair(ctx, o, m, s)
	}
	if o.reference == "" && o.from == "" {
		o.reference = m.config.Reference
	}
	if o.reference == "" && o.from == "" {
		return usageError{errors.New("no reference: name one, or set reference in osctl.yaml")}
	}
	source := source{machine: m, reference: o.reference, imageFlags: o.imageFlags}
	if err := source.check(); err != nil {
		return err
	}
	if m.bad != nil && !o.check && !o.downloadOnly {
		return m.bad // the new system would get this file, and its gate be red
	}
	deps, err := m.upgrade(source.name())
	if err != nil {
		return err
	}
	if source.judge, err = m.verifier(source.name()); err != nil {
		return err
	}
	display, err := o.progressFlags.display(s)
	if err != nil {
		return err
	}
	var rehearsed *rehearsal.Report
	deps.Rehearse = m.rehearse(mode, display.sink, &rehearsed)
	result, err := upgrade.Run(ctx, deps, source.resolve, upgrade.Options{
		CheckOnly: o.check, DownloadOnly: o.downloadOnly, Retry: o.retry, AllowDowngrade: o.downgrade, Tries: m.config.Tries, Progress: display.sink,
	})
	display.finish()
	if !o.check && !o.downloadOnly {
		m.announce(ctx)
	}
	if err = errors.Join(err, source.close()); err != nil {
		return err
	}
	err = printUpgrade(s, o, m, result, rehearsed)
	switch {
	case result.Outcome == upgrade.Staged && o.reboot:
		// It is armed, whether or not that could be printed.
		return errors.Join(err, reboot(ctx))
	case result.Outcome == upgrade.Available && err == nil:
		return exitError(exitAvailable)
	}
	return err
}

// source opens what the command line names, and closes it again.
type source struct {
	machine   *machine
	reference string
	// judge says which signatures are read.
	judge fetch.Judge
	imageFlags
	closers []func() error
}

// check refuses a malformed reference before anything is begun.
func (s *source) check() error {
	if s.from != "" {
		return nil
	}
	return fetch.CheckReference(s.name())
}

// name is what the registry is asked for; nothing with --from.
func (s *source) name() string {
	if s.from != "" {
		return ""
	}
	if s.digest != "" {
		// The digest says everything; a tag beside it would only be ignored.
		return repositoryOf(s.reference) + "@" + s.digest
	}
	return s.reference
}

func (s *source) resolve(ctx context.Context) (upgrade.Offer, error) {
	if s.from != "" {
		layout, err := fetch.OpenLayout(s.from)
		if err != nil {
			return nil, err
		}
		s.closers = append(s.closers, layout.Close)
		ref, err := layout.Resolve(ctx, s.digest)
		return ref.For(s.judge), err
	}
	c := s.machine.config.Containerd
	store, err := fetch.Dial(ctx, c.Address, c.Namespace)
	if err != nil {
		return nil, err
	}
	s.closers = append(s.closers, store.Close)
	ref, err := fetch.NewRegistry(ctx, store, c.HostsDir).SetTime(s.machine.clock().Now).Resolve(ctx, s.name())
	return ref.For(s.judge), err
}

func (s *source) close() error {
	var err error
	for _, c := range s.closers {
		err = errors.Join(err, c())
	}
	return err
}

// repositoryOf cuts tag and digest off a reference.
func repositoryOf(ref string) string {
	ref, _, _ = strings.Cut(ref, "@")
	if colon := strings.LastIndex(ref, ":"); colon > strings.LastIndex(ref, "/") {
		ref = ref[:colon]
	}
	return ref
}

// tagOf is the tag of a reference that has one and no digest.
func tagOf(ref string) string {
	if strings.Contains(ref, "@") {
		return ""
	}
	return strings.TrimPrefix(ref[len(repositoryOf(ref)):], ":")
}

// upgradeResult is the answer of upgrade --json and check --json.
type upgradeResult struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Outcome    string `json:"outcome"`
	Slot       string `json:"slot"`
	Version    string `json:"version"`
	Digest     string `json:"digest"`
	SignedBy   string `json:"signedBy"`
	Running    string `json:"running"`
	// PackBytes is what had to be fetched; SegmentsReused were in the slot.
	PackBytes      int64 `json:"packBytes"`
	SegmentsReused int   `json:"segmentsReused"`
	// Rehearsal is how the new system got along with this machine's /etc.
	Rehearsal *rehearsal.Report `json:"rehearsal,omitempty"`
}

func printUpgrade(s streams, o upgradeOptions, m *machine, r upgrade.Result, rehearsed *rehearsal.Report) error {
	c := r.Image.Config()
	if o.json {
		return printJSON(s.out, upgradeResult{
			APIVersion: apiVersion, Kind: "Upgrade", Outcome: string(r.Outcome), Slot: string(r.Slot), Version: c.Version,
			Digest: r.Image.Digest().String(), SignedBy: r.SignedBy, Running: m.version(), PackBytes: r.Fetched, SegmentsReused: r.Reused,
			Rehearsal: rehearsed,
		})
	}
	what := fmt.Sprintf("%s %s", c.Product, c.Version)
	detail := fmt.Sprintf("  digest     %s\n  signed by  %s\n", r.Image.Digest(), r.SignedBy)
	var err error
	switch r.Outcome {
	case upgrade.Sound:
		_, err = fmt.Fprintf(s.out, "Slot %s holds %s, every byte of it; nothing was written.\n%s", r.Slot, what, detail)
	case upgrade.Repaired:
		_, err = fmt.Fprintf(s.out, "Slot %s holds %s again; %d of its %d segments were sound.\n%s", r.Slot, what, r.Reused, c.Rootfs.Segments(), detail)
	case upgrade.UpToDate:
		_, err = fmt.Fprintf(s.out, "%s runs already.\n%s", what, detail)
	case upgrade.Available:
		_, err = fmt.Fprintf(s.out, "%s can be installed (%s runs).\n%s", what, m.version(), detail)
	case upgrade.Downloaded:
		_, err = fmt.Fprintf(s.out, "%s is downloaded; osctl upgrade installs it.\n%s", what, detail)
	case upgrade.Staged:
		_, err = fmt.Fprintf(s.out, "%s is in slot %s and starts at the next boot, on trial.\n%s", what, r.Slot, detail)
	}
	return err
}
