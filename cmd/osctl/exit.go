package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"runtime/debug"
	"slices"
	"strings"

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

// The exit codes, documented in docs/cli.md and in every command's help.
const (
	exitDone      = 0
	exitFailed    = 1
	exitUsage     = 2
	exitAvailable = 10
	exitPolicy    = 20
	exitAdmission = 21
	exitBusy      = 30
	exitRegistry  = 40
	exitStorage   = 50
)

func exitTable() string {
	return `Exit codes: 0 done, 1 failed, 2 usage, 10 update available (check), 20 refused by
policy (signature), 21 refused by admission (product, version, space), 30 busy,
40 registry or network, 50 storage.`
}

// usageError is a mistake on the command line.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// storageError is a failure of this machine's disks.
type storageError struct{ error }

func (e storageError) Unwrap() error { return e.error }

// exitError ends with a code and says nothing more: all was said.
type exitError int

func (exitError) Error() string { return "" }

// rule maps an error to its exit code and to what a person can do next.
type rule struct {
	match func(error) bool
	code  int
	hint  string
}

func is(target error) func(error) bool {
	return func(err error) bool { return errors.Is(err, target) }
}

func as[T error]() func(error) bool {
	return func(err error) bool {
		var target T
		return errors.As(err, &target)
	}
}

// rules is the one table of errors. The first match gives the exit code; the
// first match that has a hint gives the hint.
func rules() []rule {
	return slices.Concat(refusalRules(), registryRules(), storageRules(), []rule{
		{is(fs.ErrPermission), exitFailed, "run as root"},
	})
}

// refusalRules are the errors of a machine that works and says no.
func refusalRules() []rule {
	return []rule{
		{as[usageError](), exitUsage, ""},
		{as[*artifact.OptionError](), exitUsage, ""},
		{as[outputError](), exitFailed, "what was to be done is done; look where standard output goes"},
		{is(etc.ErrPath), exitUsage, ""},
		{is(fetch.ErrReference), exitUsage, ""},
		{is(publish.ErrReference), exitUsage, ""},
		{is(context.Canceled), exitFailed, "interrupted; the same command goes on where it stopped"},
		{notRoot, exitFailed, "run as root"},
		{as[*trust.Refusal](), exitPolicy, ""},
		{as[*channel.Refusal](), exitPolicy, ""},
		{is(config.ErrNoPolicy), exitPolicy, ""},
		{as[policyError](), exitPolicy, "correct the policy: without a usable one nothing is installed"},
		{is(trust.ErrPolicy), exitPolicy, "correct the policy: without a usable one nothing is installed"},
		{is(config.ErrInvalid), exitFailed, "correct that file and run the same command again"},
		{as[*admit.Refusal](), exitAdmission, ""},
		{is(slot.ErrTooSmall), exitAdmission, "build a smaller image"},
		{as[*install.ImageTooLargeError](), exitAdmission, "install with a larger --slot-size, or build a smaller image"},
		{as[*install.BadImageError](), exitAdmission, "name an image of a whole system; docs/images.md says what it holds"},
		{as[*disk.TooSmallError](), exitAdmission, "take a larger disk, a larger --size or a smaller --slot-size"},
		{is(rehearsal.ErrBusy), exitBusy, "run the same command again"},
		{is(rehearsal.ErrUnable), exitAdmission, "the slot is not armed; run the same command with --rehearse=auto to go on without"},
		{as[*rehearsal.Refusal](), exitAdmission, "the slot is not armed; correct that in /etc (osctl etc diff) and run the same command again, or give --rehearse=never"},
		{is(osimage.ErrNotOS), exitAdmission, "name an image that osctl build made"},
		{is(boot.ErrBusy), exitBusy, "wait for the other osctl to end"},
		{is(boot.ErrState), exitBusy, "osctl status shows the state; let the trial end, or end it with osctl rollback"},
		{is(disk.ErrBusy), exitBusy, "unmount or detach it, or end who uses it"},
		{is(errResetPending), exitBusy, "reboot first, or take it back: osctl reset --cancel"},
		{is(upgrade.ErrNoProvenSlot), exitFailed, "install another image with osctl upgrade"},
		{is(device.ErrNoSlot), exitFailed, "run this on a machine that osctl installed, or set bootedSlot in osctl.yaml"},
		{is(publish.ErrPassword), exitFailed, "give the key's password in COSIGN_PASSWORD, or run this on a terminal"},
		{is(publish.ErrKey), exitFailed, "make a key pair: cosign generate-key-pair"},
		{is(publish.ErrCertificate), exitFailed, "ask the authority for a certificate of this key; docs/trust.md says what it has to name"},
		{is(artifact.ErrRootfs), exitFailed, ""},
		{is(artifact.ErrOutput), exitFailed, ""},
		{is(publish.ErrExists), exitFailed, ""},
	}
}

