package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/kapernikov/osctl/pkg/admit"
	"github.com/kapernikov/osctl/pkg/artifact"
	"github.com/kapernikov/osctl/pkg/assemble"
	"github.com/kapernikov/osctl/pkg/boot"
	"github.com/kapernikov/osctl/pkg/channel"
	"github.com/kapernikov/osctl/pkg/config"
	"github.com/kapernikov/osctl/pkg/device"
	"github.com/kapernikov/osctl/pkg/disk"
	"github.com/kapernikov/osctl/pkg/etc"
	"github.com/kapernikov/osctl/pkg/fetch"
	"github.com/kapernikov/osctl/pkg/grubenv"
	"github.com/kapernikov/osctl/pkg/health"
	"github.com/kapernikov/osctl/pkg/install"
	"github.com/kapernikov/osctl/pkg/lease"
	"github.com/kapernikov/osctl/pkg/ledger"
	"github.com/kapernikov/osctl/pkg/osimage"
	"github.com/kapernikov/osctl/pkg/proof"
	"github.com/kapernikov/osctl/pkg/publish"
	"github.com/kapernikov/osctl/pkg/rehearsal"
	"github.com/kapernikov/osctl/pkg/rescue"
	"github.com/kapernikov/osctl/pkg/slot"
	"github.com/kapernikov/osctl/pkg/trust"
	"github.com/kapernikov/osctl/pkg/upgrade"
)

// outcome is what an error must end with: the code, and a word of its hint; no
// word where the message itself says what to do next.
type outcome struct {
	err  error
	code int
	hint string
}

