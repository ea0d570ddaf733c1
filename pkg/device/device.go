// Package device tells facts of this machine: its architecture, the slot that it
// booted, the version of the system that runs, its routes and listening sockets.
//
// It reads and never writes, and it refuses to guess: a fact that cannot be read
// is an error, not a default, because the callers decide from it which partition
// may be overwritten.
package device

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
)

// Slot names one of the two root partitions of the machine.
type Slot string

// The two slots. The names are those of the GRUB variable "rootfs".
const (
	SlotA Slot = "A"
	SlotB Slot = "B"
	// Rescue stands where a slot would: in osctl.slot= when the rescue system runs,
	// and where its partition is written or proven. It is no slot: ParseSlot refuses
	// it, it has no Other, and nothing arms it.
	Rescue Slot = "rescue"
)

// ErrNoSlot is returned when the kernel was not started by osctl's grub.cfg, so
// that nothing says which slot runs.
var ErrNoSlot = errors.New("the kernel command line has no osctl.slot=A or osctl.slot=B")

// ParseSlot accepts "A" and "B" and nothing else.
func ParseSlot(s string) (Slot, error) {
	switch Slot(s) {
	case SlotA, SlotB:
		return Slot(s), nil
	}
	return "", fmt.Errorf("slot %q: the slots are A and B", s)
}

// Other returns the other slot, and "" for a name that is no slot.
func (s Slot) Other() Slot {
	switch s {
	case SlotA:
		return SlotB
	case SlotB:
		return SlotA
	}
	return ""
}

// Label is the GPT partition name of the slot: "rootfsA", "rootfsB" or "rescue".
func (s Slot) Label() string {
	if s == Rescue {
		return string(s)
	}
	return "rootfs" + string(s)
}

// Holds reports whether s names a partition that holds an image: a slot or Rescue.
func (s Slot) Holds() bool { return s.Other() != "" || s == Rescue }

// Boot is what the boot loader said of this boot on the kernel command line.
type Boot struct {
	// Slot is the slot whose root file system runs, or Rescue.
	Slot Slot
	// Kind is why GRUB chose it: committed, trial, fallback or unsaved
	// (docs/boot-states.md). Empty when GRUB did not say.
	Kind string
}

// BootedFrom reads a kernel command line, usually /proc/cmdline. The last
// occurrence of a parameter counts, as in the kernel.
func BootedFrom(path string) (Boot, error) {
	line, err := os.ReadFile(path)
	if err != nil {
		return Boot{}, fmt.Errorf("reading the kernel command line: %w", err)
	}
	var b Boot
	for _, field := range strings.Fields(string(line)) {
		if v, ok := strings.CutPrefix(field, "osctl.slot="); ok {
			slot, err := ParseSlot(v)
			if Slot(v) == Rescue {
				slot, err = Rescue, nil
			}
			if err != nil {
				return Boot{}, fmt.Errorf("reading the kernel command line: %w", err)
			}
			b.Slot = slot
		}
		if v, ok := strings.CutPrefix(field, "osctl.boot="); ok {
			b.Kind = v
		}
	}
	if b.Slot == "" {
		return b, ErrNoSlot
	}
	return b, nil
}

// Architecture is the machine's architecture in the names of Go and of the OCI
// image specification, for example "amd64".
func Architecture() string { return runtime.GOARCH }

// Release is what the running system's os-release says of itself.
type Release struct {
	// Version is IMAGE_VERSION or, where that is missing, VERSION_ID.
	Version string
	// Epoch is OSCTL_EPOCH, a field of osctl's own (docs/images.md): the anti-rollback
	// generation that the image was built with; 0 where it is missing or no number.
	Epoch uint32
	// Name is PRETTY_NAME.
	Name string
}

// ReadRelease parses an os-release file, the format of os-release(5).
func ReadRelease(path string) (Release, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return Release{}, fmt.Errorf("reading the system's release: %w", err)
	}
	values := map[string]string{}
	for scanner := bufio.NewScanner(bytes.NewReader(data)); scanner.Scan(); {
		name, value, ok := strings.Cut(strings.TrimSpace(scanner.Text()), "=")
		if ok && !strings.HasPrefix(name, "#") {
			values[name] = unquote(value)
		}
	}
	r := Release{Version: values["IMAGE_VERSION"], Name: values["PRETTY_NAME"]}
	if r.Version == "" {
		r.Version = values["VERSION_ID"]
	}
	if epoch, err := strconv.ParseUint(values["OSCTL_EPOCH"], 10, 32); err == nil {
		r.Epoch = uint32(epoch)
	}
	return r, nil
}

// unquote undoes the shell quoting that os-release(5) allows.
func unquote(s string) string {
	if len(s) >= 2 && (s[0] == '"' || s[0] == '\'') && s[len(s)-1] == s[0] {
		s = s[1 : len(s)-1]
	}
	return strings.NewReplacer(`\"`, `"`, `\$`, `$`, "\\`", "`", `\\`, `\`).Replace(s)
}
