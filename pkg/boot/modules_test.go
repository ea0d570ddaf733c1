package boot

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// grubModules is the list that the image build hands to grub-mkimage.
const grubModules = "../../images/grub-modules.txt"

// grubLibrary is where Debian's grub-efi-amd64-bin puts modules and their indexes.
const grubLibrary = "/usr/lib/grub/x86_64-efi"

// index reads a file of lines "key: values" beside GRUB's modules.
func index(t *testing.T, name string) map[string][]string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(grubLibrary, name))
	if err != nil {
		t.Fatal(err)
	}
	lines := map[string][]string{}
	for line := range strings.Lines(string(data)) {
		key, values, _ := strings.Cut(line, ":")
		lines[strings.TrimPrefix(key, "*")] = strings.Fields(values)
	}
	return lines
}

func readModules(t *testing.T) []string {
	t.Helper()
	data, err := os.ReadFile(grubModules)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Fields(string(data))
}

// TestGrubModules: the core image has every command of grub.cfg. A missing one
// would show on the machine only, as GRUB then looks for a module on the ESP.
func TestGrubModules(t *testing.T) {
	needGrubMkimage(t)
	dependencies, commands := index(t, "moddep.lst"), index(t, "command.lst")
	has := map[string]bool{}
	var add func(module string)
	add = func(module string) {
		if has[module] {
			return
		}
		has[module] = true
		if _, ok := dependencies[module]; !ok {
			t.Errorf("there is no module %s", module)
		}
		for _, d := range dependencies[module] {
			add(d)
		}
	}
	for _, module := range readModules(t) {
		add(module)
	}
	var script []byte
	for _, name := range []string{grubConfig, grubFirst} {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		script = append(script, text...)
	}
	defined := map[string]bool{}
	for _, word := range []string{"set", "unset", "return", "function", "for", "fi", "else", "done"} {
		defined[word] = true // the kernel's and the language's own
	}
	for _, match := range regexp.MustCompile(`(?m)^function (\w+)`).FindAllSubmatch(script, -1) {
		defined[string(match[1])] = true
	}
	seen := 0
	for _, match := range regexp.MustCompile(`(?m)^\s*(?:(?:if|elif) (?:! )?)?([a-z_]+|\[)(?:[ ;]|$)`).FindAllSubmatch(script, -1) {
		command := string(match[1])
		if defined[command] {
			continue
		}
		seen++
		if module, ok := commands[command]; !ok || !has[module[0]] {
			t.Errorf("command %s of grub.cfg: module %v is not in %s", command, module, grubModules)
		}
	}
	if seen < 15 {
		t.Errorf("%d commands found in grub.cfg: the test reads it wrongly", seen)
	}
}

func needGrubMkimage(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("needs grub-mkimage")
	}
	_, err := exec.LookPath("grub-mkimage")
	if err == nil {
		_, err = os.Stat(grubLibrary)
	}
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
}

// TestGrubImage: the build's script makes an EFI program, the same bytes each time,
// with its copy of the boot script.
func TestGrubImage(t *testing.T) {
	needGrubMkimage(t)
	var images [2][]byte
	for i := range images {
		image := filepath.Join(t.TempDir(), "BOOTX64.EFI")
		run(t, "../../images/grub-image.sh", image)
		data, err := os.ReadFile(image)
		if err != nil {
			t.Fatal(err)
		}
		images[i] = data
	}
	if !bytes.HasPrefix(images[0], []byte("MZ")) || !bytes.Equal(images[0], images[1]) {
		t.Error("no EFI program, or another one each time")
	}
	script, err := os.ReadFile(grubConfig)
	if err != nil || !bytes.Contains(images[0], script) {
		t.Errorf("the boot script is not in it: %v", err)
	}
}
