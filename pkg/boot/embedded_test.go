package boot

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/kapernikov/osctl/pkg/device"
)

// grubFirst is the script that BOOTX64.EFI runs first. Here its memory disk is the
// second disk of the emulator.
const grubFirst = "../../images/grub-boot.cfg"

// embed makes the emulator start as BOOTX64.EFI does.
func (m *machine) embed() {
	m.t.Helper()
	first, err := os.ReadFile(grubFirst)
	if err != nil {
		m.t.Fatal(err)
	}
	script := strings.ReplaceAll(string(first), "(memdisk)", "(hd9)")
	if !strings.Contains(script, `"(hd9)/grub.cfg"`) {
		m.t.Fatalf("%s names no script in the memory disk", grubFirst)
	}
	m.write("boot.cfg", []byte(script))
	for from, to := range map[string]string{m.path("boot.cfg"): "::/boot.cfg", grubConfig: "::/grub.cfg"} {
		run(m.t, "mcopy", "-o", "-i", m.path("disk2"), from, to)
	}
	m.script = strings.Replace(prologue, "source (NAME,gpt1)/EFI/BOOT/grub.cfg", "source (hd9)/boot.cfg", 1)
}

// putScript replaces grub.cfg on the ESP; nil removes it.
func (m *machine) putScript(data []byte) {
	m.t.Helper()
	esp := fmt.Sprintf("%s@@%d", m.path("disk"), espStart)
	if data == nil {
		run(m.t, "mdel", "-i", esp, "::/EFI/BOOT/grub.cfg")
		return
	}
	m.write("script", data)
	run(m.t, "mcopy", "-o", "-i", esp, m.path("script"), "::/EFI/BOOT/grub.cfg")
}

// TestGrubWithoutScript: whatever became of grub.cfg on the ESP, the machine boots
// what its state says, counts as ever and shows no prompt. The script is cut at
// many lengths, as a damaged file system may do.
func TestGrubWithoutScript(t *testing.T) {
	needTools(t)
	t.Parallel()
	whole, err := os.ReadFile(grubConfig)
	if err != nil {
		t.Fatal(err)
	}
	damaged := map[string][]byte{
		"empty": {}, "zeroes": make([]byte, len(whole)), "garbage": bytes.Repeat([]byte("\xff\x00x\n"), 500),
		"words": bytes.Repeat([]byte("if while { $( } ' \" \\\n"), 50), "another script": []byte("set timeout=-1\n"), "whole": whole,
	}
	for n := 1; n < len(whole); n += 211 {
		damaged[fmt.Sprintf("cut after %d bytes", n)] = whole[:n]
	}
	m := newMachine(t, "ab")
	m.embed()
	st := trial(slotB, 2)
	want, then := Next(st)
	data := block(t, 7, then)
	for name, script := range damaged {
		m.putScript(script)
		m.setBoth(block(t, 7, st))
		m.check(name, expectation{want, [2][]byte{data, data}})
	}
	m.setBoth(block(t, 7, st))
	m.putScript(nil)
	m.check("missing", expectation{want, [2][]byte{data, data}})

	for _, slot := range places() {
		m.unbootable(slot)
	}
	m.setBoth(block(t, 7, st))
	r := m.boot()
	if r.booted() != (device.Boot{}) {
		t.Errorf("booted %v", r.booted())
	}
	wantEnd(t, r, m.name)
	if len(damaged) < 40 {
		t.Errorf("%d damaged scripts: the real one was not cut", len(damaged))
	}
}
