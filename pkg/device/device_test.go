package device

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func write(t *testing.T, text string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestBootedFrom(t *testing.T) {
	got, err := BootedFrom(write(t, "root=/dev/sda2 osctl.slot=A ro osctl.boot=trial osctl.slot=B\n"))
	if want := (Boot{Slot: SlotB, Kind: "trial"}); err != nil || got != want {
		t.Errorf("BootedFrom = %v, %v; want %v", got, err, want)
	}
	got, err = BootedFrom(write(t, "osctl.slot=rescue osctl.boot=rescue\n"))
	if want := (Boot{Slot: Rescue, Kind: "rescue"}); err != nil || got != want {
		t.Errorf("BootedFrom = %v, %v; want %v", got, err, want)
	}
	if _, err := BootedFrom(write(t, "root=/dev/sda2 xosctl.slot=A\n")); !errors.Is(err, ErrNoSlot) {
		t.Errorf("without a slot: %v", err)
	}
	if _, err := BootedFrom(write(t, "osctl.slot=C")); err == nil || !strings.Contains(err.Error(), `slot "C"`) {
		t.Errorf("with slot C: %v", err)
	}
	if _, err := BootedFrom(filepath.Join(t.TempDir(), "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without a file: %v", err)
	}
}

func TestSlot(t *testing.T) {
	if SlotA.Other() != SlotB || SlotB.Other() != SlotA || Slot("").Other() != "" || SlotB.Label() != "rootfsB" {
		t.Error("the slots do not answer for each other")
	}
	if _, err := ParseSlot("rescue"); err == nil || Rescue.Other() != "" || Rescue.Label() != "rescue" {
		t.Error("the rescue partition passes for a slot")
	}
	if !SlotA.Holds() || !SlotB.Holds() || !Rescue.Holds() || Slot("").Holds() || Slot("C").Holds() {
		t.Error("what holds an image is A, B and rescue")
	}
}

func TestReadRelease(t *testing.T) {
	got, err := ReadRelease(write(t, "# IMAGE_VERSION=9\nPRETTY_NAME=\"Kapernikov \\\"OS\\\"\"\nVERSION_ID='1.2'\n"))
	if want := (Release{Version: "1.2", Name: `Kapernikov "OS"`}); err != nil || got != want {
		t.Errorf("ReadRelease = %+v, %v; want %+v", got, err, want)
	}
	got, err = ReadRelease(write(t, "VERSION_ID=12\nIMAGE_VERSION=1.3\n"))
	if err != nil || got.Version != "1.3" {
		t.Errorf("ReadRelease = %+v, %v; want IMAGE_VERSION to count", got, err)
	}
	for text, want := range map[string]uint32{"7": 7, `"4294967295"`: 1<<32 - 1, "4294967296": 0, "-1": 0, "x": 0, "": 0} {
		if got, err := ReadRelease(write(t, "OSCTL_EPOCH="+text+"\n")); err != nil || got.Epoch != want {
			t.Errorf("OSCTL_EPOCH=%s: %d, %v; want %d", text, got.Epoch, err, want)
		}
	}
}