// outcomes has every error that a package lets its callers tell apart.
func outcomes() map[string]outcome {
	return map[string]outcome{
		"admit.Refusal":              {&admit.Refusal{}, 21, ""},
		"channel.Refusal":            {&channel.Refusal{}, 20, ""},
		"artifact.OptionError":       {&artifact.OptionError{Err: errors.New("")}, 2, ""},
		"artifact.ErrOutput":         {artifact.ErrOutput, 1, ""},
		"artifact.ErrRootfs":         {artifact.ErrRootfs, 1, ""},
		"assemble.ErrCorrupt":        {assemble.ErrCorrupt, 40, "copy the image again"},
		"boot.ErrBusy":               {boot.ErrBusy, 30, "wait for the other osctl"},
		"boot.ErrState":              {boot.ErrState, 30, "osctl status"},
		"boot.ErrUnknown":            {boot.ErrUnknown, 50, "osctl settle"},
		"boot.ErrOneCopy":            {boot.ErrOneCopy, 50, "in effect"},
		"boot.ErrReadBack":           {boot.ErrReadBack, 50, "df -h /efi"},
		"config.ErrInvalid":          {config.ErrInvalid, 1, "correct that file"},
		"config.ErrNoPolicy":         {config.ErrNoPolicy, 20, ""},
		"device.ErrNoSlot":           {device.ErrNoSlot, 1, "bootedSlot"},
		"disk.AmbiguousError":        {storageError{&disk.AmbiguousError{}}, 50, "detach the other disk"},
		"disk.BusyError":             {&disk.BusyError{}, 30, "unmount"},
		"disk.ErrBusy":               {disk.ErrBusy, 30, "unmount"},
		"disk.ErrNoPartition":        {storageError{disk.ErrNoPartition}, 50, "PARTLABEL"},
		"disk.ErrNotDisk":            {disk.ErrNotDisk, 50, "name a disk"},
		"disk.ErrReadBack":           {disk.ErrReadBack, 50, "dmesg"},
		"disk.ErrTable":              {disk.ErrTable, 50, "dmesg"},
		"disk.ErrUnfit":              {disk.ErrUnfit, 50, "whole disk"},
		"disk.TooSmallError":         {&disk.TooSmallError{}, 21, "--slot-size"},
		"fetch.ErrDaemon":            {fetch.ErrDaemon, 1, "systemctl status containerd"},
		"fetch.ErrDenied":            {errors.Join(fetch.ErrRegistry, fetch.ErrDenied), 40, "nerdctl login"},
		"fetch.ErrLayout":            {fetch.ErrLayout, 1, "osctl build -o"},
		"fetch.ErrNotFound":          {errors.Join(fetch.ErrRegistry, fetch.ErrNotFound), 40, "the tag"},
		"fetch.ErrReference":         {fetch.ErrReference, 2, ""},
		"fetch.ErrRegistry":          {fetch.ErrRegistry, 40, "check the network"},
		"etc.ErrNoImage":             {etc.ErrNoImage, 50, "osctl status"},
		"etc.ErrPath":                {etc.ErrPath, 2, ""},
		"fetch.ErrStore":             {fetch.ErrStore, 50, "free space"},
		"health.ErrContainers":       {health.ErrContainers, 1, "systemctl status containerd"},
		"health.ErrLabels":           {health.ErrLabels, 1, "osctl.gate=ignore"},
		"health.ErrSystemd":          {health.ErrSystemd, 1, "systemctl status"},
		"install.BadImageError":      {&install.BadImageError{Err: fs.ErrNotExist}, 21, "whole system"},
		"install.ImageTooLargeError": {&install.ImageTooLargeError{}, 21, "--slot-size"},
		"install.NotBlankError":      {&install.NotBlankError{}, 50, "--force"},
		"lease.ErrHold":              {lease.ErrHold, 1, "systemctl status containerd"},
		"ledger.ErrCorrupt":          {storageError{ledger.ErrCorrupt}, 50, "sets it aside"},
		"osimage.ErrInvalid":         {osimage.ErrInvalid, 40, "copy the image again"},
		"osimage.ErrNoDocument":      {osimage.ErrNoDocument, 40, "check the name"},
		"osimage.ErrNotOS":           {osimage.ErrNotOS, 21, "osctl build"},
		"proof.ErrCorrupt":           {proof.ErrCorrupt, 50, "osctl upgrade --repair"},
		"proof.ErrNone":              {proof.ErrNone, 1, "osctl upgrade --repair"},
		"publish.ErrCertificate":     {publish.ErrCertificate, 1, "ask the authority"},
		"publish.ErrTimestamp":       {publish.ErrTimestamp, 40, "--timestamp-server"},
		"publish.ErrDenied":          {errors.Join(publish.ErrRegistry, publish.ErrDenied), 40, "docker login"},
		"publish.ErrKey":             {publish.ErrKey, 1, "cosign generate-key-pair"},
		"publish.ErrLayout":          {publish.ErrLayout, 1, "osctl build -o"},
		"publish.ErrNotFound":        {errors.Join(publish.ErrRegistry, publish.ErrNotFound), 40, "the tag"},
		"publish.ErrPassword":        {errors.Join(publish.ErrKey, publish.ErrPassword), 1, "COSIGN_PASSWORD"},
		"publish.ErrExists":          {publish.ErrExists, 1, ""},
		"publish.ErrReference":       {publish.ErrReference, 2, ""},
		"publish.ErrRegistry":        {publish.ErrRegistry, 40, "check the network"},
		"rehearsal.ErrBusy":          {errors.Join(rehearsal.ErrUnable, rehearsal.ErrBusy), 30, "same command"},
		"rehearsal.ErrUnable":        {&rehearsal.Refusal{Unable: rehearsal.ErrUnable}, 21, "--rehearse=auto"},
		"rehearsal.Refusal":          {&rehearsal.Refusal{}, 21, "osctl etc diff"},
		"rescue.ErrDamagedData":      {rescue.ErrDamagedData, 50, "check-data --yes"},
		"slot.ErrMedium":             {slot.ErrMedium, 50, "dmesg"},
		"slot.ErrTooSmall":           {slot.ErrTooSmall, 21, "smaller image"},
		"trust.ErrPolicy":            {trust.ErrPolicy, 20, "correct the policy"},
		"trust.PolicyError":          {&trust.PolicyError{Field: "keys", Err: errors.New("x")}, 20, "correct the policy"},
		"trust.Refusal":              {&trust.Refusal{}, 20, ""},
		"upgrade.ErrNothingToRepair": {upgrade.ErrNothingToRepair, 1, "osctl upgrade"},
		"upgrade.ErrOtherImage":      {upgrade.ErrOtherImage, 21, "name the image"},
		"upgrade.ErrNoProvenSlot":    {upgrade.ErrNoProvenSlot, 1, "osctl upgrade"},

		// What is wrong with one copy is a problem in status, and part of ErrUnknown
		// when it is wrong with both; the rest is a mistake in osctl itself.
		"boot.ErrFormat": {boot.ErrFormat, 1, ""},
		"boot.ErrOlder":  {boot.ErrOlder, 1, ""}, "boot.ErrSize": {boot.ErrSize, 1, ""}, "boot.ErrTorn": {boot.ErrTorn, 1, ""},
		"boot.ErrValue": {boot.ErrValue, 1, ""}, "boot.ErrNotWritten": {boot.ErrNotWritten, 1, ""},
		"disk.ErrRange": {disk.ErrRange, 1, ""}, "disk.ErrReadOnly": {disk.ErrReadOnly, 1, ""},
		"grubenv.ErrName": {grubenv.ErrName, 1, ""}, "grubenv.ErrSignature": {grubenv.ErrSignature, 1, ""},
		"grubenv.ErrTooLarge": {grubenv.ErrTooLarge, 1, ""}, "grubenv.ErrValue": {grubenv.ErrValue, 1, ""},
	}
}

func TestEveryErrorHasItsExitCode(t *testing.T) {
	table := outcomes()
	names := exportedErrors(t)
	if len(names) < 40 {
		t.Fatalf("only %d exported errors found: the test looks in the wrong place", len(names))
	}
	for _, name := range names {
		want, ok := table[name]
		if !ok {
			t.Errorf("%s has no exit code: add it to rules and to this table", name)
			continue
		}
		delete(table, name)
		checkOutcome(t, name, want)
	}
	for name := range table {
		t.Errorf("%s is in the table and in no package", name)
	}
}