// registryRules are the errors between this machine and an image: containerd,
// the registry, and what came from there.
func registryRules() []rule {
	const again = "check the network and the registry; the same command goes on where it stopped"
	const damaged = "these are not the bytes that were signed; push or copy the image again"
	return []rule{
		{is(fetch.ErrDaemon), exitFailed, "look at: systemctl status containerd"},
		{is(health.ErrContainers), exitFailed, "look at: systemctl status containerd"},
		{is(lease.ErrHold), exitFailed, "look at: systemctl status containerd"},
		{is(health.ErrLabels), exitFailed, "make that container anew with other labels; with osctl.gate=ignore it is left out"},
		{is(health.ErrSystemd), exitFailed, "look at: systemctl status"},
		{is(fetch.ErrStore), exitStorage, "free space on the data partition: nerdctl system prune, df -h /data"},
		{is(fetch.ErrDenied), exitRegistry, "log in: nerdctl login REGISTRY"},
		{is(publish.ErrDenied), exitRegistry, "log in: nerdctl login REGISTRY, or docker login REGISTRY"},
		{is(fetch.ErrNotFound), exitRegistry, "check the name, the tag and the registry"},
		{is(publish.ErrNotFound), exitRegistry, "check the name, the tag and the registry"},
		{is(osimage.ErrNoDocument), exitRegistry, "check the name, the tag and the registry"},
		{is(assemble.ErrCorrupt), exitRegistry, damaged},
		{is(osimage.ErrInvalid), exitRegistry, damaged},
		{is(fetch.ErrRegistry), exitRegistry, again},
		{is(publish.ErrRegistry), exitRegistry, again},
		{is(publish.ErrTimestamp), exitRegistry, "check the network and --timestamp-server; nothing was signed"},
		{is(fetch.ErrLayout), exitFailed, "make a layout with osctl build -o LAYOUT, or copy it again"},
		{is(publish.ErrLayout), exitFailed, "make a layout with osctl build -o LAYOUT, or copy it again"},
	}
}

// storageRules are the failures of this machine's disks.
func storageRules() []rule {
	const dmesg = "check the disk: dmesg; the running system is untouched"
	return []rule{
		{is(unix.ENOSPC), exitStorage, "free space on the data partition: df -h /data"},
		{is(unix.EDQUOT), exitStorage, "free space on the data partition: df -h /data"},
		{is(unix.EROFS), exitStorage, "the file system is read-only: dmesg says why"},
		{is(unix.EIO), exitStorage, dmesg},
		{is(slot.ErrMedium), exitStorage, dmesg},
		{is(disk.ErrReadBack), exitStorage, dmesg},
		{is(errNoRoom), exitStorage, "free space on the data partition: nerdctl system prune, df -h /data"},
		{is(etc.ErrNoImage), exitStorage, "osctl status tells what the slot should hold"},
		{is(disk.ErrTable), exitStorage, dmesg},
		{is(boot.ErrOneCopy), exitStorage, "it is in effect; check the boot partition: dmesg, df -h /efi"},
		{is(boot.ErrReadBack), exitStorage, "check the boot partition: dmesg, df -h /efi"},
		{is(boot.ErrUnknown), exitStorage, "osctl settle names the running slot again"},
		{is(rescue.ErrDamagedData), exitStorage, "osctl rescue check-data --yes mends it, whatever is lost"},
		{is(upgrade.ErrNothingToRepair), exitFailed, "osctl upgrade installs an image there"},
		{is(upgrade.ErrOtherImage), exitAdmission, "name the image that the slot should hold, or osctl upgrade to another one"},
		{is(proof.ErrCorrupt), exitStorage, "osctl upgrade --repair REF writes it again"},
		{is(proof.ErrNone), exitFailed, "osctl upgrade --repair REF proves the slot anew and keeps it"},
		{is(ledger.ErrCorrupt), exitStorage, "the machine boots without it; the next change sets it aside and starts a new one"},
		{as[*install.NotBlankError](), exitStorage, "give --force to overwrite it"},
		{is(disk.ErrUnfit), exitStorage, "name a whole disk, or a file and its --size"},
		{is(disk.ErrNotDisk), exitStorage, "name a disk or an image file"},
		{as[*disk.AmbiguousError](), exitStorage, "detach the other disk, or name the slots in osctl.yaml"},
		{is(disk.ErrNoPartition), exitStorage, "check the disk's partition table: lsblk -o NAME,PARTLABEL,SIZE"},
		{missingSlot, exitStorage, "check slots in osctl.yaml: lsblk -o NAME,PARTLABEL,SIZE"},
		{as[storageError](), exitStorage, ""},
	}
}

// notRoot holds for what root may do and this user may not. Root itself meets
// the same errors on a disk that is write-protected.
func notRoot(err error) bool { return os.Geteuid() != 0 && errors.Is(err, fs.ErrPermission) }

func missingSlot(err error) bool {
	return as[storageError]()(err) && errors.Is(err, fs.ErrNotExist)
}

// classify finds the exit code and the hint of an error.
func classify(err error) (code int, hint string) {
	code = -1
	for _, r := range rules() {
		if !r.match(err) {
			continue
		}
		if code < 0 {
			code = r.code
		}
		if r.hint != "" {
			return code, r.hint
		}
	}
	if code < 0 {
		code = exitFailed
	}
	return code, ""
}

// report prints an error with its hint and returns the exit code.
func report(w io.Writer, err error) int {
	if err == nil {
		return exitDone
	}
	if silent, ok := err.(exitError); ok { //nolint:errorlint // joined with another error it is not silent
		return int(silent)
	}
	code, hint := classify(err)
	// Joined errors come on lines of their own.
	fmt.Fprintf(w, "osctl: %s\n", strings.ReplaceAll(printable(err.Error()), "\n", "\n       "))
	if hint != "" {
		fmt.Fprintf(w, "       %s\n", hint)
	}
	return code
}

// version is the module's version and the commit that it was built from.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	v := info.Main.Version
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" && len(s.Value) >= 12 {
			v += " (" + s.Value[:12] + ")"
		}
	}
	return v
}
