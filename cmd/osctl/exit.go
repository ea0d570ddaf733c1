package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"runtime/debug"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kapernikov/osctl/pkg/admit"
	"github.com/kapernikov/osctl/pkg/assemble"
	"github.com/kapernikov/osctl/pkg/boot"
	"github.com/kapernikov/osctl/pkg/config"
	"github.com/kapernikov/osctl/pkg/device"
	"github.com/kapernikov/osctl/pkg/disk"
	"github.com/kapernikov/osctl/pkg/fetch"
	"github.com/kapernikov/osctl/pkg/health"
	"github.com/kapernikov/osctl/pkg/install"
	"github.com/kapernikov/osctl/pkg/osimage"
	"github.com/kapernikov/osctl/pkg/publish"
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

// rules is the one table of errors; the first match counts.
func rules() []rule {
	return []rule{
		{as[usageError](), exitUsage, ""},
		{is(fetch.ErrReference), exitUsage, ""},
		{is(publish.ErrReference), exitUsage, ""},
		{is(context.Canceled), exitFailed, "interrupted; the same command goes on where it stopped"},
		{as[*trust.Refusal](), exitPolicy, ""},
		{is(config.ErrNoPolicy), exitPolicy, ""},
		{as[policyError](), exitPolicy, ""},
		{as[*admit.Refusal](), exitAdmission, ""},
		{is(slot.ErrTooSmall), exitAdmission, "build a smaller image"},
		{as[*install.ImageTooLargeError](), exitAdmission, "install with a larger --slot-size, or build a smaller image"},
		{is(osimage.ErrNotOS), exitAdmission, "name an image that osctl build made"},
		{is(boot.ErrBusy), exitBusy, "wait for the other osctl to end"},
		{is(boot.ErrState), exitBusy, "osctl status shows the state; let the trial end, or end it with osctl rollback"},
		{is(disk.ErrBusy), exitBusy, ""},
		{is(fetch.ErrDaemon), exitFailed, "look at: systemctl status containerd"},
		{is(health.ErrContainers), exitFailed, "look at: systemctl status containerd"},
		{is(fetch.ErrStore), exitStorage, "free space on the data partition: nerdctl system prune, df -h /data"},
		{is(fetch.ErrDenied), exitRegistry, "log in: nerdctl login REGISTRY"},
		{is(publish.ErrDenied), exitRegistry, "log in: nerdctl login REGISTRY, or docker login REGISTRY"},
		{is(fetch.ErrNotFound), exitRegistry, "check the name, the tag and the registry"},
		{is(fetch.ErrRegistry), exitRegistry, "check the network and the registry; the same command goes on where it stopped"},
		{is(publish.ErrRegistry), exitRegistry, "check the network and the registry; the same command goes on where it stopped"},
		{is(assemble.ErrCorrupt), exitRegistry, "the registry serves other bytes than were signed; push the image again"},
		{is(osimage.ErrInvalid), exitRegistry, "the artifact is damaged; build and push it again"},
		{is(upgrade.ErrNoProvenSlot), exitFailed, "install another image with osctl upgrade"},
		{as[storageError](), exitStorage, ""},
		{is(slot.ErrMedium), exitStorage, "check the disk: dmesg; the running system is untouched"},
		{is(boot.ErrUnknown), exitStorage, "osctl settle names the running slot again"},
		{is(disk.ErrNoPartition), exitStorage, "check the disk's partition table: lsblk -o NAME,PARTLABEL,SIZE"},
		{is(device.ErrNoSlot), exitFailed, "run this on a machine that osctl installed, or set bootedSlot in osctl.yaml"},
		{is(unix.ENOSPC), exitStorage, "free space on the data partition: df -h /data"},
		{is(unix.EROFS), exitStorage, "the file system is read-only: dmesg says why"},
		{is(unix.EIO), exitStorage, "check the disk: dmesg"},
		{is(fs.ErrPermission), exitFailed, "run as root"},
	}
}

// report prints an error with its hint and returns the exit code.
func report(w io.Writer, err error) int {
	if err == nil {
		return exitDone
	}
	var silent exitError
	if errors.As(err, &silent) {
		return int(silent)
	}
	code, hint := exitFailed, ""
	for _, r := range rules() {
		if r.match(err) {
			code, hint = r.code, r.hint
			break
		}
	}
	if hint == "" && errors.Is(err, fs.ErrPermission) {
		hint = "run as root"
	}
	// Joined errors come on lines of their own.
	fmt.Fprintf(w, "osctl: %s\n", strings.ReplaceAll(err.Error(), "\n", "\n       "))
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