func TestOtherErrorsHaveTheirExitCode(t *testing.T) {
	for name, want := range map[string]outcome{
		"usage":              {usageError{errors.New("no")}, 2, ""},
		"interrupted":        {fmt.Errorf("fetching: %w", context.Canceled), 1, "goes on where it stopped"},
		"policy":             {policyError{errors.New("no")}, 20, "correct the policy"},
		"policy, no file":    {policyError{config.ErrNoPolicy}, 20, "correct the policy"},
		"storage":            {storageError{errors.New("no")}, 50, ""},
		"slot missing":       {storageError{fs.ErrNotExist}, 50, "check slots in osctl.yaml"},
		"disk full":          {fmt.Errorf("changing the ledger: %w", unix.ENOSPC), 50, "df -h /data"},
		"over quota":         {unix.EDQUOT, 50, "df -h /data"},
		"read-only":          {unix.EROFS, 50, "read-only"},
		"broken disk":        {fmt.Errorf("%w: %w", slot.ErrMedium, unix.EIO), 50, "dmesg"},
		"available":          {exitError(exitAvailable), 10, ""},
		"done":               {nil, 0, ""},
		"something else":     {errors.New("no"), 1, ""},
		"permission":         {storageError{fs.ErrPermission}, permissionCode(), "run as root"},
		"two, the first one": {fmt.Errorf("%w: %w", boot.ErrBusy, fs.ErrNotExist), 30, "wait for the other osctl"},
	} {
		checkOutcome(t, name, want)
	}
}

// permissionCode: for root, permission is not what was lacking.
func permissionCode() int {
	if os.Geteuid() == 0 {
		return exitStorage
	}
	return exitFailed
}

func checkOutcome(t *testing.T, name string, want outcome) {
	t.Helper()
	var out bytes.Buffer
	wrapped := want.err
	if _, silent := want.err.(exitError); !silent && want.err != nil {
		wrapped = fmt.Errorf("doing something: %w", want.err)
	}
	if code := report(&out, wrapped); code != want.code {
		t.Errorf("%s: exit code %d, want %d", name, code, want.code)
	}
	first, hint, _ := strings.Cut(out.String(), "\n")
	if want.hint != "" && !strings.Contains(out.String(), want.hint) {
		t.Errorf("%s: the hint is %q, want one with %q", name, hint, want.hint)
	}
	if wrapped != nil && want.code != exitAvailable && !strings.HasPrefix(first, "osctl: doing something: ") {
		t.Errorf("%s: the message is %q", name, first)
	}
}

// exportedErrors finds what callers can tell apart: the variables Err…, and the
// types …Error and Refusal, of all packages.
func exportedErrors(t *testing.T) []string {
	t.Helper()
	var names []string
	err := filepath.WalkDir("../../pkg", func(name string, d fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
			return err
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		ast.Inspect(file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.FuncDecl:
				return false
			case *ast.ValueSpec:
				for _, id := range n.Names {
					if strings.HasPrefix(id.Name, "Err") {
						names = append(names, file.Name.Name+"."+id.Name)
					}
				}
			case *ast.TypeSpec:
				if n.Name.IsExported() && (strings.HasSuffix(n.Name.Name, "Error") || n.Name.Name == "Refusal") {
					names = append(names, file.Name.Name+"."+n.Name.Name)
				}
			}
			return true
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// Nothing that somebody else says reaches a terminal as a command to it.
func TestReportIsPlain(t *testing.T) {
	var b strings.Builder
	report(&b, errors.New("opening \x1b]0;title\a\x1b[2Jname\r\u202e: \u009bgone\nand more"))
	if got, want := b.String(), "osctl: opening ]0;title[2Jname: gone\n       and more\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	b.Reset()
	err := printInspection(&b, inspection{Config: osimage.Config{Kernel: "/boot/\x1b[2J"}, Beside: []inspectedProof{{Kind: trust.Provenance, Builder: "x\n\x1b[1mlie"}}})
	if got := b.String(); err != nil || strings.ContainsAny(got, "\x1b\r") || !strings.Contains(got, "built by x [1mlie (not verified)\n") {
		t.Errorf("%q, %v", got, err)
	}
}

// Who sees the list of processes sees no secret: no flag takes one.
func TestNoFlagTakesASecret(t *testing.T) {
	flags := 0
	var visit func(*cobra.Command)
	visit = func(cmd *cobra.Command) {
		cmd.Flags().VisitAll(func(f *pflag.Flag) {
			flags++
			for _, word := range []string{"password", "passphrase", "secret", "token", "credential", "user"} {
				if strings.Contains(f.Name, word) {
					t.Errorf("%s has --%s", cmd.CommandPath(), f.Name)
				}
			}
		})
		for _, sub := range cmd.Commands() {
			visit(sub)
		}
	}
	visit(newRoot(streams{}))
	if flags < 50 {
		t.Errorf("only %d flags were found", flags)
	}
}
